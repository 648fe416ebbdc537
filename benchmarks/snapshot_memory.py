#!/usr/bin/env python3
"""Row 16: the memory that a snapshot of 1 GiB takes once k pages have been written.

    hostmm-base   frames of 4 KiB
    hostmm-huge   frames of 2 MiB of the region; what is copied are pages of 4 KiB all the same

Extra memory is what the kernel accounts for: growth of Shmem in /proc/meminfo and of the anonymous
memory of launcher and pager since before the snapshot, and apart from it that of PageTables. Every
page is written already, so that nothing grows but for the snapshot. What is expected: k pages, and at
most a software table (a page of shared memory) for each block of 2 MiB in which one has been written.
"""

import guest_program
import kernel_counters
import report
import sides
import snapshot_sides

_SIDES = (f"{sides.HOSTMM}-base", f"{sides.HOSTMM}-huge")
_PAGES = (1_000, 10_000, 100_000)
_PAGES_QUICK = (1_000, 10_000, 50_000)
_QUICK_BYTES = 256 << 20
_PAGE_KB = 4
_MARGIN = 0.1


def _look(hostmm):
    pager = map(kernel_counters.process_counters, hostmm.processes())
    anonymous = sum(each.rss_anon_kb for each in pager if each)
    kernel = kernel_counters.settled_meminfo_kb()
    return {"copies": kernel["Shmem"] + anonymous, "tables": kernel["PageTables"]}


def _run(side, hostmm, size, pages):
    program = sides.benchmark_program("snapshot_memory_guest")
    words = [f"--frames={snapshot_sides.frames_of(side)}", f"--bytes={size}", f"--pages={pages}"]
    looks, blocks = {}, 0
    with guest_program.GuestProgram(sides.wrapper(side, hostmm), program, *words) as guest:
        for step in ("ready", "frozen", "written", "dropped"):
            blocks = guest.expect(step).get("blocks", blocks)
            looks[step] = _look(hostmm)
            guest.go_on()
        guest.finish()
        hostmm.note(guest.messages)

    def growth(step, what):
        return looks[step][what] - looks["ready"][what]

    return {
        f"k{pages}_kb": growth("written", "copies"),
        f"k{pages}_soft_kb": blocks * _PAGE_KB,
        f"k{pages}_tables_kb": growth("written", "tables"),
        f"k{pages}_frozen_kb": growth("frozen", "copies") + growth("frozen", "tables"),
        f"k{pages}_left_kb": growth("dropped", "copies") + growth("dropped", "tables"),
    }


def _measure(side, hostmm, size, counts):
    metrics = {}
    for pages in counts:
        metrics.update(_run(side, hostmm, size, pages))
    return metrics


def _labels(counts):
    texts = {"kb": "extra memory without page tables", "soft_kb": "  of it software tables, at most",
             "tables_kb": "page tables",
             "frozen_kb": "both, before the first write", "left_kb": "both, after the snapshot"}
    return {f"k{pages}_{key}": f"{pages:,} pages written: {text}, kB"
            for pages in counts for key, text in texts.items()}


def _distance(found, pages_kb, tables_kb):
    """Returns by which share `found` is above pages and tables, or below the pages alone.

    Too little would be a snapshot that does not hold what was there: as wrong as too much.
    """
    most = pages_kb + tables_kb
    return max(0, (found - most) / most, (pages_kb - found) / pages_kb)


def _claims(samples, side, counts):
    for pages in counts:
        found = samples.median(side, f"k{pages}_kb")
        value = None if found is None else _distance(
            found, pages * _PAGE_KB, samples.median(side, f"k{pages}_soft_kb"))
        yield report.Claim(
            f"extra memory after {pages:,} pages, {side}: distance from them and tables",
            value, "<=", _MARGIN, samples.why_missing(side))


def main():
    parser = report.arguments(__doc__, rounds=5, quick_rounds=1)
    sides.add_option(parser, _SIDES)
    parser.add_argument("--bytes", type=int, help="a power of two (default 1 GiB; --quick 256 MiB)")
    options = report.parse(parser)
    size = options.bytes or (_QUICK_BYTES if options.quick else 1 << 30)
    counts = _PAGES_QUICK if options.quick else _PAGES
    settings = {"bytes": size, "pages": counts}
    with sides.optional_hostmm(options) as hostmm:
        samples = sides.alternate(
            options, hostmm, measure=lambda side: _measure(side, hostmm, size, counts))
        settings["hostmm"] = hostmm.messages if hostmm else []
    # The target is for frames of 4 KiB; the others are in the table.
    claims = list(_claims(samples, _SIDES[0], counts))
    return report.finish("snapshot_memory", options, samples, claims, _labels(counts), settings)


if __name__ == "__main__":
    report.run_main(main)
