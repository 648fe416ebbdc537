#!/usr/bin/env python3
"""Row 11: one more process comes to a populated region of 1 GiB.

    off             mmap of a file of 4 KiB pages, and a touch of each page
    hostmm-huge     a named region, opened and mapped with MAP_SHARED_PT, default frames
    hostmm-hugetlb  the same under --frames=hugetlb

The process is there already on all sides; timed is from its first call to its last touch. Under
hostmm that is all of its attachment too: connecting, the agent thread, the registration.

"reachable" is one touch for each frame: what is left takes no fault afterwards, which every run
checks. "touched" is one byte of each 4 KiB page on all sides: 262,144 cache misses that have
nothing to do with page tables are then in both.
"""

import contextlib
import statistics
import time

import failures
import guest_program
import kernel_counters
import report
import sides

_HUGE = "hostmm-huge"
_HUGETLB = "hostmm-hugetlb"
_TARGET = 100
_LATE = 20
_LATE_QUICK = 6
# Of the process's own memory, its stack and the library's data: a fault or two. Arbitrary.
_OWN_FAULTS = 16
# The pager tries again four times a second; arbitrary.
_HUGE_SECONDS = 10

_LABELS = {
    f"{access}_{metric}": text.format(what=what)
    for access, what in (("read", "reads"), ("write", "writes"))
    for metric, text in (("map_us", "mapped, us"), ("reach_us", "all reachable by {what}, us"),
                         ("touch_us", "all touched by {what}, us"),
                         ("faults", "minor faults of that"))
}


def _pages(side, size):
    if side != _HUGETLB:
        return contextlib.nullcontext()
    return kernel_counters.HugetlbPages(size + (64 << 20))


def _require(side, size):
    with _pages(side, size):
        pass


def _await_huge(wanted_kb):
    """Waits until the pager has made the last block huge that was filled with small pages."""
    deadline = time.monotonic() + _HUGE_SECONDS
    while kernel_counters.meminfo_kb()["ShmemHugePages"] < wanted_kb:
        if time.monotonic() > deadline:
            raise failures.MeasurementFailed(f"not all of the region is huge after {_HUGE_SECONDS} s")
        time.sleep(0.02)


def _run(side, hostmm, size, late, access):
    ours = side.startswith(sides.HOSTMM)
    frames = "hugetlb" if side == _HUGETLB else "huge" if ours else "base"
    words = [f"--how={'shared' if ours else 'plain'}", f"--frames={frames}",
             f"--bytes={size}", f"--late={late}", f"--access={access}"]
    program = sides.benchmark_program("attach_guest")
    before = kernel_counters.meminfo_kb()["ShmemHugePages"]
    with _pages(side, size):
        with guest_program.GuestProgram(sides.wrapper(side, hostmm), program, *words) as guest:
            guest.expect("populated")
            if ours and frames == "huge":
                _await_huge(before + size // 1024)
            guest.go_on()
            times = guest.finish("timed")
            if ours:
                hostmm.note(guest.messages)

    # A block that is full of small pages becomes huge a moment later: who comes earlier has not reached all of it
    # with one touch per frame, and does not count.
    def reached(which):
        there = [each for each in times[which] if each["later"] <= _OWN_FAULTS]
        if len(there) * 2 < len(times[which]):
            raise failures.MeasurementFailed(f"{side}: one touch per frame does not reach all pages")
        return there

    def median(which, metric):
        return statistics.median(each[metric] for each in reached(which))

    return {
        f"{access}_map_us": median("by_frame", "map_ns") / 1000,
        f"{access}_reach_us": median("by_frame", "reach_ns") / 1000,
        f"{access}_touch_us": median("by_page", "reach_ns") / 1000,
        f"{access}_faults": median("by_page", "faults"),
    }


def _measure(side, hostmm, options):
    late = _LATE_QUICK if options.quick else _LATE
    metrics = {}
    for access in ("read", "write"):
        metrics.update(_run(side, hostmm, options.bytes, late, access))
    return metrics


def _claim(samples, side, access):
    plain, ours = samples.median(sides.OFF, f"{access}_touch_us"), samples.median(
        side, f"{access}_reach_us")
    return report.Claim(
        f"one more process, reachable for {access}s: touching 4 KiB pages / {side}",
        plain / ours if plain and ours else None, ">=", _TARGET,
        samples.why_missing(sides.OFF, side))


def main():
    parser = report.arguments(__doc__, rounds=5, quick_rounds=1)
    sides.add_option(parser, (sides.OFF, _HUGE, _HUGETLB))
    parser.add_argument("--bytes", type=int, default=1 << 30, help="of the region (default 1 GiB)")
    options = report.parse(parser)
    settings = {"bytes": options.bytes}
    with sides.optional_hostmm(options) as hostmm:
        samples = sides.alternate(
            options, hostmm, measure=lambda side: _measure(side, hostmm, options),
            require=lambda side: _require(side, options.bytes))
        settings["hostmm"] = hostmm.messages if hostmm else []
    claims = [_claim(samples, side, access)
              for side in (_HUGE, _HUGETLB) for access in ("read", "write")]
    return report.finish("attach", options, samples, claims, _LABELS, settings)


if __name__ == "__main__":
    report.run_main(main)
