#!/usr/bin/env python3
"""Row 9: 64 processes with 1 GiB resident in each; its protection changes for all of them.

    off              4 KiB pages; a signal to each, whose handler calls mprotect
    signals-huge     the same on 2 MiB frames of a tmpfs
    signals-hugetlb  the same on hugetlb, mapped so that the kernel shares the PMD tables
    hostmm-huge      one mprotect of memory mapped with MAP_SHARED_PT, default frames
    hostmm-hugetlb   the same under --frames=hugetlb

Time from the call until the last of the 64 has the protection, read-only and writable by turns.
Before each call all of it is touched in all of them; after each call all of them ask the kernel
whether they may write.
"""

import protect_sides
import report
import sides

_SIGNALS = (protect_sides.SIGNALS_HUGE, protect_sides.SIGNALS_HUGETLB)
_HOSTMM = (protect_sides.HOSTMM_HUGE, protect_sides.HOSTMM_HUGETLB)
_LABELS = {
    "us": "until the last one has it, us",
    "read_only_us": "  to read-only",
    "writable_us": "  to writable",
    "each_us": "  with a kill for each",
    "group_us": "  with one kill for the group",
}
# Calls to read-only and back in a round. On 4 KiB pages one takes seconds.
_PAIRS = 20
_PAIRS_OF_SMALL_PAGES = 2


def _matrix(samples):
    rows = [[ours] + [report.number(samples.ratio("us", theirs, ours))
                      for theirs in (sides.OFF, *_SIGNALS)] for ours in _HOSTMM]
    return report.table(["times faster than", sides.OFF, *_SIGNALS], rows)


def _claim(samples, what, theirs, ours, target):
    return report.Claim(
        f"shared mprotect: {what}: {theirs} / {ours}", samples.ratio("us", theirs, ours),
        ">=", target, samples.why_missing(theirs, ours))


def _best(samples, names):
    """Returns the fastest of the sides, or the first if none ran."""
    ran = [name for name in names if name in samples.sides()]
    return min(ran, key=lambda side: samples.median(side, "us"), default=names[0])


def main():
    parser = report.arguments(__doc__, rounds=5, quick_rounds=1)
    sides.add_option(parser, (sides.OFF, *_SIGNALS, *_HOSTMM))
    parser.add_argument("--bytes", type=int, default=1 << 30, help="of the region (default 1 GiB)")
    parser.add_argument("--guests", type=int, default=64, help="(default 64)")
    options = report.parse(parser)
    settings = {"bytes": options.bytes, "guests": options.guests}

    def measure(side):
        pairs = _PAIRS_OF_SMALL_PAGES if side == sides.OFF else _PAIRS
        if options.quick:
            pairs = min(pairs, 5)
        return protect_sides.run(side, hostmm, options.bytes, options.guests, pairs)

    with sides.optional_hostmm(options) as hostmm:
        samples = sides.alternate(
            options, hostmm, measure,
            require=lambda side: protect_sides.require(side, options.bytes))
        settings["hostmm"] = hostmm.messages if hostmm else []
    print(f"\n{_matrix(samples)}")
    claims = [
        _claim(samples, "4 KiB pages, hostmm as it comes", sides.OFF, protect_sides.HOSTMM_HUGE,
               100),
        _claim(samples, "2 MiB frames of tmpfs, hostmm at its best", protect_sides.SIGNALS_HUGE,
               _best(samples, _HOSTMM), 1.2),
    ]
    return report.finish("shared_mprotect", options, samples, claims, _LABELS, settings)


if __name__ == "__main__":
    report.run_main(main)
