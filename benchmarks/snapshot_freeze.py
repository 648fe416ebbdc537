#!/usr/bin/env python3
"""Row 13: a snapshot of 1 GiB of memory that one process writes, against fork().

    fork            fork() of a process with 1 GiB of private memory in 4 KiB pages, all written
    bare-FRAMES     the floor: what the kernel takes to stop writes to such a mapping, and no more
    hostmm-FRAMES   hostmm_snapshot() of a region with such frames, by its only writer

All of the memory has been written since the last time, and is mapped as natively as it can be; the
kernel is asked before each freeze. After each snapshot a page is written, and read in the snapshot
as it was.
"""

import statistics

import report
import sides
import snapshot_sides

_FRAMES = ("huge", "hugetlb", "base")
_HOSTMM = tuple(f"{sides.HOSTMM}-{frames}" for frames in _FRAMES)
_BARE = tuple(f"bare-{frames}" for frames in _FRAMES)
_TARGET = 65
_TIMES = 20
_TIMES_QUICK = 5
_QUICK_BYTES = 256 << 20
_LABELS = {"us": "freeze, or fork(), us", "worst_us": "  the slowest of a round"}


def _measure(side, hostmm, options, size):
    times = _TIMES_QUICK if options.quick else _TIMES
    if side.startswith(sides.HOSTMM):
        result = snapshot_sides.timed(side, hostmm, size, "freeze_guests", "--writers=1",
                                      f"--snapshots={times}")
    else:
        how = "fork" if side == snapshot_sides.FORK else "bare"
        result = snapshot_sides.timed(side, hostmm, size, "freeze_floor", f"--how={how}",
                                      f"--times={times}")
    return {"us": statistics.median(result["ns"]) / 1000, "worst_us": max(result["ns"]) / 1000}


def _matrix(samples):
    def row(frames):
        ours = f"{sides.HOSTMM}-{frames}"
        return [ours, report.number(samples.ratio("us", snapshot_sides.FORK, ours)),
                report.number(samples.ratio("us", ours, f"bare-{frames}"))]

    return report.table(["", "times faster than fork()", "times its floor"], map(row, _FRAMES))


def main():
    parser = report.arguments(__doc__, rounds=5, quick_rounds=1)
    sides.add_option(parser, (snapshot_sides.FORK, *_BARE, *_HOSTMM))
    parser.add_argument("--bytes", type=int, help="of the memory (default 1 GiB; --quick 256 MiB)")
    options = report.parse(parser)
    size = options.bytes or (_QUICK_BYTES if options.quick else 1 << 30)
    settings = {"bytes": size}
    with sides.optional_hostmm(options) as hostmm:
        samples = sides.alternate(
            options, hostmm, measure=lambda side: _measure(side, hostmm, options, size),
            require=lambda side: snapshot_sides.require(side, size))
        settings["hostmm"] = hostmm.messages if hostmm else []
    print(f"\n{_matrix(samples)}")
    ran = [side for side in _HOSTMM if side in samples.sides()]
    best = min(ran, key=lambda side: samples.median(side, "us"), default=_HOSTMM[0])
    claims = [report.Claim(
        f"snapshot of {size >> 20} MiB, one writer: fork() / {best}, the best frames",
        samples.ratio("us", snapshot_sides.FORK, best), ">=", _TARGET,
        samples.why_missing(snapshot_sides.FORK, best))]
    return report.finish("snapshot_freeze", options, samples, claims, _LABELS, settings)


if __name__ == "__main__":
    report.run_main(main)
