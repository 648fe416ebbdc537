#!/usr/bin/env python3
"""Tests of what the benchmark programs stand on: figures, verdicts, alternation, clean-up."""

import argparse
import contextlib
import io
import mmap
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import unittest.mock
import xml.etree.ElementTree

import failures
import fork_curve
import guest_program
import interrupts
import kernel_counters
import pg_sides
import process_end
import report
import sides
import snapshot_memory
import snapshot_sides
import snapshot_writers
import suite
import svg_plot
import unittest_xml

_OVERCOMMIT = pathlib.Path("/proc/sys/vm/nr_overcommit_hugepages")


def _options(**values):
    return argparse.Namespace(
        **{"rounds": 1, "quick": False, "json": None, "load_before": 0.0, **values})


class ReportTest(unittest.TestCase):

    def test_median_and_ratio(self):
        samples = report.Samples()
        for off, ours in ((10, 30), (1000, 20), (20, 25)):
            samples.add("off", {"tps": off})
            samples.add("hostmm", {"tps": ours})
        self.assertEqual(samples.median("off", "tps"), 20)
        self.assertEqual(samples.ratio("tps", "hostmm", "off"), 25 / 20)
        self.assertIsNone(samples.ratio("tps", "hostmm", "on"))
        self.assertIsNone(samples.ratio("latency_ms", "hostmm", "off"))

    def test_zero_base_has_no_ratio(self):
        samples = report.Samples()
        samples.add("off", {"kb": 0})
        samples.add("hostmm", {"kb": 4})
        self.assertIsNone(samples.ratio("kb", "hostmm", "off"))

    def test_verdicts(self):
        self.assertEqual(report.Claim("", 1.25, ">=", 1.25).verdict(), report.PASS)
        self.assertEqual(report.Claim("", 1.24, ">=", 1.25).verdict(), report.MISSED)
        self.assertEqual(report.Claim("", 4, "<=", 4).verdict(), report.PASS)
        self.assertEqual(report.Claim("", 4.1, "<=", 4).verdict(), report.MISSED)
        self.assertEqual(report.Claim("", None, "<=", 4).verdict(), report.NOT_AVAILABLE)

    def _status(self, *claims):
        samples = report.Samples()
        samples.add("off", {"x": 1})
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            status = report.finish("name", _options(), samples, claims)
        return status, shown.getvalue()

    def test_missed_decides_over_not_available(self):
        good = report.Claim("good", 1, ">=", 1)
        missed = report.Claim("missed", 0, ">=", 1)
        absent = report.Claim("absent", None, ">=", 1, "no such side")
        self.assertEqual(self._status(good)[0], 0)
        self.assertEqual(self._status(good, absent)[0], report.EXIT_COULD_NOT_RUN)
        self.assertEqual(self._status(absent, missed)[0], report.EXIT_MISSED)
        self.assertIn("no such side", self._status(absent)[1])

    def test_quick_says_so(self):
        parser = report.arguments("", rounds=5, quick_rounds=2)
        with unittest.mock.patch.object(sys, "argv", ["x", "--quick"]):
            self.assertEqual(report.parse(parser).rounds, 2)


class SidesTest(unittest.TestCase):

    def test_every_side_takes_every_place(self):
        names = ["off", "hostmm", "on"]
        orders = [sides.rotated(names, number) for number in range(3)]
        for place in range(3):
            self.assertEqual({order[place] for order in orders}, set(names))

    def test_missing_side_is_reported_and_left_out(self):

        def require(side):
            if side == "on":
                raise failures.NotAvailable("no pool")

        with contextlib.redirect_stderr(io.StringIO()):
            samples = sides.alternate(
                _options(sides="on,off,hostmm"), None, lambda side: {"x": 1}, require)
        self.assertEqual(samples.sides(), ["off"])
        self.assertEqual(samples.unavailable["on"], "no pool")
        self.assertIn("not built", samples.unavailable["hostmm"])

    def test_processes_that_are_not_attached_are_noticed(self):
        line = "hostmm: managed 1 regions (0 adopted), 8.0 MiB, up to 64 processes, 4 faults"
        sides.check_attached(["hostmm: mode=uffd frames=huge", line], 64)
        for messages, expected in (([line], 65), ([], 1)):
            with self.assertRaisesRegex(failures.MeasurementFailed, f"{expected} processes"):
                sides.check_attached(messages, expected)

    def test_megabytes(self):
        self.assertEqual(pg_sides.megabytes("4GB"), 4096)
        self.assertEqual(pg_sides.megabytes("512mb"), 512)
        self.assertEqual(pg_sides.megabytes("64"), 64)
        for bad in ("", "GB", "4TB", "-1GB", "1.5GB"):
            with self.assertRaises(ValueError):
                pg_sides.megabytes(bad)


class ProcessEndTest(unittest.TestCase):

    def _sleeper(self):
        process = subprocess.Popen(["sleep", "600"])
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def test_kills_only_the_same_process(self):
        process = self._sleeper()
        # The pid is right and the start time is not: a later process with a reused pid.
        process_end.kill_rest({process.pid: "1"})
        self.assertIsNone(process.poll())
        process_end.kill_rest(process_end.identities([process.pid]))
        self.assertEqual(process.wait(10), -signal.SIGKILL)

    def test_end_processes_names_those_that_had_to_be_asked(self):
        process = self._sleeper()
        self.assertEqual(process_end.end_processes([process.pid]), [process.pid])
        self.assertEqual(process.wait(10), -signal.SIGTERM)


class InterruptsTest(unittest.TestCase):
    """In a child, because the handlers stay."""

    _CHILD = """
import os, signal, sys
import interrupts
interrupts.raise_on_signals()
done = []
try:
    with interrupts.held_back():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("whole")
    done.append("too far")
except interrupts.Interrupted as interrupt:
    os.kill(os.getpid(), signal.SIGINT)  # An impatient second signal must not break this.
    print(done, interrupt.exit_status)
"""

    def test_held_back_and_second_signal_ignored(self):
        done = subprocess.run(
            [sys.executable, "-c", self._CHILD], capture_output=True, text=True, timeout=30,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        self.assertEqual(done.stdout, "['whole'] 143\n", done.stderr)


@unittest.skipUnless(os.access(_OVERCOMMIT, os.W_OK), "raising hugetlb settings needs root")
class HugetlbPagesTest(unittest.TestCase):

    def test_restored_after_failure(self):
        old = _OVERCOMMIT.read_text()
        with self.assertRaises(ZeroDivisionError):
            with kernel_counters.HugetlbPages(8 << 20):
                self.assertEqual(int(_OVERCOMMIT.read_text()), int(old) + 4)
                raise ZeroDivisionError
        self.assertEqual(_OVERCOMMIT.read_text(), old)

    def test_restored_when_pages_cannot_be_had(self):
        old = _OVERCOMMIT.read_text()
        with self.assertRaises(failures.NotAvailable):
            with kernel_counters.HugetlbPages(1 << 50):
                pass
        self.assertEqual(_OVERCOMMIT.read_text(), old)


class CountersTest(unittest.TestCase):

    def test_own_process(self):
        region = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        before = kernel_counters.process_counters(os.getpid())
        for at in range(0, len(region), mmap.PAGESIZE):
            region[at] = 1
        after = kernel_counters.process_counters(os.getpid())
        # 32 blocks of 2 MiB, a 4 KiB table each, when the pages are small; none when huge.
        self.assertLessEqual(after.vmpte_kb - before.vmpte_kb, 32 * 4 + 8)
        self.assertGreaterEqual(after.minor_faults - before.minor_faults, 32)
        region.close()

    def test_process_that_is_gone(self):
        process = subprocess.Popen(["true"])
        process.wait()
        self.assertIsNone(kernel_counters.process_counters(process.pid))

    def test_descendants(self):
        process = subprocess.Popen(["sh", "-c", "sleep 600 & echo ready; wait"],
                                   stdout=subprocess.PIPE)
        process.stdout.readline()
        below = kernel_counters.descendants(process.pid)
        self.assertEqual(len(below), 1)
        process_end.kill_rest(process_end.identities([process.pid, *below]))
        process.wait()
        process.stdout.close()


class SvgPlotTest(unittest.TestCase):

    def _lines(self, series):
        text = svg_plot.line_chart("a < b", "x", "y", series)
        root = xml.etree.ElementTree.fromstring(text)
        circles = root.findall("{http://www.w3.org/2000/svg}circle")
        return root, [(float(c.get("cx")), float(c.get("cy"))) for c in circles]

    def test_doubling_is_a_straight_line(self):
        _, points = self._lines({"line": [(1, 10), (2, 20), (4, 40), (8, 80)]})
        steps = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(points, points[1:])]
        for step in steps:
            self.assertAlmostEqual(step[0], steps[0][0], delta=0.2)
            self.assertAlmostEqual(step[1], steps[0][1], delta=0.2)
        # To the right, and up.
        self.assertGreater(steps[0][0], 0)
        self.assertLess(steps[0][1], 0)

    def test_all_series_lie_within(self):
        root, points = self._lines({"one": [(1, 0.5), (64, 9000)], "two": [(3, 7)], "none": []})
        _, _, width, height = map(float, root.get("viewBox").split())
        self.assertEqual(len(points), 3)
        self.assertTrue(all(0 <= x <= width and 0 <= y <= height for x, y in points))
        names = [text.text for text in root.findall("{http://www.w3.org/2000/svg}text")]
        self.assertIn("a < b", names)
        self.assertIn("two", names)
        self.assertNotIn("none", names)

    def test_what_cannot_be_drawn(self):
        for series in ({}, {"a": []}, {"a": [(0, 1), (1, 1)]}, {"a": [(1, -1), (2, 1)]}):
            with self.assertRaises(ValueError):
                svg_plot.line_chart("t", "x", "y", series)


class SnapshotRowsTest(unittest.TestCase):

    def _samples(self, **sides_metrics):
        samples = report.Samples()
        for side, metrics in sides_metrics.items():
            samples.add(side.replace("_", "-"), metrics)
        return samples

    def test_frames_of_sides(self):
        for side, frames in (("hostmm-huge", "huge"), ("bare-hugetlb", "hugetlb"), ("fork", "base")):
            self.assertEqual(snapshot_sides.frames_of(side), frames)

    def test_every_row_is_in_the_suite(self):
        folder = pathlib.Path(suite.__file__).resolve().parent
        rows = [path.stem for path in folder.glob("*.py")
                if f'report.finish("{path.stem}"' in path.read_text()]
        self.assertIn("snapshot_freeze", rows)
        self.assertEqual(set(rows) - set(suite._PROGRAMS), set())

    def _linear(self, *us):
        metrics = {snapshot_writers._metric(n, 1 << 30): t for n, t in zip((1, 8, 64), us)}
        samples = self._samples(hostmm_huge=metrics)
        return snapshot_writers._linear(samples, "hostmm-huge", (1, 8, 64), 1 << 30)

    def test_linear_in_writers(self):
        self.assertAlmostEqual(self._linear(10, 80, 640).value, 1)
        # The start does not count, what a further writer costs does.
        self.assertAlmostEqual(self._linear(110, 180, 740).value, 1)
        self.assertAlmostEqual(self._linear(10, 80, 4560).value, 8)
        self.assertEqual(self._linear(10, 80, 4560).verdict(), report.MISSED)
        for noise in ((10, 9, 640), (10, 80, 79)):
            self.assertEqual(self._linear(*noise).verdict(), report.NOT_AVAILABLE)

    def test_growth_with_the_size(self):
        sizes = (256 << 20, 1 << 30)

        def metrics(small, large):
            return {snapshot_writers._metric(1, size): us for size, us in zip(sizes, (small, large))}

        samples = self._samples(hostmm_huge=metrics(100, 300), bare_huge=metrics(50, 150))
        self.assertAlmostEqual(snapshot_writers._by_size(samples, "huge", sizes).value, 2)
        samples = self._samples(hostmm_huge=metrics(100, 300))
        self.assertIsNone(snapshot_writers._by_size(samples, "huge", sizes).value)

    def test_too_little_memory_is_as_wrong_as_too_much(self):
        # 1,000 pages are 4,000 kB; their tables are 1,000 kB at most, and may be fewer.
        for kb, verdict in ((4000, report.PASS), (5000, report.PASS), (5499, report.PASS),
                            (5501, report.MISSED), (3601, report.PASS), (3599, report.MISSED)):
            samples = self._samples(hostmm_base={"k1000_kb": kb, "k1000_soft_kb": 1000})
            claim, = snapshot_memory._claims(samples, "hostmm-base", (1000,))
            self.assertEqual(claim.verdict(), verdict, kb)

    def test_where_sharing_tables_begins_to_pay(self):
        off = {f"t{n}_total_us": 10 for n in (1, 2, 3, 4)}
        for ours, expected in (((20, 5, 20, 9), 4), ((5, 5, 5, 5), 1), ((5, 5, 5, 20), None)):
            samples = self._samples(
                off=off, hostmm={f"t{n + 1}_total_us": us for n, us in enumerate(ours)})
            self.assertEqual(fork_curve.pays_from(samples, "hostmm"), expected)

    def test_pure_half(self):
        head = "table_pages,min_shared_tables,tables_copied,take_ns,write_ns,drop_ns,total_ns\n"
        found = fork_curve.read_pure(head + "1,4,1,1,1,1,3000\n1,1,1,1,1,1,4000\n2,4,1,1,1,1,5000\n")
        self.assertEqual(found, {"tables alone, from 4": [(1, 3.0), (2, 5.0)],
                                 "tables alone, from 1": [(1, 4.0)]})
        for bad in ("a,b\n1,2\n", head + "one,4,1,1,1,1,1\n", head + "1,4\n"):
            with self.assertRaises(failures.MeasurementFailed):
                fork_curve.read_pure(bad)


class PlainProgramsTest(unittest.TestCase):
    """The sides that need no hostmm, in small."""

    def test_fork_of_private_memory(self):
        result = snapshot_sides.timed(
            "fork", None, 8 << 20, "freeze_floor", "--how=fork", "--times=3")
        self.assertEqual(len(result["ns"]), 3)
        self.assertTrue(all(ns > 0 for ns in result["ns"]))

    def test_forks_by_tables(self):
        with guest_program.GuestProgram(
            [], sides.benchmark_program("fork_tables"), "--repeat=2", "--most=4"
        ) as guest:
            sizes = guest.finish("timed")["sizes"]
        self.assertEqual([size["tables"] for size in sizes], [1, 2, 3, 4])
        self.assertTrue(all(size["managed"] == 0 for size in sizes))

    def test_store_saved_by_fork_is_checked(self):
        with tempfile.TemporaryDirectory() as folder:
            result = snapshot_sides.timed(
                "fork", None, 16 << 20, "store_load", "--save=fork", "--writers=2", "--rate=2000",
                "--lead-ms=100", f"--image={pathlib.Path(folder, 'image')}", step="saved")
            self.assertEqual(os.listdir(folder), [])
        self.assertGreater(result["before_count"], 50)
        self.assertGreater(result["before_max_ns"], 0)


class GuestProgramTest(unittest.TestCase):

    def _children(self, *words):
        return guest_program.GuestProgram(
            [], sides.benchmark_program("region_children"), *words, "--children=3",
            "--bytes=8388608")

    def test_all_steps(self):
        with self._children() as guest:
            guest.expect("started")
            guest.go_on()
            children = guest.expect("touched")["children"]
            self.assertEqual(len(children), 3)
            self.assertTrue(all(child["failed"] == 0 for child in children))
            self.assertTrue(all(child["faults"] > 0 for child in children))
            guest.go_on()
            guest.finish()

    def test_nothing_is_left_after_a_failure(self):
        with self.assertRaises(ZeroDivisionError):
            with self._children("--order=one_by_one") as guest:
                guest.expect("started")
                guest.go_on()
                pids = [child["pid"] for child in guest.expect("touched")["children"]]
                raise ZeroDivisionError
        deadline = time.monotonic() + 10
        while process_end.identities(pids) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertEqual(process_end.identities(pids), {})

    def test_program_that_fails(self):
        with self.assertRaisesRegex(guest_program.GuestFailed, "wants a number"):
            with self._children("--order=x", "--bytes=many") as guest:
                guest.expect("started")
                guest.go_on()
                guest.expect("touched")
                guest.finish()
        with guest_program.GuestProgram(["sh", "-c", "echo oops; exit 7"], "") as guest:
            with self.assertRaisesRegex(guest_program.GuestFailed, "7.*oops"):
                guest.expect("started")


if __name__ == "__main__":
    sys.exit(unittest_xml.main())
