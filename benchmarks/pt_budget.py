#!/usr/bin/env python3
"""Row 8: a process that may have 256 KiB of page tables for a region that wants 2 MiB of them.

    hostmm-budget  4 KiB frames with --pt-budget: blocks are zapped and fault back
    hostmm-base    4 KiB frames without: the tables grow with what is touched
    off            the kernel alone

One process reads pages that another has written, and checks each. Three patterns: hot (15 of 16
reads go to 32 blocks of 2 MiB, half of what the budget can hold; the rest is a scan through all of
the region), random (every page alike: the worst for a budget) and scan. VmPTE is the highest that
the process saw of itself, every 4,096 reads, less what it had before.
"""

import guest_program
import report
import sides

_BUDGET_SIDE = "hostmm-budget"
_BASE_SIDE = "hostmm-base"
_BUDGET_KB = 256
_BUDGET_OPTIONS = ("--frames=base", f"--pt-budget={_BUDGET_KB}k")
# The budget is of the lowest level. Above it: a table or two of the upper levels, and what the
# process's own memory grows by.
_SLACK_KB = 24

# Reads before the timed ones, and timed. A random read costs a fault.
_PATTERNS = {"hot": (1 << 20, 1 << 20), "random": (1 << 13, 1 << 14), "scan": (1 << 13, 1 << 17)}
# One of 16 reads of the hot pattern belongs to the scan, which needs a fault for each 64 pages: 8
# for the 508 pages that are used of each block. All others are of blocks that were zapped too early.
_SCAN_SHARE = 16
_SCAN_FAULTS_PER_PAGE = 8 / 508
_TARGET_FAULTS = 1.1


def _run(side, hostmm, size, pattern):
    if side == _BUDGET_SIDE:
        wrapper = hostmm.run_command(*_BUDGET_OPTIONS)
    else:
        wrapper = sides.wrapper(side, hostmm)
    warm, reads = _PATTERNS[pattern]
    words = [f"--bytes={size}", f"--pattern={pattern}", f"--warm={warm}", f"--reads={reads}"]
    program = sides.benchmark_program("pt_budget_guest")
    with guest_program.GuestProgram(wrapper, program, *words) as guest:
        guest.expect("filled")
        guest.go_on()
        times = guest.finish("timed")
        if wrapper:
            hostmm.note(guest.messages)
    return {
        f"{pattern}_vmpte_kb": times["peak_kb"] - times["before_kb"],
        f"{pattern}_faults": times["faults"],
        f"{pattern}_ns": times["ns"] / times["reads"],
    }


def _measure(side, hostmm, size):
    metrics = {}
    for pattern in _PATTERNS:
        metrics.update(_run(side, hostmm, size, pattern))
    return metrics


def _claims(samples):
    why = samples.why_missing(_BUDGET_SIDE)
    worst = [value for pattern in _PATTERNS
             for value in samples.rounds(_BUDGET_SIDE, f"{pattern}_vmpte_kb")]
    faults = samples.median(_BUDGET_SIDE, "hot_faults")
    scan = _PATTERNS["hot"][1] / _SCAN_SHARE * _SCAN_FAULTS_PER_PAGE
    return [
        report.Claim(
            f"budget of {_BUDGET_KB} KiB: growth of VmPTE in kB, the worst of all looks",
            max(worst, default=None), "<=", _BUDGET_KB + _SLACK_KB, why),
        report.Claim(
            "hot set beside a scan: faults / those that the scan alone must cost",
            faults / scan if faults is not None else None, "<=", _TARGET_FAULTS, why),
    ]


def main():
    parser = report.arguments(__doc__, rounds=5, quick_rounds=1)
    sides.add_option(parser, (sides.OFF, _BASE_SIDE, _BUDGET_SIDE))
    parser.add_argument("--bytes", type=int, default=1 << 30, help="of the region (default 1 GiB)")
    options = report.parse(parser)
    settings = {"bytes": options.bytes, "hostmm_options": _BUDGET_OPTIONS, "patterns": _PATTERNS}
    with sides.optional_hostmm(options) as hostmm:
        samples = sides.alternate(
            options, hostmm, measure=lambda side: _measure(side, hostmm, options.bytes))
        settings["hostmm"] = hostmm.messages if hostmm else []
    labels = {}
    for pattern in _PATTERNS:
        labels[f"{pattern}_vmpte_kb"] = f"growth of VmPTE, {pattern}, kB"
        labels[f"{pattern}_faults"] = f"  minor faults in {_PATTERNS[pattern][1]:,} reads"
        labels[f"{pattern}_ns"] = "  mean of a read, ns"
    return report.finish("pt_budget", options, samples, _claims(samples), labels, settings)


if __name__ == "__main__":
    report.run_main(main)
