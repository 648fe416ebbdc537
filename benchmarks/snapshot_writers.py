#!/usr/bin/env python3
"""Row 14: a snapshot of a region that 1, 8 and 64 processes have mapped, of 256 MiB and of 1 GiB.

    bare-huge, bare-hugetlb       the floor for one: the kernel's own work on a mapping of that size
    hostmm-huge, hostmm-hugetlb   hostmm_snapshot() by one of the writers

Two questions: is the freeze linear in the writers, and does the size of the region enter by more than
the kernel's own work does? All writers have all of the region mapped natively before each freeze.
"""

import statistics

import report
import sides
import snapshot_sides

_FRAMES = ("huge", "hugetlb")
_WRITERS = (1, 8, 64)
_WRITERS_QUICK = (1, 4, 8)
_SMALL, _LARGE = 256 << 20, 1 << 30
_SMALL_QUICK, _LARGE_QUICK = 64 << 20, 256 << 20
_TIMES = 20
_TIMES_QUICK = 4
# What a further writer may cost at the upper end, against what one costs at the lower. Arbitrary.
_LINEAR = 1.25
# What the size may add, against what it adds to the kernel's own work. Arbitrary.
_BY_SIZE = 1.5


def _metric(writers, size):
    return f"w{writers}_{size >> 20}m_us"


def _measure(side, hostmm, counts, sizes, times):
    metrics = {}
    for size in sizes:
        for writers in counts:
            if side.startswith(sides.HOSTMM):
                result = snapshot_sides.timed(side, hostmm, size, "freeze_guests",
                                              f"--writers={writers}", f"--snapshots={times}")
            elif writers == 1:
                result = snapshot_sides.timed(side, hostmm, size, "freeze_floor", "--how=bare",
                                              f"--times={times}")
            else:
                continue
            metrics[_metric(writers, size)] = statistics.median(result["ns"]) / 1000
    return metrics


def _per_writer(samples, counts, sizes):
    """Returns a table: microseconds per writer."""
    rows = []
    for side in samples.sides():
        for size in sizes:
            figures = [samples.median(side, _metric(writers, size)) for writers in counts]
            rows.append([f"{side}, {size >> 20} MiB"] + [
                report.number(figure and figure / writers)
                for writers, figure in zip(counts, figures)])
    return report.table(["us per writer"] + [f"{n} writers" for n in counts], rows)


def _linear(samples, side, counts, size):
    """Returns the cost of a writer between the two highest counts / between the two lowest."""
    few, some, many = (samples.median(side, _metric(writers, size)) for writers in counts)
    value = None
    if few is not None and few < some < many:
        value = (many - some) / (counts[2] - counts[1]) / ((some - few) / (counts[1] - counts[0]))
    return report.Claim(
        f"freeze, linear in writers, {side}: one more of {counts[2]} / one more of {counts[1]}",
        value, "<=", _LINEAR,
        samples.why_missing(side) or (value is None and "no difference to be seen") or "")


def _by_size(samples, frames, sizes):
    ours, bare = f"{sides.HOSTMM}-{frames}", f"bare-{frames}"

    def growth(side):
        small, large = (samples.median(side, _metric(1, size)) for size in sizes)
        return None if small is None else large - small

    both = growth(ours), growth(bare)
    value = max(0, both[0]) / both[1] if None not in both and both[1] > 0 else None
    return report.Claim(
        f"freeze, {sizes[0] >> 20} to {sizes[1] >> 20} MiB: growth of {ours} / of the kernel's own work",
        value, "<=", _BY_SIZE,
        samples.why_missing(ours, bare) or (value is None and "no growth to be seen") or "")


def main():
    parser = report.arguments(__doc__, rounds=5, quick_rounds=1)
    sides.add_option(parser, tuple(f"{kind}-{frames}" for kind in ("bare", sides.HOSTMM)
                                   for frames in _FRAMES))
    options = report.parse(parser)
    counts = _WRITERS_QUICK if options.quick else _WRITERS
    sizes = (_SMALL_QUICK, _LARGE_QUICK) if options.quick else (_SMALL, _LARGE)
    times = _TIMES_QUICK if options.quick else _TIMES
    settings = {"writers": counts, "bytes": sizes}
    with sides.optional_hostmm(options) as hostmm:
        samples = sides.alternate(
            options, hostmm, measure=lambda side: _measure(side, hostmm, counts, sizes, times),
            require=lambda side: snapshot_sides.require(side, sizes[1]))
        settings["hostmm"] = hostmm.messages if hostmm else []
    print(f"\n{_per_writer(samples, counts, sizes)}")
    labels = {_metric(writers, size): f"freeze, {writers} writers, {size >> 20} MiB, us"
              for writers in counts for size in sizes}
    claims = [_linear(samples, f"{sides.HOSTMM}-{frames}", counts, sizes[1]) for frames in _FRAMES]
    claims += [_by_size(samples, frames, sizes) for frames in _FRAMES]
    return report.finish("snapshot_writers", options, samples, claims, labels, settings)


if __name__ == "__main__":
    report.run_main(main)
