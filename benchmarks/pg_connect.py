#!/usr/bin/env python3
"""Row 4: a new connection for every transaction: what attaching a guest costs, and what it saves.

`pgbench -C -S` with a few clients: each transaction forks a backend, which under hostmm becomes a
guest of the pager, touches some shared pages and ends.
"""

import pg_cluster
import pg_sides
import report
import sides


def _measure(cluster, side, hostmm, load):
    with pg_sides.started_on(cluster, side, hostmm) as server:
        server.prewarm()
        words = ["-C", "-S", "-c", str(load.clients), *load.words]
        return pg_cluster.run_pgbench(server, load.seconds, words)


def main():
    parser = report.arguments(__doc__, rounds=5, quick_rounds=1)
    sides.add_option(parser, (sides.OFF, sides.HOSTMM, sides.ON))
    parser.add_argument("--buffers", type=pg_sides.megabytes, default=1024,
                        help="shared_buffers (default 1GB)")
    parser.add_argument("--scale", type=int, help="of pgbench (default 50)")
    parser.add_argument("--clients", type=int, default=4, help="(default 4)")
    parser.add_argument("--seconds", type=int, help="of load per round (default 15)")
    options = report.parse(parser)
    scale = options.scale or (5 if options.quick else 50)
    seconds = options.seconds or (3 if options.quick else 15)
    load = pg_sides.Load(seconds, options.clients, pg_sides.load_words(options.clients, "simple"))
    settings = {"shared_buffers_mb": options.buffers, "scale": scale, "clients": options.clients,
                "seconds": seconds}

    with sides.optional_hostmm(options) as hostmm, pg_cluster.Cluster(
        options.buffers, max_connections=options.clients + 20
    ) as cluster:
        report.progress(f"loading pgbench, scale {scale}")
        cluster.load_pgbench(scale)
        samples = sides.alternate(
            options, hostmm,
            measure=lambda side: _measure(cluster, side, hostmm, load),
            require=lambda side: pg_sides.require(side, cluster))
        settings["hostmm"] = hostmm.messages if hostmm else []
    claim = report.Claim(
        "pgbench -C -S: connections per second, hostmm / plain",
        samples.ratio("tps", sides.HOSTMM, sides.OFF),
        ">=", 0.95, samples.why_missing(sides.HOSTMM, sides.OFF))
    return report.finish("pg_connect", options, samples, [claim], pg_sides.LABELS, settings)


if __name__ == "__main__":
    report.run_main(main)
