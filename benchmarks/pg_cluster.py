"""A throw-away PostgreSQL cluster: made once, loaded once, started many times in different ways.

Owner: the `with` block. Whatever way it ends, no server process and no file is left.
Users: PostgreSQL refuses to run as root; as root the server runs as user "postgres" (or "nobody"
where that user does not exist), otherwise as the caller.
Errors: NotAvailable when PostgreSQL is not installed; ServerFailed, with the end of the server's
log, when a server does not do what it must within its deadline.
"""

import contextlib
import os
import pathlib
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time

import failures
import interrupts
import kernel_counters
import process_end

# Debian's place; PATH serves other systems.
_DEBIAN_BINARIES = pathlib.Path("/usr/lib/postgresql/15/bin")
_USER = "bench"
DATABASE = "postgres"

# Generous, for a loaded machine: they only bound how long a hang lasts.
_START_SECONDS = 120
_STOP_SECONDS = 120
_KILL_SECONDS = 20
_POLL_SECONDS = 0.05


class ServerFailed(failures.MeasurementFailed):
    """The server, or a client of it, did not do what it must."""


def find_binaries():
    """Returns the folder with postgres, initdb and pgbench."""
    if (_DEBIAN_BINARIES / "postgres").exists():
        return _DEBIAN_BINARIES
    found = shutil.which("postgres")
    if found:
        return pathlib.Path(found).resolve().parent
    raise failures.NotAvailable("PostgreSQL 15 is not installed: run tools/setup")


def _server_account():
    """Returns the account that the server runs as, or None for the caller's own."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise failures.NotAvailable("neither user postgres nor nobody exists to run a server")


def _environment():
    """A fixed environment: results and messages must not depend on the caller's locale."""
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC"}


def wait_until(condition, seconds, what):
    """Polls `condition` until it is true; raises ServerFailed when `seconds` have passed."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ServerFailed(f"{what}: not within {seconds} s")
        time.sleep(_POLL_SECONDS)


class Cluster:
    """A data directory and the ways to start a server on it. One server at a time."""

    def __init__(self, shared_buffers_mb, max_connections, checksums=False, initdb_wrapper=()):
        self.binaries = find_binaries()
        self.shared_buffers_mb = shared_buffers_mb
        self.max_connections = max_connections
        self._checksums = checksums
        self._initdb_wrapper = list(initdb_wrapper)
        self._account = _server_account()
        self._base = None
        self._server = None

    def __enter__(self):
        try:
            with interrupts.held_back():
                self._base = pathlib.Path(tempfile.mkdtemp(prefix="hostmm-pg-"))
            self._initialise()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *unused):
        self._stop(signal.SIGQUIT)
        if self._base is not None:
            shutil.rmtree(self._base, ignore_errors=True)

    @property
    def data(self):
        return self._base / "data"

    @property
    def socket_dir(self):
        return self._base

    @property
    def log(self):
        return self._base / "server.log"

    def log_tail(self):
        """Returns the last lines of the server's log, for messages."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
        except OSError:
            return "(no log)"

    def _initialise(self):
        if self._account:
            os.chown(self._base, self._account.pw_uid, self._account.pw_gid)
        # The server's own files stay closed (initdb makes data 0700); the socket must be reachable.
        self._base.chmod(0o755)
        words = ["--no-sync", "--auth=trust", f"--username={_USER}", "--locale=C", "-E", "UTF8"]
        if self._checksums:
            words.append("--data-checksums")
        done = subprocess.run(
            [*self._initdb_wrapper, *self.as_server_user(), str(self.binaries / "initdb"),
             *words, "-D", str(self.data)],
            env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            cwd="/", start_new_session=True)
        self.initdb_messages = done.stdout + done.stderr
        if done.returncode != 0:
            raise ServerFailed(f"initdb failed:\n{self.initdb_messages}")

    def as_server_user(self):
        """Returns the words that make a command run as the server's user."""
        if not self._account:
            return []
        return ["setpriv", f"--reuid={self._account.pw_uid}", f"--regid={self._account.pw_gid}",
                "--clear-groups"]

    @contextlib.contextmanager
    def started(self, wrapper=(), huge_pages="off", durable=False, settings=()):
        """Runs a server for the length of the block; a failure in the block stops it at once."""
        if self._server is not None:
            raise ServerFailed("a server runs on this cluster already")
        words = self._settings(huge_pages, durable)
        for setting in settings:
            words += ["-c", setting]
        try:
            with interrupts.held_back():
                self._server = Server(self, wrapper, words)
            self._server.wait_ready()
            yield self._server
            self._stop(signal.SIGINT)
        finally:
            self._stop(signal.SIGQUIT)

    def _stop(self, how):
        server, self._server = self._server, None
        if server is not None:
            server.stop(how)

    def shared_memory_bytes(self):
        """Returns how much shared memory the server will map, in whole 2 MiB pages."""
        pages = self.offline_command(
            "postgres", "-C", "shared_memory_size_in_huge_pages",
            *self._settings("off", durable=False))
        return int(pages) * kernel_counters.HUGE_PAGE_BYTES

    def _settings(self, huge_pages, durable):
        """Everything that is equal on all sides, and huge_pages, which is not."""
        values = {
            "shared_buffers": f"{self.shared_buffers_mb}MB",
            "huge_pages": huge_pages,
            "max_connections": self.max_connections,
            "listen_addresses": "",
            "unix_socket_directories": self.socket_dir,
            "fsync": "on" if durable else "off",
            "synchronous_commit": "on" if durable else "off",
            # Background work at moments that nobody chose would hit one side and not another.
            "autovacuum": "off",
            "checkpoint_timeout": "1h",
            "max_wal_size": "16GB",
            # Lets COPY into a new table skip the log: loading takes half the time.
            "wal_level": "minimal",
            "max_wal_senders": 0,
        }
        words = []
        for name, value in values.items():
            words += ["-c", f"{name}={value}"]
        return words

    def offline_command(self, program, *words):
        """Runs a program on the data directory while no server runs; returns its output."""
        done = subprocess.run(
            [*self.as_server_user(), str(self.binaries / program), *words, "-D", str(self.data)],
            env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/")
        if done.returncode != 0:
            raise ServerFailed(f"{program} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def load_pgbench(self, scale):
        """Fills the database; the server is stopped again afterwards."""
        with self.started() as server:
            server.command("pgbench", "-i", "-q", "-s", str(scale), "-I", "dtgvp")
            server.query("CREATE EXTENSION pg_prewarm")
            server.query("CHECKPOINT")


class Server:
    """A running server. Made by Cluster.started() only."""

    def __init__(self, cluster, wrapper, words):
        self._cluster = cluster
        self._log = open(cluster.log, "ab")
        # Where this server's part of the log begins: the log goes on over restarts.
        self._log_start = os.fstat(self._log.fileno()).st_size
        self._process = subprocess.Popen(
            [*wrapper, *cluster.as_server_user(), str(cluster.binaries / "postgres"),
             "-D", str(cluster.data), *words],
            env=_environment(), stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            cwd="/", start_new_session=True)

    def log_text(self):
        """Returns what this server, and what runs it, has written so far."""
        with open(self._cluster.log, "rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def wait_ready(self):
        """Waits until connections are accepted; raises ServerFailed when the server ended."""

        def ready():
            if self._process.poll() is not None:
                raise ServerFailed(
                    f"the server ended with status {self._process.returncode}:\n"
                    f"{self._cluster.log_tail()}")
            return self._accepts_connections()

        try:
            wait_until(ready, _START_SECONDS, "the server accepts connections")
        except ServerFailed as error:
            raise ServerFailed(f"{error}\n{self._cluster.log_tail()}") from None

    def _accepts_connections(self):
        done = subprocess.run(
            [str(self._cluster.binaries / "pg_isready"), "-q", "-h", str(self._cluster.socket_dir)],
            env=_environment(), stdin=subprocess.DEVNULL, check=False)
        return done.returncode == 0

    def postmaster_pid(self):
        """Returns the pid of the server's first process, or None before it has written it."""
        try:
            return int((self._cluster.data / "postmaster.pid").read_text().split()[0])
        except (OSError, IndexError, ValueError):
            return None

    def processes(self):
        """Returns the pids of the whole tree, launcher included."""
        return [self._process.pid, *kernel_counters.descendants(self._process.pid)]

    def pagers(self, hostmm_processes):
        """Returns those of the pids of hostmm that are not this server's launcher."""
        return [pid for pid in hostmm_processes if pid != self._process.pid]

    def client_backends(self):
        """Returns ProcessCounters of every backend that serves a client of this server."""
        postmaster = self.postmaster_pid()
        counters = (kernel_counters.process_counters(pid)
                    for pid, parent in kernel_counters.parents().items() if parent == postmaster)
        return [each for each in counters if each and "[local]" in each.command]

    def stop(self, how):
        """Ends the server: SIGINT disconnects clients and shuts down, SIGQUIT ends at once."""
        with interrupts.held_back():
            tree = process_end.identities(self.processes())
            postmaster = self.postmaster_pid()
            asked = postmaster if postmaster in tree else self._process.pid
            with contextlib.suppress(ProcessLookupError):
                os.kill(asked, how)
            try:
                self._process.wait(_STOP_SECONDS if how == signal.SIGINT else _KILL_SECONDS)
            except subprocess.TimeoutExpired:
                process_end.kill_rest(tree)
                self._process.wait(_KILL_SECONDS)
            process_end.kill_rest(tree)
            self._log.close()

    def command_words(self, program, *words):
        """Returns the command line of a client program for this server."""
        return [str(self._cluster.binaries / program), "-h", str(self._cluster.socket_dir),
                "-U", _USER, *words]

    def command(self, program, *words, database=DATABASE):
        """Runs a client program to its end and returns its output."""
        done = subprocess.run(
            [*self.command_words(program, *words), database], env=_environment(), cwd="/",
            stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise ServerFailed(
                f"{program} {' '.join(words)} failed with status {done.returncode}:\n"
                f"{done.stdout}{done.stderr}\nserver log:\n{self._cluster.log_tail()}")
        return done.stdout + done.stderr

    def query(self, sql):
        """Runs one statement; returns its unaligned output without the newline at the end."""
        done = self.command("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql)
        return done.rstrip("\n")

    def prewarm(self):
        """Reads every table and index of pgbench into shared buffers; returns the MiB read."""
        blocks = self.query(
            "SELECT sum(pg_prewarm(oid::regclass)) FROM pg_class"
            " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'i')")
        return int(blocks) * 8 // 1024

    def start_client(self, program, *words):
        """Starts a client program that runs beside the caller."""
        return subprocess.Popen(
            [*self.command_words(program, *words), DATABASE], env=_environment(), cwd="/",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True)


_TPS = re.compile(r"^tps = ([0-9.]+) ", re.MULTILINE)
_LATENCY = re.compile(r"^latency average = ([0-9.]+) ms", re.MULTILINE)
_FAILED = re.compile(r"^number of failed transactions: ([0-9]+) ", re.MULTILINE)


def run_pgbench(server, seconds, words, sample=None):
    """Runs pgbench for `seconds`; returns {"tps", "latency_ms"}.

    `sample` is called once when seven eighths of the time have passed: all clients are connected
    and have been at work for most of the run.
    """
    client = server.start_client("pgbench", "-n", "-T", str(seconds), *words)
    try:
        if sample:
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.wait(seconds * 7 / 8)
            if client.poll() is None:
                sample()
        output, _ = client.communicate(timeout=seconds + _STOP_SECONDS)
    except BaseException:
        client.kill()
        client.wait()
        raise
    found = _TPS.search(output)
    failed = _FAILED.search(output)
    if client.returncode != 0 or not found or (failed and int(failed.group(1))):
        raise ServerFailed(f"pgbench failed with status {client.returncode}:\n{output[-2000:]}")
    return {"tps": float(found.group(1)), "latency_ms": float(_LATENCY.search(output).group(1))}
