"""The sides of a comparison, and how a command is started on each.

A side is a name: "off" (plain 4 KiB pages), "hostmm" (the same command under `hostmm run`), "on"
(hugetlb: what a careful user does today). Programs add their own where they need more.

hostmm is measured as installed: its two files are copied into a fresh directory that every user
can read. A build folder below a home directory of mode 0700 could not be read by a database that
runs as another user, and a rebuild in the middle of a run would change what is measured.
"""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

import failures
import interrupts
import kernel_counters
import process_end
import report

OFF = "off"
HOSTMM = "hostmm"
ON = "on"

_WORKSPACE = pathlib.Path(__file__).resolve().parent.parent
_FILES = ("hostmm", "libhostmm_preload.so")


def _built(folder):
    # The environment variable serves the tests, which find the files in their runfiles.
    return pathlib.Path(os.environ.get("HOSTMM_BIN", _WORKSPACE / "bazel-bin")) / folder


def benchmark_program(name):
    """Returns the path of a C++ program of this folder; raises NotAvailable when not built."""
    path = _built("benchmarks") / name
    if not path.exists():
        raise failures.NotAvailable(f"{path} is not built: run tools/bench")
    return str(path)


class InstalledHostmm:
    """A copy of hostmm that any user can run. Use as a context manager.

    Raises NotAvailable on entry when hostmm is not built.
    """

    def __init__(self):
        self._dir = None
        self.messages = []  # the different lines that it wrote, for the JSON

    def __enter__(self):
        built = _built("runtime")
        missing = [name for name in _FILES if not (built / name).exists()]
        if missing:
            raise failures.NotAvailable(
                f"{', '.join(missing)} not in {built}: run tools/build")
        try:
            with interrupts.held_back():
                self._dir = pathlib.Path(tempfile.mkdtemp(prefix="hostmm-install-"))
            self._dir.chmod(0o755)
            for name in _FILES:
                shutil.copy(built / name, self._dir / name)
                (self._dir / name).chmod(0o755)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *unused):
        if self._dir is None:
            return
        process_end.end_processes(self.processes())
        shutil.rmtree(self._dir, ignore_errors=True)

    @property
    def binary(self):
        return str(self._dir / "hostmm")

    @property
    def preload(self):
        return str(self._dir / "libhostmm_preload.so")

    def note(self, lines):
        """Keeps and shows what hostmm says about itself: mode, frames, why not better."""
        for line in lines:
            if line.startswith("hostmm") and line not in self.messages:
                self.messages.append(line)
                report.progress(line)

    def run_command(self, *options):
        """Returns the words to put in front of a command."""
        return [self.binary, "run", *options, "--"]

    def processes(self):
        """Returns the pids of launcher and pager (and of nothing else: the copy is ours alone)."""
        return kernel_counters.processes_running(self.binary)

    def stats(self, socket):
        """Returns what `hostmm stats --json` prints, as text."""
        return subprocess.run(
            [self.binary, "stats", "--json", "--pager", socket],
            check=True, capture_output=True, text=True, timeout=30).stdout


def check_attached(messages, expected):
    """Raises MeasurementFailed unless hostmm's last line says that so many processes took part.

    For figures that would be too good if some had gone on without hostmm.
    """
    counts = [int(found) for found in re.findall(r"up to (\d+) processes", "\n".join(messages))]
    if max(counts, default=0) < expected:
        raise failures.MeasurementFailed(f"{expected} processes were to be attached: {messages}")


def wrapper(side, hostmm):
    """Returns the words in front of a command for "hostmm" or "hostmm-FRAMES"; else none."""
    if not side.startswith(HOSTMM):
        return []
    _, _, frames = side.partition("-")
    return hostmm.run_command(*([f"--frames={frames}"] if frames else []))


def add_option(parser, default):
    """Adds --sides."""
    parser.add_argument(
        "--sides",
        default=",".join(default),
        help="which sides, separated by commas; hostmm-FRAMES asks for a rung, as hostmm-base"
        f" (default {','.join(default)})",
    )


@contextlib.contextmanager
def optional_hostmm(options):
    """An InstalledHostmm when a side asks for one and it is built; else None."""
    hostmm = None
    with contextlib.ExitStack() as stack:
        if HOSTMM in options.sides:
            with contextlib.suppress(failures.NotAvailable):
                hostmm = stack.enter_context(InstalledHostmm())
        yield hostmm


def alternate(options, hostmm, measure, require=None):
    """Measures the sides of --sides in alternated rounds; returns Samples.

    `measure(side)` returns {metric: value}. `require(side)`, if given, raises NotAvailable for a
    side that this machine cannot have; such a side is left out and reported with the reason.
    """
    samples = report.Samples()
    usable = []
    for side in options.sides.split(","):
        try:
            if side.startswith(HOSTMM) and hostmm is None:
                raise failures.NotAvailable("hostmm is not built: run tools/build")
            if require:
                require(side)
            usable.append(side)
        except failures.NotAvailable as error:
            samples.unavailable[side] = str(error)
            report.progress(f"side {side} is left out: {error}")
    for number in range(options.rounds):
        for side in rotated(usable, number):
            metrics = measure(side)
            samples.add(side, metrics)
            figures = ", ".join(f"{name} {report.number(v)}" for name, v in metrics.items())
            report.progress(f"round {number + 1}/{options.rounds} {side}: {figures}")
    return samples.in_order(usable)


def rotated(names, round_index):
    """Returns `names` in the order for a round: each side is first, middle and last equally often,
    so that a machine that slows down during the run does not favour one of them."""
    names = list(names)
    shift = round_index % len(names)
    return names[shift:] + names[:shift]
