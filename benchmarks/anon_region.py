#!/usr/bin/env python3
"""Row 2: 50 processes share 1 GiB of anonymous memory; every page is read and written by each.

Two runs per side and round: the processes with the region, and the same processes without it. The
difference is what the region costs in page tables. Both are counted from the moment before anything
was started, so that launcher and pager are inside; they are in both runs and cancel out.
"""

import statistics

import guest_program
import kernel_counters
import report
import sides

# Where libraries and stack happen to lie decides whether a process needs one table page more or less;
# times 50 children of one parent that is as much as the target allows. No randomness, on all sides.
_SAME_LAYOUT = ("setarch", "-R")

_LABELS = {
    "page_tables_kb": "page tables net of the processes, kB",
    "page_tables_gross_kb": "page tables, processes included, kB",
    "vmpte_kb": "VmPTE of all children, net, kB",
    "minor_faults": "minor faults per child",
    "reach_ms": "time until a child has reached every page, ms",
}


def _run(wrapper, hostmm, options, how):
    """Runs the children once; returns figures of the moment when all of them hold the region."""
    before = kernel_counters.settled_meminfo_kb()["PageTables"]
    words = [f"--map={how}", f"--bytes={options.bytes}", f"--children={options.children}"]
    program = sides.benchmark_program("region_children")
    with guest_program.GuestProgram([*wrapper, *_SAME_LAYOUT], program, *words) as guest:
        guest.expect("started")
        guest.go_on()
        children = guest.expect("touched")["children"]
        after = kernel_counters.meminfo_kb()["PageTables"]
        counters = [kernel_counters.process_counters(child["pid"]) for child in children]
        guest.go_on()
        guest.finish()
        if wrapper:
            hostmm.note(guest.messages)
    return {
        "page_tables_kb": after - before,
        "vmpte_kb": sum(each.vmpte_kb for each in counters),
        "minor_faults": statistics.median(child["faults"] for child in children),
        "reach_ms": statistics.median(child["ns"] for child in children) / 1e6,
    }


def _measure(side, hostmm, options):
    wrapper = sides.wrapper(side, hostmm)
    empty = _run(wrapper, hostmm, options, "none")
    full = _run(wrapper, hostmm, options, "shared")
    return {
        "page_tables_kb": full["page_tables_kb"] - empty["page_tables_kb"],
        "page_tables_gross_kb": full["page_tables_kb"],
        "vmpte_kb": full["vmpte_kb"] - empty["vmpte_kb"],
        "minor_faults": full["minor_faults"],
        "reach_ms": full["reach_ms"],
    }


def main():
    parser = report.arguments(__doc__, rounds=5, quick_rounds=1)
    sides.add_option(parser, (sides.OFF, sides.HOSTMM))
    parser.add_argument("--bytes", type=int, default=1 << 30, help="of the region (default 1 GiB)")
    parser.add_argument("--children", type=int, default=50, help="(default 50)")
    options = report.parse(parser)
    settings = {"bytes": options.bytes, "children": options.children}
    with sides.optional_hostmm(options) as hostmm:
        samples = sides.alternate(
            options, hostmm, measure=lambda side: _measure(side, hostmm, options))
        settings["hostmm"] = hostmm.messages if hostmm else []

    def claim(what, metric):
        return report.Claim(
            f"anonymous region: {what}, hostmm / plain",
            samples.ratio(metric, sides.HOSTMM, sides.OFF),
            "<=", 1 / 100, samples.why_missing(sides.HOSTMM, sides.OFF))

    claims = [claim("page tables from meminfo", "page_tables_kb"),
              claim("sum of VmPTE", "vmpte_kb")]
    return report.finish("anon_region", options, samples, claims, _LABELS, settings)


if __name__ == "__main__":
    report.run_main(main)
