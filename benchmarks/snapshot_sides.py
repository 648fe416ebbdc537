"""What the rows about snapshots share: which frames a side has, and a run of a timed program."""

import contextlib
import os

import failures
import guest_program
import kernel_counters
import sides

FORK = "fork"
_SLACK_BYTES = 64 << 20


def frames_of(side):
    """Returns the frames of "hostmm-FRAMES" or "bare-FRAMES"; 4 KiB pages for others."""
    _, _, frames = side.partition("-")
    return frames or "base"


def pages(side, size):
    """Guard of the setting that a hugetlb side needs; nothing for others."""
    if frames_of(side) != "hugetlb":
        return contextlib.nullcontext()
    return kernel_counters.HugetlbPages(size + _SLACK_BYTES)


def require(side, size):
    """Raises NotAvailable for a side that this user, or this machine, cannot have."""
    if side.startswith("bare") and os.geteuid() != 0:
        raise failures.NotAvailable("a tmpfs and a userfaultfd without hostmm need root")
    with pages(side, size):
        pass


def timed(side, hostmm, size, program, *words, step="timed"):
    """Runs a program of this folder to its last step on a side; returns what it reports."""
    ours = side.startswith(sides.HOSTMM)
    with pages(side, size):
        with guest_program.GuestProgram(
            sides.wrapper(side, hostmm), sides.benchmark_program(program),
            f"--frames={frames_of(side)}", f"--bytes={size}", *words
        ) as guest:
            result = guest.finish(step)
            if ours:
                hostmm.note(guest.messages)
    return result
