#!/usr/bin/env python3
"""Row 12: 1,500 processes at once in a region of 8 GiB.

    hostmm-huge     mapped with MAP_SHARED_PT, default frames
    hostmm-hugetlb  the same under --frames=hugetlb (only with --sides)

Every process reaches all of the region and stays. Counted while all stay: page tables from
/proc/meminfo and VmPTE of every process, less those of the same processes without a region. What
plain 4 KiB pages would need is computed, 8 bytes for each page and process: there is no machine of
this size on which it could be measured.
"""

import contextlib

import guest_program
import kernel_counters
import report
import sides

_HUGE = "hostmm-huge"
_HUGETLB = "hostmm-hugetlb"
_GIB_KB = 1 << 20
# Of a process that does nothing: kernel stacks, page tables, private pages. Measured 0.5 MiB.
_KB_PER_PROCESS = 768
# Left to the rest of the machine.
_RESERVE_KB = 2 * _GIB_KB

_LABELS = {
    "processes": "processes at once",
    "region_mib": "region, MiB",
    "page_tables_mib": "page tables for the region, MiB",
    "vmpte_mib": "  as sum of VmPTE, MiB",
    "gross_mib": "page tables in all, MiB",
    "plain_mib": "computed: 4 KiB pages would need, MiB",
    "per_process_kb": "memory per process beside the region, kB",
}


def _scaled(options):
    """Returns the region's bytes that fit, and says so if that is less than asked for."""
    available = kernel_counters.meminfo_kb()["MemAvailable"]
    rest = available - _RESERVE_KB - options.children * _KB_PER_PROCESS
    fits = max(1, rest // _GIB_KB) << 30
    if fits >= options.bytes:
        return options.bytes
    report.progress(f"region of {fits >> 30} GiB instead of {options.bytes >> 30}:"
                    f" {available // 1024} MiB of memory are available")
    return fits


def _run(side, hostmm, size, children):
    before = kernel_counters.settled_meminfo_kb()
    words = [f"--bytes={size}", f"--children={children}"]
    program = sides.benchmark_program("crowd_guest")
    with guest_program.GuestProgram(sides.wrapper(side, hostmm), program, *words) as guest:
        pids = guest.expect("crowded")["pids"]
        after = kernel_counters.meminfo_kb()
        counters = [kernel_counters.process_counters(pid) for pid in pids]
        guest.go_on()
        guest.finish()
        if size:
            hostmm.note(guest.messages)
            sides.check_attached(guest.messages, children)
    return {
        "page_tables_kb": after["PageTables"] - before["PageTables"],
        "vmpte_kb": sum(each.vmpte_kb for each in counters),
        "used_kb": before["MemAvailable"] - after["MemAvailable"],
    }


def _pages(side, size):
    if side != _HUGETLB:
        return contextlib.nullcontext()
    return kernel_counters.HugetlbPages(size + (64 << 20))


def _measure(side, hostmm, size, children):
    with _pages(side, size):
        full = _run(side, hostmm, size, children)
        empty = _run(side, hostmm, 0, children)
    return {
        "processes": children,
        "region_mib": size >> 20,
        "page_tables_mib": (full["page_tables_kb"] - empty["page_tables_kb"]) / 1024,
        "vmpte_mib": (full["vmpte_kb"] - empty["vmpte_kb"]) / 1024,
        "gross_mib": full["page_tables_kb"] / 1024,
        "plain_mib": children * size / 512 / (1 << 20),
        "per_process_kb": (full["used_kb"] - (size >> 10)) / children,
    }


def main():
    parser = report.arguments(__doc__, rounds=2, quick_rounds=1)
    sides.add_option(parser, (_HUGE,))
    parser.add_argument("--bytes", type=int, default=8 << 30, help="of the region (default 8 GiB)")
    parser.add_argument("--children", type=int, default=1500, help="(default 1,500)")
    options = report.parse(parser)
    size = _scaled(options)
    settings = {"bytes": size, "bytes_asked_for": options.bytes, "children": options.children}
    with sides.optional_hostmm(options) as hostmm:
        samples = sides.alternate(
            options, hostmm, measure=lambda side: _measure(side, hostmm, size, options.children))
        settings["hostmm"] = hostmm.messages if hostmm else []
    side = options.sides.split(",")[0]
    missing = samples.why_missing(side)
    tables = samples.median(side, "page_tables_mib")
    claims = [
        report.Claim(f"processes at once in a region of {size >> 30} GiB",
                     samples.median(side, "processes"), ">=", 1500, missing),
        report.Claim("their page tables for it / what 4 KiB pages would need",
                     None if tables is None else tables / samples.median(side, "plain_mib"), "<=",
                     1 / 100, missing),
    ]
    return report.finish("many_guests", options, samples, claims, _LABELS, settings)


if __name__ == "__main__":
    report.run_main(main)
