#!/usr/bin/env python3
"""The main job: one PostgreSQL, one load, three ways of backing its shared memory.

    off     huge_pages=off: what most installations run
    hostmm  the same command and configuration under `hostmm run`
    on      huge_pages=on, when hugetlb pages can be had for the length of a round

The three are alternated; figures are medians over rounds. Everything is thrown away at the end.
"""

import json
import pathlib
import time

import pg_cluster
import pg_sides
import report
import sides

# The defaults fit two processors and 8 GiB (buffers, the file cache of the tables and the plain
# side's page tables are below 5 GiB) and end within six minutes, building not included.
_BUFFERS_MB = 2048
_SCALE = 100
_CLIENTS = 80
_SECONDS = 15
_ROUNDS = 3

_ROWS = ("tps", "page_tables_kb", "vmpte_kb", "minor_faults")


def _ratio_text(samples, metric, base):
    ratio = samples.ratio(metric, sides.HOSTMM, base)
    if ratio is None:
        return "-"
    # A saving reads better as "61 times less" than as 0.016.
    return f"{ratio:.2f} x" if metric == "tps" or ratio >= 0.5 else f"1/{1 / ratio:.0f}"


def _table(samples):
    shown = samples.sides()
    bases = [side for side in (sides.OFF, sides.ON) if side in shown]
    compared = bases if sides.HOSTMM in shown else []
    header = ["median"] + shown + [f"hostmm/{base}" for base in compared]
    rows = []
    for metric in _ROWS:
        rows.append([pg_sides.LABELS[metric]]
                    + [report.number(samples.median(side, metric)) for side in shown]
                    + [_ratio_text(samples, metric, base) for base in compared])
    return report.table(header, rows)


def _parser():
    parser = report.arguments(__doc__, rounds=_ROUNDS, quick_rounds=1)
    sides.add_option(parser, (sides.OFF, sides.HOSTMM, sides.ON))
    parser.add_argument("--buffers", type=pg_sides.megabytes, default=_BUFFERS_MB,
                        help="shared_buffers, as 512MB or 4GB (default 2GB)")
    parser.add_argument("--scale", type=int, default=_SCALE,
                        help=f"of pgbench, 15 MB each (default {_SCALE})")
    parser.add_argument("--clients", type=int, default=_CLIENTS, help=f"(default {_CLIENTS})")
    parser.add_argument("--seconds", type=int,
                        help=f"of load per round (default {_SECONDS}; 5 with --quick)")
    parser.add_argument("--mode", choices=("simple", "extended", "prepared"), default="prepared",
                        help="query mode of pgbench (default prepared)")
    return parser


def _write_json(path, samples, settings, rounds):
    ratios = {
        f"hostmm/{base}": {m: samples.ratio(m, sides.HOSTMM, base) for m in _ROWS}
        for base in (sides.OFF, sides.ON)
    }
    result = {
        "benchmark": "demo",
        "rounds": rounds,
        "machine": report.machine(),
        "settings": settings,
        "sides": samples.as_json(),
        "unavailable": samples.unavailable,
        "ratios": ratios,
    }
    pathlib.Path(path).write_text(json.dumps(result, sort_keys=True, indent=1) + "\n")


def main():
    options = report.parse(_parser())
    began = time.monotonic()
    seconds = options.seconds or (5 if options.quick else _SECONDS)
    load = pg_sides.Load(
        seconds, options.clients, pg_sides.load_words(options.clients, options.mode))
    settings = {"shared_buffers_mb": options.buffers, "scale": options.scale,
                "clients": options.clients, "seconds": seconds, "mode": options.mode}
    with sides.optional_hostmm(options) as hostmm, pg_cluster.Cluster(
        options.buffers, max_connections=options.clients + 10
    ) as cluster:
        report.progress(
            f"PostgreSQL with {options.buffers} MB of shared buffers; loading pgbench,"
            f" scale {options.scale} (about {options.scale * 15} MB)")
        cluster.load_pgbench(options.scale)
        samples = sides.alternate(
            options, hostmm,
            measure=lambda side: pg_sides.measure_select(cluster, side, hostmm, load),
            require=lambda side: pg_sides.require(side, cluster))
        settings["hostmm"] = hostmm.messages if hostmm else []

    print(
        f"\npgbench -S -M {options.mode}, {options.clients} clients, {options.buffers} MB of"
        f" shared buffers, scale {options.scale}, {options.rounds} alternated rounds of {seconds} s\n"
    )
    print(_table(samples))
    for side, why in samples.unavailable.items():
        print(f"\nside {side} was left out: {why}")
    print(f"\n{time.monotonic() - began:.0f} s in all; nothing is left running or changed")
    if options.json:
        _write_json(options.json, samples, settings, options.rounds)
    # hugetlb pages may be missing on a machine; the side that this is about may not.
    return report.EXIT_COULD_NOT_RUN if sides.HOSTMM in samples.unavailable else 0


if __name__ == "__main__":
    report.run_main(main)
