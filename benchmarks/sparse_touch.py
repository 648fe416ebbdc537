#!/usr/bin/env python3
"""Row 6: a program that touches one 4 KiB page in each of 4,096 blocks of an 8 GiB region.

Extra memory is what the kernel accounts for: growth of Shmem and PageTables in /proc/meminfo since
before anything was started, and the anonymous memory of launcher and pager. Two orders of touching:
ascending, which looks most like a program that fills its region, and scattered.
"""

import guest_program
import kernel_counters
import report
import sides

_ORDERS = ("ascending", "scattered")
_ALLOWANCE_KB = 64 << 10
_FACTOR = 3

_LABELS = {
    f"{order}_{key}": f"{text}, {order}, kB"
    for order in _ORDERS
    for key, text in (("kb", "extra memory"), ("shmem_kb", "  of it Shmem"),
                      ("page_tables_kb", "  of it page tables"),
                      ("pager_kb", "  of it anonymous memory of the pager"))
}


def _run(side, hostmm, size, order):
    wrapper = sides.wrapper(side, hostmm)
    before = kernel_counters.settled_meminfo_kb()
    program = sides.benchmark_program("sparse_touch_guest")
    words = [f"--bytes={size}", f"--order={order}"]
    with guest_program.GuestProgram(wrapper, program, *words) as guest:
        guest.expect("started")
        guest.go_on()
        guest.expect("touched")
        after = kernel_counters.meminfo_kb()
        pager_kb = 0
        if wrapper:
            pager = map(kernel_counters.process_counters, hostmm.processes())
            pager_kb = sum(each.rss_anon_kb for each in pager if each)
        guest.go_on()
        guest.finish()
        if wrapper:
            hostmm.note(guest.messages)
    shmem, tables = (after[key] - before[key] for key in ("Shmem", "PageTables"))
    return {
        f"{order}_kb": shmem + tables + pager_kb,
        f"{order}_shmem_kb": shmem,
        f"{order}_page_tables_kb": tables,
        f"{order}_pager_kb": pager_kb,
    }


def _measure(side, hostmm, size):
    metrics = {}
    for order in _ORDERS:
        metrics.update(_run(side, hostmm, size, order))
    return metrics


def _claim(samples, order):
    plain = samples.median(sides.OFF, f"{order}_kb")
    ours = samples.median(sides.HOSTMM, f"{order}_kb")
    target = _FACTOR * (plain or 0) + _ALLOWANCE_KB
    return report.Claim(
        f"sparse toucher, {order}: extra memory in kB, against 3 x plain + 64 MiB",
        ours if plain is not None else None, "<=", target,
        samples.why_missing(sides.HOSTMM, sides.OFF))


def main():
    parser = report.arguments(__doc__, rounds=5, quick_rounds=1)
    sides.add_option(parser, (sides.OFF, sides.HOSTMM))
    parser.add_argument("--bytes", type=int, default=8 << 30, help="of the region (default 8 GiB)")
    options = report.parse(parser)
    settings = {"bytes": options.bytes}
    with sides.optional_hostmm(options) as hostmm:
        samples = sides.alternate(
            options, hostmm, measure=lambda side: _measure(side, hostmm, options.bytes))
        settings["hostmm"] = hostmm.messages if hostmm else []
    claims = [_claim(samples, order) for order in _ORDERS]
    return report.finish("sparse_touch", options, samples, claims, _LABELS, settings)


if __name__ == "__main__":
    report.run_main(main)
