#!/usr/bin/env python3
"""Row 5: a program under the preload that maps nothing shared: compiling a C++ file.

Many short runs with and without LD_PRELOAD of the library and HOSTMM_SOCKET of a live pager, in
pairs whose order alternates; the ratio is the median over pairs, which cancels what moves slowly on
the machine. Where counting instructions is possible (perf, else callgrind) their number is compared
too: it does not depend on what else the machine does.
"""

import contextlib
import os
import pathlib
import re
import resource
import shutil
import statistics
import subprocess
import tempfile
import time

import failures
import interrupts
import process_end
import report
import sides

_SOURCE = pathlib.Path(__file__).resolve().parent / "compiled_source.inc"
_COMPILE = ("g++", "-std=c++20", "-O1", "-c", "-x", "c++", str(_SOURCE), "-o")
# Callgrind slows a program down some fifty times: a file without the heavy headers, parsed only.
_SMALL_COMPILE = (
    "g++", "-std=c++20", "-fsyntax-only", "-x", "c++", "-include", "vector", os.devnull)
_TARGET = 1.01
_READY_SECONDS = 20

_LABELS = {"cpu_s": "user + system time of a compilation, s", "wall_s": "elapsed time, s",
           "instructions": "instructions of a small compilation"}


@contextlib.contextmanager
def _pager(hostmm, folder):
    """Runs a pager; yields the environment of a program under the preload."""
    socket = os.path.join(folder, "pager.sock")
    process = None
    try:
        with interrupts.held_back():
            process = subprocess.Popen(
                [hostmm.binary, "pager", "--socket", socket], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                start_new_session=True)
        deadline = time.monotonic() + _READY_SECONDS
        while not os.path.exists(socket):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise failures.NotAvailable(
                    f"the pager did not start: {process.communicate()[1].strip()}")
            time.sleep(0.02)
        yield {**os.environ, "LD_PRELOAD": hostmm.preload, "HOSTMM_SOCKET": socket}
    finally:
        if process is not None:
            process.terminate()
            process_end.end_processes([process.pid])
            process.wait()
            process.stderr.close()


def _children_cpu():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _compile(environment, folder):
    """Compiles once; returns the metrics. RUSAGE_CHILDREN has the whole tree once it is reaped."""
    cpu, wall = _children_cpu(), time.monotonic()
    subprocess.run([*_COMPILE, os.path.join(folder, "out.o")], env=environment, check=True)
    return {"cpu_s": _children_cpu() - cpu, "wall_s": time.monotonic() - wall}


def _perf_instructions(environment):
    done = subprocess.run(
        ["perf", "stat", "-x", ",", "-e", "instructions:u", *_SMALL_COMPILE], env=environment,
        capture_output=True, text=True)
    found = re.search(r"^([0-9]+),,instructions", done.stderr, re.MULTILINE)
    return int(found.group(1)) if found else None


def _callgrind_instructions(environment, folder):
    subprocess.run(
        ["valgrind", "--tool=callgrind", "--trace-children=yes", "--callgrind-out-file=/dev/null",
         f"--log-file={folder}/callgrind.%p", *_SMALL_COMPILE], env=environment, check=True)
    total = 0
    for log in pathlib.Path(folder).glob("callgrind.*"):
        total += sum(int(n) for n in re.findall(r"Collected : ([0-9]+)", log.read_text()))
        log.unlink()
    return total or None


def _count_instructions(environment, folder):
    """Returns (instructions, what counted them), or (None, why nothing can)."""
    if shutil.which("perf"):
        count = _perf_instructions(environment)
        if count:
            return count, "perf"
    if shutil.which("valgrind"):
        return _callgrind_instructions(environment, folder), "callgrind"
    return None, "neither hardware counters nor valgrind"


def _measure_pairs(options, environments, folder, samples):
    """Returns {metric: [ratio of each pair]}."""
    ratios = {"cpu_s": [], "wall_s": []}
    _compile(environments[sides.OFF], folder)  # Fills the file cache; not counted.
    for number in range(options.rounds):
        pair = {}
        for side in sides.rotated(environments, number):
            pair[side] = _compile(environments[side], folder)
            samples.add(side, pair[side])
        for metric, values in ratios.items():
            values.append(pair[sides.HOSTMM][metric] / pair[sides.OFF][metric])
        if (number + 1) % 10 == 0:
            report.progress(f"pair {number + 1}/{options.rounds}:"
                            f" ratio of CPU time so far {statistics.median(ratios['cpu_s']):.4f}")
    return ratios


def _instruction_claim(environments, folder, samples):
    name = "compile a C++ file: instructions, with / without the preload"
    counts = {}
    for side, environment in environments.items():
        counts[side], how = _count_instructions(environment, folder)
        if counts[side] is None:
            return None
        samples.add(side, {"instructions": counts[side]})
    report.progress(f"instructions counted by {how}")
    ratio = counts[sides.HOSTMM] / counts[sides.OFF]
    return report.Claim(name, ratio, "<=", _TARGET)


def main():
    parser = report.arguments(__doc__, rounds=60, quick_rounds=8)
    options = report.parse(parser)
    samples = report.Samples()
    claims = []
    with contextlib.ExitStack() as stack:
        hostmm = stack.enter_context(sides.InstalledHostmm())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hostmm-compile-"))
        loaded = stack.enter_context(_pager(hostmm, folder))
        environments = {sides.OFF: dict(os.environ), sides.HOSTMM: loaded}
        ratios = _measure_pairs(options, environments, folder, samples)
        for metric, what in (("cpu_s", "user + system time"), ("wall_s", "elapsed time")):
            claims.append(report.Claim(
                f"compile a C++ file: {what}, with / without the preload (median of pairs)",
                statistics.median(ratios[metric]), "<=", _TARGET))
        counted = _instruction_claim(environments, folder, samples)
        claims += [counted] if counted else []
    return report.finish(
        "nothing_shared", options, samples, claims, _LABELS, {"pair_ratios": ratios})


if __name__ == "__main__":
    report.run_main(main)
