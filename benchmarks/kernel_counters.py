"""What the kernel says about memory: /proc/meminfo, /proc/PID, and a guard for hugetlb settings.

Units: kB where a name ends in _kb, as the kernel prints them; pages of 2 MiB for hugetlb.
Nothing here asks hostmm for its own view: a saving counts only when the kernel reports it.
Errors: a process that is gone is left out (sampling races with exits); a setting that cannot be
changed raises NotAvailable, which callers report as "not available: why".
"""

import contextlib
import dataclasses
import mmap
import os
import pathlib
import time

import failures
import interrupts

HUGE_PAGE_BYTES = 2 << 20
# <linux/mman.h>; Python's mmap module does not have it before 3.13.
_MAP_HUGETLB = 0x40000

# PageTables counts as settled when it has fallen by no more than this over so many readings; on a
# machine where processes end all the time it never does, and the last reading must serve.
_SETTLED_FALL_KB = 32
_SETTLE_READINGS = 4
_SETTLE_STEP_SECONDS = 0.1
_SETTLE_SECONDS = 10


def refresh_vm_stats():
    """Makes /proc/meminfo exact.

    The kernel keeps per-CPU differences of up to some hundred pages and folds them in about once a
    second. Reading stat_refresh folds them now, but only root may read it; the file has no other
    effect. Without root the only remedy is to let one fold interval pass.
    """
    try:
        pathlib.Path("/proc/sys/vm/stat_refresh").read_bytes()
    except OSError:
        interval = int(pathlib.Path("/proc/sys/vm/stat_interval").read_text())
        time.sleep(interval + 0.2)


def meminfo_kb():
    """Returns /proc/meminfo as {name: kB}, exact at the time of the call."""
    refresh_vm_stats()
    values = {}
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        name, rest = line.split(":", 1)
        values[name] = int(rest.split()[0])
    return values


def settled_meminfo_kb():
    """As meminfo_kb(), once the page tables of processes that have just ended are gone.

    Kernels from 6.14 on free page tables after an RCU grace period, and only then take them off
    PageTables: a baseline taken at once after a large process ended is too high by its tables, and
    the growth measured against it too small.
    """
    deadline = time.monotonic() + _SETTLE_SECONDS
    readings = [meminfo_kb()]
    while time.monotonic() < deadline:
        time.sleep(_SETTLE_STEP_SECONDS)
        readings.append(meminfo_kb())
        window = [reading["PageTables"] for reading in readings[-_SETTLE_READINGS:]]
        if len(window) == _SETTLE_READINGS and window[0] - window[-1] <= _SETTLED_FALL_KB:
            break
    return readings[-1]


@dataclasses.dataclass(frozen=True)
class ProcessCounters:
    """One process at one moment."""
    pid: int
    command: str
    vmpte_kb: int
    rss_anon_kb: int
    minor_faults: int


def _status_kb(status, key):
    for line in status.splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    return 0


def process_counters(pid):
    """Returns the counters of `pid`, or None if it is gone (or a zombie, which maps nothing)."""
    proc = pathlib.Path("/proc") / str(pid)
    try:
        words = (proc / "cmdline").read_bytes().split(b"\0")
        status = (proc / "status").read_text()
        # The command name in parentheses may hold spaces and parentheses: cut after the last one.
        stat = (proc / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if stat[0] in "ZX":
        return None
    return ProcessCounters(
        pid=pid,
        command=b" ".join(words).decode(errors="replace").strip(),
        vmpte_kb=_status_kb(status, "VmPTE"),
        rss_anon_kb=_status_kb(status, "RssAnon"),
        minor_faults=int(stat[7]))


def parents():
    """Returns {pid: parent pid} of every process."""
    result = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = pathlib.Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        result[int(entry)] = int(stat[1])
    return result


def descendants(root):
    """Returns the pids of all processes below `root`, without `root`."""
    children = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def processes_running(executable):
    """Returns the pids of all processes whose executable is the file `executable`."""
    wanted = os.path.realpath(executable)
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry}/exe") == wanted:
                    found.append(int(entry))
    return found


class HugetlbPages:
    """Lets the kernel hand out hugetlb pages on demand, and puts the setting back.

    Raises vm.nr_overcommit_hugepages only: pages are then taken while a mapping lives and returned
    after it, so that the other sides of a comparison do not run on a machine with less memory. What
    was added is taken off again when the `with` block ends, on whatever path it ends; as a
    difference, because the old value may by then be that of somebody else's passing change.
    """

    _SETTING = pathlib.Path("/proc/sys/vm/nr_overcommit_hugepages")

    def __init__(self, needed_bytes):
        self._pages = -(-needed_bytes // HUGE_PAGE_BYTES)
        self._raised = False

    def __enter__(self):
        try:
            with interrupts.held_back():
                self._raise()
            probe_hugetlb(self._pages * HUGE_PAGE_BYTES)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _raise(self):
        try:
            self._SETTING.write_text(str(int(self._SETTING.read_text()) + self._pages))
        except OSError as error:
            raise failures.NotAvailable(
                f"{self._SETTING} cannot be raised ({error.strerror}): needs root"
            ) from error
        self._raised = True

    def __exit__(self, *unused):
        if self._raised:
            self._raised = False
            left = int(self._SETTING.read_text()) - self._pages
            self._SETTING.write_text(str(max(0, left)))


def probe_hugetlb(length):
    """Maps `length` bytes of hugetlb once, which reserves every page, or raises NotAvailable."""
    try:
        mmap.mmap(-1, length, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_HUGETLB).close()
    except OSError as error:
        raise failures.NotAvailable(
            f"{length >> 20} MiB of hugetlb pages cannot be had ({error.strerror}):"
            " too little or too fragmented free memory") from error
