"""Ends processes that this program started, by pid, and never another one that reuses the pid.

A process is known by pid and start time together.
"""

import contextlib
import os
import pathlib
import signal
import time

_POLL_SECONDS = 0.05
# Generous, for a loaded machine: it only bounds how long a hang lasts.
_END_SECONDS = 20


def start_time(pid):
    """Returns what tells a process from a later one with the same pid; None if it is gone."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if stat[0] in "ZX" else stat[19]


def identities(pids):
    """Returns {pid: start time} of those that are there."""
    found = {pid: start_time(pid) for pid in pids}
    return {pid: start for pid, start in found.items() if start}


def alive(processes):
    """Returns the pids of {pid: start time} that are still the same process."""
    return [pid for pid, start in processes.items() if start_time(pid) == start]


def wait_gone(processes, seconds):
    """Waits until all of {pid: start time} are gone; returns the pids that are not."""
    deadline = time.monotonic() + seconds
    while alive(processes) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return alive(processes)


def kill_rest(processes):
    """Kills what is still there of {pid: start time} and waits until it is gone."""
    for pid in alive(processes):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_gone(processes, _END_SECONDS)


def end_processes(pids):
    """Lets `pids` end by themselves, asks those that do not, and kills those that do not listen.

    Returns the pids that had to be asked or killed.
    """
    processes = identities(pids)
    late = wait_gone(processes, _END_SECONDS / 4)
    for pid in late:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    wait_gone(processes, _END_SECONDS / 4)
    kill_rest(processes)
    return late
