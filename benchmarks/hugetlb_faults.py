#!/usr/bin/env python3
"""Row 3: how many minor faults a late comer takes to reach every page of a populated region.

Three children come one after another and all stay; each reads and writes every 4 KiB page. The
first fills the region. Figures are those of the worst of the later ones. Beside `--frames=hugetlb`
stand plain pages, a hugetlb mapping as a careful user makes it, and the default frames of hostmm.
"""

import guest_program
import kernel_counters
import report
import sides

# The pager may hold a page of its own now and then; arbitrary, and returned with the rest.
_SPARE_HUGETLB_BYTES = 64 << 20
_CHILDREN = 3
_RUNG = f"{sides.HOSTMM}-hugetlb"

_LABELS = {
    "faults_per_gib": "minor faults of a late comer per GiB",
    "reach_us": "time until it has reached every page, us",
    "page_tables_kb": "VmPTE of a late comer, kB",
}


def _uses_hugetlb(side):
    return side in (sides.ON, _RUNG)


def _run(side, hostmm, size):
    wrapper = sides.wrapper(side, hostmm)
    how = "hugetlb" if side == sides.ON else "shared"
    words = [f"--map={how}", f"--bytes={size}", f"--children={_CHILDREN}", "--order=one_by_one"]
    program = sides.benchmark_program("region_children")
    with guest_program.GuestProgram(wrapper, program, *words) as guest:
        guest.expect("started")
        guest.go_on()
        later = guest.expect("touched")["children"][1:]
        tables = [kernel_counters.process_counters(child["pid"]).vmpte_kb for child in later]
        guest.go_on()
        guest.finish()
        if wrapper:
            hostmm.note(guest.messages)
    return {
        "faults_per_gib": max(child["faults"] for child in later) / (size / (1 << 30)),
        "reach_us": max(child["ns"] for child in later) / 1e3,
        "page_tables_kb": max(tables),
    }


def _measure(side, hostmm, size):
    if not _uses_hugetlb(side):
        return _run(side, hostmm, size)
    # Only for as long as this side runs: the other sides see the machine as it was.
    with kernel_counters.HugetlbPages(size + _SPARE_HUGETLB_BYTES):
        return _run(side, hostmm, size)


def _require(side, size):
    if _uses_hugetlb(side):
        with kernel_counters.HugetlbPages(size + _SPARE_HUGETLB_BYTES):
            pass


def main():
    parser = report.arguments(__doc__, rounds=5, quick_rounds=1)
    sides.add_option(parser, (sides.OFF, sides.ON, sides.HOSTMM, _RUNG))
    parser.add_argument("--bytes", type=int, default=2 << 30, help="of the region (default 2 GiB)")
    options = report.parse(parser)
    settings = {"bytes": options.bytes, "children": _CHILDREN}
    with sides.optional_hostmm(options) as hostmm:
        samples = sides.alternate(
            options, hostmm,
            measure=lambda side: _measure(side, hostmm, options.bytes),
            require=lambda side: _require(side, options.bytes))
        settings["hostmm"] = hostmm.messages if hostmm else []
    claim = report.Claim(
        "--frames=hugetlb: minor faults per GiB of a process that comes after the first",
        samples.median(_RUNG, "faults_per_gib"), "<=", 4, samples.why_missing(_RUNG))
    return report.finish("hugetlb_faults", options, samples, [claim], _LABELS, settings)


if __name__ == "__main__":
    report.run_main(main)
