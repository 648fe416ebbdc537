"""One measured round of pgbench against a server on one side, and its counters.

What is equal on all sides: data directory, configuration (but for huge_pages), prewarming, the
load. What is timed is pgbench alone; start, prewarming and stop are not. Page tables count from the
moment before the first client connects, so that the server's own start is not in the figure.
"""

import contextlib
import dataclasses
import re
import statistics

import kernel_counters
import pg_cluster
import sides

LABELS = {
    "tps": "transactions per second",
    "latency_ms": "latency average, ms",
    "page_tables_kb": "page tables grown by, kB",
    "vmpte_kb": "VmPTE per backend, kB",
    "minor_faults": "minor faults per backend",
    "shmem_pmd_mapped_kb": "ShmemPmdMapped, kB",
}


@dataclasses.dataclass(frozen=True)
class Load:
    """What pgbench does in one round."""

    seconds: int
    clients: int
    words: tuple  # more words for pgbench


def megabytes(text):
    """Parses 512MB, 4GB or a plain number of MB; raises ValueError, as argparse wants."""
    found = re.fullmatch(r"([0-9]+) *(MB|GB|)", text, re.IGNORECASE)
    if not found:
        raise ValueError(text)
    return int(found.group(1)) * (1024 if found.group(2).upper() == "GB" else 1)


@contextlib.contextmanager
def started_on(cluster, side, hostmm):
    """Runs the server as `side` wants it."""
    with contextlib.ExitStack() as stack:
        huge_pages = "off"
        if side == sides.ON:
            # Only for as long as this server runs: the other sides see the machine as it was.
            stack.enter_context(kernel_counters.HugetlbPages(_hugetlb_bytes(cluster)))
            huge_pages = "on"
        wrapper = sides.wrapper(side, hostmm)
        server = stack.enter_context(cluster.started(wrapper, huge_pages))
        if wrapper:
            hostmm.note(server.log_text().splitlines())
        yield server


class _Sampler:
    """Takes the counters once under load."""

    def __init__(self, server, load):
        self._server = server
        self._load = load
        self._before = kernel_counters.settled_meminfo_kb()
        self.metrics = None

    def sample(self):
        backends = self._server.client_backends()
        if len(backends) != self._load.clients:
            raise pg_cluster.ServerFailed(
                f"{len(backends)} backends under load, {self._load.clients} expected"
            )
        now = kernel_counters.meminfo_kb()
        self.metrics = {
            "page_tables_kb": now["PageTables"] - self._before["PageTables"],
            "vmpte_kb": statistics.median(each.vmpte_kb for each in backends),
            "minor_faults": statistics.median(each.minor_faults for each in backends),
            "shmem_pmd_mapped_kb": now["ShmemPmdMapped"],
        }


def measure_select(cluster, side, hostmm, load):
    """Runs one round of select-only load; returns {metric: value}."""
    with started_on(cluster, side, hostmm) as server:
        server.prewarm()
        sampler = _Sampler(server, load)
        words = ["-S", "-c", str(load.clients), *load.words]
        metrics = pg_cluster.run_pgbench(server, load.seconds, words, sampler.sample)
        if sampler.metrics is None:
            raise pg_cluster.ServerFailed("pgbench ended before the counters were taken")
        return {**metrics, **sampler.metrics}


def load_words(clients, mode):
    """Returns the words for pgbench that the programs share; two threads drive all clients."""
    return ("-M", mode, "-j", str(min(clients, 2)))


def require(side, cluster):
    """Raises NotAvailable unless this machine can have `side` for this cluster."""
    if side == sides.ON:
        with kernel_counters.HugetlbPages(_hugetlb_bytes(cluster)):
            pass


def _hugetlb_bytes(cluster):
    # A little more than the segment: the kernel reserves whole pages.
    return cluster.shared_memory_bytes() + 8 * kernel_counters.HUGE_PAGE_BYTES
