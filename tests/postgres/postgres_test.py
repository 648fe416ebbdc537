#!/usr/bin/env python3
"""An unmodified PostgreSQL under `hostmm run`: it must not notice, whatever dies.

One cluster, made by an initdb that itself runs under hostmm, with data checksums. Every test starts
its own server on it and ends with the same questions: do the four sums of pgbench agree, does
pg_amcheck find nothing, are all checksums right, is nothing of hostmm left.
"""

import contextlib
import json
import os
import pathlib
import signal
import sys
import unittest

import failures
import pg_cluster
import process_end
import sides
import unittest_xml

# Above the size from which shared memory is managed, and small enough for a quick start.
_BUFFERS_MB = 128
_SCALE = 2
_CLIENTS = 8
_LOAD_SECONDS = 6
# For what is done to a load that has begun: until then all clients must be seen at once.
_LONG_LOAD_SECONDS = 60
_PATIENCE_SECONDS = 30

# pgbench's own invariant: each transaction adds the same amount to three tables and a history.
_SUMS = """
SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
       (SELECT sum(bbalance) FROM pgbench_branches),
       (SELECT coalesce(sum(delta), 0) FROM pgbench_history)
"""


class PostgresTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        stack = contextlib.ExitStack()
        cls.addClassCleanup(stack.close)
        try:
            pg_cluster.find_binaries()
        except failures.NotAvailable as error:
            raise unittest.SkipTest(str(error))
        cls.hostmm = stack.enter_context(sides.InstalledHostmm())
        cls.cluster = stack.enter_context(
            pg_cluster.Cluster(
                _BUFFERS_MB, max_connections=40, checksums=True,
                initdb_wrapper=cls.hostmm.run_command()))
        with cls.cluster.started(cls.hostmm.run_command(), durable=True) as server:
            server.command("pgbench", "-i", "-q", "-s", str(_SCALE))
            server.query("CREATE EXTENSION pg_prewarm; CREATE EXTENSION amcheck")

    def tearDown(self):
        left = process_end.wait_gone(
            process_end.identities(self.hostmm.processes()), _PATIENCE_SECONDS)
        self.assertEqual(left, [], "processes of hostmm after the server has ended")

    @contextlib.contextmanager
    def _server(self):
        """A server under hostmm, whose data is checked when the block has ended well."""
        with self.cluster.started(self.hostmm.run_command(), durable=True) as server:
            self.socket = _socket_of(server)
            yield server
            self._check_data(server)
        self.assertFalse(os.path.exists(os.path.dirname(self.socket)), "the pager's folder is left")
        self._check_checksums()

    def _check_data(self, server):
        sums = server.query(_SUMS).split("|")
        self.assertEqual(len(set(sums)), 1, sums)
        found = server.command(
            "pg_amcheck", "--heapallindexed", "--parent-check", "-d",
            database=pg_cluster.DATABASE)
        self.assertEqual(found, "")

    def _check_checksums(self):
        found = self.cluster.offline_command("pg_checksums", "--check")
        self.assertIn("Bad checksums:  0", found)

    def _stats(self):
        return json.loads(self.hostmm.stats(self.socket))

    def _start_load(self, server, seconds):
        load = server.start_client(
            "pgbench", "-n", "-T", str(seconds), "-c", str(_CLIENTS), "-j", "2")
        self.addCleanup(load.stdout.close)
        self.addCleanup(load.wait)
        self.addCleanup(load.kill)
        pg_cluster.wait_until(
            lambda: len(server.client_backends()) >= _CLIENTS, _PATIENCE_SECONDS,
            "all clients are connected")
        return load

    def test_initdb_ran_under_hostmm(self):
        self.assertIn("Data page checksums are enabled", self.cluster.initdb_messages)
        self.assertRegex(self.cluster.initdb_messages, r"hostmm: .*mode=")

    def test_shared_memory_is_managed(self):
        with self._server() as server:
            server.prewarm()
            stats = self._stats()
            pids = {guest["pid"] for guest in stats["guests"] if guest["regions"]}
            self.assertIn(server.postmaster_pid(), pids)
            buffers = max(stats["files"], key=lambda each: each["length_bytes"])
            self.assertGreaterEqual(buffers["length_bytes"], _BUFFERS_MB << 20)
            if buffers["frames"] == "huge":
                # The tables and indexes that were read into it are 30 MB and more.
                self.assertGreater(buffers["huge_blocks"], 10)

    def test_data_survives_restart(self):
        digest = "SELECT md5(string_agg(a::text, ',' ORDER BY aid)) FROM pgbench_accounts a"
        with self._server() as server:
            pg_cluster.run_pgbench(server, 2, ["-c", str(_CLIENTS)])
            before = server.query(digest)
        with self._server() as server:
            self.assertEqual(server.query(digest), before)

    def test_concurrent_updates(self):
        with self._server() as server:
            before = int(server.query("SELECT count(*) FROM pgbench_history"))
            pg_cluster.run_pgbench(server, _LOAD_SECONDS, ["-c", str(_CLIENTS), "-j", "2"])
            after = int(server.query("SELECT count(*) FROM pgbench_history"))
            self.assertGreater(after, before)
            self.assertNotIn("ERROR", server.log_text())

    def test_connection_per_transaction(self):
        with self._server() as server:
            pg_cluster.run_pgbench(server, 3, ["-C", "-c", "4"])
            self._wait_only_living_guests(server)

    def test_backend_killed(self):
        with self._server() as server:
            postmaster = server.postmaster_pid()
            load = self._start_load(server, _LONG_LOAD_SECONDS)
            victims = process_end.identities(
                each.pid for each in server.client_backends())
            os.kill(next(iter(victims)), signal.SIGKILL)
            # PostgreSQL ends every backend after such a death: its clients lose their connections.
            output, _ = load.communicate(timeout=_PATIENCE_SECONDS)
            self.assertNotEqual(load.returncode, 0, output)
            self.assertEqual(process_end.wait_gone(victims, _PATIENCE_SECONDS), [])
            server.wait_ready()
            self.assertEqual(server.postmaster_pid(), postmaster)
            self.assertIn("was terminated by signal 9", server.log_text())
            self.assertIn("all server processes terminated; reinitializing", server.log_text())
            self._wait_only_living_guests(server)
            pg_cluster.run_pgbench(server, 2, ["-c", str(_CLIENTS)])

    def _wait_only_living_guests(self, server):
        """Every guest that the pager knows is a living process of this server."""

        def clean():
            guests = {guest["pid"] for guest in self._stats()["guests"]}
            return guests and guests <= set(server.processes())

        pg_cluster.wait_until(clean, _PATIENCE_SECONDS, "the pager has no trace of the dead")

    def test_pager_killed(self):
        with self._server() as server:
            load = self._start_load(server, _LONG_LOAD_SECONDS)
            committed = "SELECT count(*) FROM pgbench_history"
            pagers = process_end.identities(server.pagers(self.hostmm.processes()))
            self.assertEqual(len(pagers), 1)
            process_end.kill_rest(pagers)
            self.assertEqual(process_end.alive(pagers), [])
            at_death = int(server.query(committed))  # A new connection: a guest without a pager.
            enough = at_death + 100 * _CLIENTS
            pg_cluster.wait_until(
                lambda: int(server.query(committed)) > enough, _PATIENCE_SECONDS,
                "the load goes on")
            load.send_signal(signal.SIGALRM)  # As its own clock does: the end of -T.
            output, _ = load.communicate(timeout=_PATIENCE_SECONDS)
            self.assertEqual(load.returncode, 0, output)
            self.assertIn("number of failed transactions: 0", output)
            pg_cluster.run_pgbench(server, 2, ["-C", "-c", "4"])
            for word in ("ERROR", "PANIC", "terminated by signal"):
                self.assertNotIn(word, server.log_text())


def _socket_of(server):
    """Returns the pager's socket, as the server's own environment names it."""
    environment = pathlib.Path(f"/proc/{server.postmaster_pid()}/environ").read_bytes()
    for variable in environment.split(b"\0"):
        if variable.startswith(b"HOSTMM_SOCKET="):
            return variable.partition(b"=")[2].decode()
    raise AssertionError("the server does not run under hostmm")


if __name__ == "__main__":
    sys.exit(unittest_xml.main())
