#!/usr/bin/env python3
"""Row 1: select-only pgbench on PostgreSQL: plain pages, under `hostmm run`, and hugetlb.

Every round starts a server on the same data directory, prewarms it, runs `pgbench -S` and samples
the counters while all clients are connected. See README.md for how to read the result.
"""

import pg_cluster
import pg_sides
import report
import sides


def _claims(samples):
    def ratio(metric, base):
        return samples.ratio(metric, sides.HOSTMM, base)

    return [
        report.Claim("pgbench -S: TPS, hostmm / huge_pages=off", ratio("tps", sides.OFF),
                     ">=", 1.25, samples.why_missing(sides.HOSTMM, sides.OFF)),
        report.Claim("pgbench -S: TPS, hostmm / huge_pages=on", ratio("tps", sides.ON),
                     ">=", 0.97, samples.why_missing(sides.HOSTMM, sides.ON)),
        report.Claim("pgbench -S: page tables, hostmm / huge_pages=off",
                     ratio("page_tables_kb", sides.OFF),
                     "<=", 1 / 30, samples.why_missing(sides.HOSTMM, sides.OFF)),
    ]


def main():
    parser = report.arguments(__doc__, rounds=5, quick_rounds=1)
    sides.add_option(parser, (sides.OFF, sides.HOSTMM, sides.ON))
    parser.add_argument("--buffers", type=pg_sides.megabytes, help="shared_buffers (default 4GB)")
    parser.add_argument("--scale", type=int, help="of pgbench (default 200)")
    parser.add_argument("--clients", type=int, help="(default 100)")
    parser.add_argument("--seconds", type=int, help="of load per round (default 30)")
    options = report.parse(parser)
    buffers = options.buffers or (1024 if options.quick else 4096)
    scale = options.scale or (20 if options.quick else 200)
    clients = options.clients or (50 if options.quick else 100)
    seconds = options.seconds or (5 if options.quick else 30)
    load = pg_sides.Load(seconds, clients, pg_sides.load_words(clients, "prepared"))
    settings = {"shared_buffers_mb": buffers, "scale": scale, "clients": clients,
                "seconds": seconds, "mode": "prepared"}

    with sides.optional_hostmm(options) as hostmm, pg_cluster.Cluster(
        buffers, max_connections=clients + 10
    ) as cluster:
        report.progress(f"loading pgbench, scale {scale}")
        cluster.load_pgbench(scale)
        samples = sides.alternate(
            options, hostmm,
            measure=lambda side: pg_sides.measure_select(cluster, side, hostmm, load),
            require=lambda side: pg_sides.require(side, cluster))
        settings["hostmm"] = hostmm.messages if hostmm else []
    return report.finish("pg_select", options, samples, _claims(samples), pg_sides.LABELS, settings)


if __name__ == "__main__":
    report.run_main(main)
