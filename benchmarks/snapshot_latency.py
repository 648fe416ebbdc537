#!/usr/bin/env python3
"""Row 15: the latency of writes to a store of 1 GiB while it is saved.

    fork            private memory, 8 threads write; a fork, whose child writes the image
    hostmm-FRAMES   a region, 8 processes write; a snapshot, exported

Open loop: each write is due at a time of its own, whether the one before is done or not, and its
latency counts from then. Same arrivals, same records, same rate on all sides; figures are of the
writes that were due during the save, and beside them of those before it. Every image is read again
and must be a state that existed, record by record.
"""

import pathlib
import tempfile

import report
import sides
import snapshot_sides

_HOSTMM = tuple(f"{sides.HOSTMM}-{frames}" for frames in ("huge", "base", "hugetlb"))
_LEAD_MS = 2000
_LEAD_MS_QUICK = 500
_QUICK_BYTES = 256 << 20
_QUANTILES = {"p50": "p50", "p99": "p99", "p999": "p99.9", "max": "the slowest"}
_LABELS = {
    **{f"during_{key}_us": f"write during the save, {text}, us"
       for key, text in _QUANTILES.items()},
    **{f"before_{key}_us": f"write before it, {text}, us" for key, text in _QUANTILES.items()},
    "writes": "writes during the save",
    "call_us": "fork() or hostmm_snapshot(), us",
    "save_ms": "save, ms",
}


def _measure(side, hostmm, options, size, folder):
    how = "snapshot" if side.startswith(sides.HOSTMM) else "fork"
    lead = _LEAD_MS_QUICK if options.quick else _LEAD_MS
    result = snapshot_sides.timed(
        side, hostmm, size, "store_load", f"--save={how}", f"--writers={options.writers}",
        f"--rate={options.rate}", f"--lead-ms={lead}", f"--image={pathlib.Path(folder, 'image')}",
        step="saved")
    metrics = {f"{when}_{key}_us": result[f"{when}_{key}_ns"] / 1000
               for when in ("during", "before") for key in _QUANTILES}
    return {**metrics, "writes": result["during_count"], "call_us": result["call_ns"] / 1000,
            "save_ms": result["save_ns"] / 1e6}


def _claim(samples, side):
    return report.Claim(
        f"p99 of a write during a save: {side} / fork",
        samples.ratio("during_p99_us", side, snapshot_sides.FORK), "<=", 1,
        samples.why_missing(snapshot_sides.FORK, side))


def main():
    parser = report.arguments(__doc__, rounds=5, quick_rounds=1)
    sides.add_option(parser, (snapshot_sides.FORK, *_HOSTMM))
    parser.add_argument("--bytes", type=int, help="of the store (default 1 GiB; --quick 256 MiB)")
    parser.add_argument("--writers", type=int, default=8, help="(default 8)")
    parser.add_argument("--rate", type=int, default=20_000,
                        help="writes per second, of all writers together (default 20,000)")
    parser.add_argument("--folder", default=tempfile.gettempdir(),
                        help="where images are written (default the temporary folder)")
    options = report.parse(parser)
    size = options.bytes or (_QUICK_BYTES if options.quick else 1 << 30)
    settings = {"bytes": size, "writers": options.writers, "rate": options.rate,
                "folder": options.folder}
    with sides.optional_hostmm(options) as hostmm, tempfile.TemporaryDirectory(
            prefix="hostmm-save-", dir=options.folder) as folder:
        samples = sides.alternate(
            options, hostmm, measure=lambda side: _measure(side, hostmm, options, size, folder),
            require=lambda side: snapshot_sides.require(side, size))
        settings["hostmm"] = hostmm.messages if hostmm else []
    # As it comes; the other frames are in the table.
    claims = [_claim(samples, _HOSTMM[0])]
    return report.finish("snapshot_latency", options, samples, claims, _LABELS, settings)


if __name__ == "__main__":
    report.run_main(main)
