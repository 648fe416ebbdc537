"""One run of protect_guests: processes change the protection of what they share, on one side.

Used by shared_mprotect and mprotect_idle_guests. Figures are microseconds until the last process
has the new protection; each is the median over the calls of a run.
"""

import contextlib
import statistics

import guest_program
import kernel_counters
import sides

# Without hostmm: each process calls mprotect in the handler of a signal.
SIGNALS_HUGE = "signals-huge"
SIGNALS_HUGETLB = "signals-hugetlb"
HOSTMM_HUGE = "hostmm-huge"
HOSTMM_HUGETLB = "hostmm-hugetlb"

_FRAMES = {sides.OFF: "base", SIGNALS_HUGE: "huge", SIGNALS_HUGETLB: "hugetlb",
           HOSTMM_HUGE: "huge", HOSTMM_HUGETLB: "hugetlb"}


def require(side, size):
    """Raises NotAvailable for hugetlb sides that cannot have `size` bytes of such pages."""
    with _pages(side, size):
        pass


def _pages(side, size):
    if _FRAMES[side] != "hugetlb":
        return contextlib.nullcontext()
    # What hostmm rounds up to, and the idle processes' region.
    return kernel_counters.HugetlbPages(size + (64 << 20))


def _microseconds(times):
    """Returns {which: median} of a way of sending; "both" weighs the two directions alike."""
    read_only = statistics.median(times["read_only_ns"]) / 1000
    writable = statistics.median(times["writable_ns"]) / 1000
    return {"us": (read_only + writable) / 2, "read_only_us": read_only, "writable_us": writable}


def run(side, hostmm, size, guests, pairs, idle=0, idle_maps="other"):
    """Returns {"us", "read_only_us", "writable_us"} and what each way of sending took.

    Signals are sent in the ways that --send=both knows, and the faster one is the side's figure.
    """
    ours = side.startswith(sides.HOSTMM)
    # On 4 KiB pages the sending is a thousandth of the time.
    both = side in (SIGNALS_HUGE, SIGNALS_HUGETLB)
    words = [f"--how={'shared' if ours else 'signals'}", f"--frames={_FRAMES[side]}",
             f"--send={'both' if both else 'each'}", f"--bytes={size}", f"--guests={guests}",
             f"--pairs={pairs}", f"--idle={idle}", f"--idle_maps={idle_maps}"]
    program = sides.benchmark_program("protect_guests")
    with _pages(side, size):
        wrapper = sides.wrapper(side, hostmm)
        with guest_program.GuestProgram(wrapper, program, *words) as guest:
            guest.expect("ready")
            guest.go_on()
            times = guest.finish("timed")
            if ours:
                hostmm.note(guest.messages)
                sides.check_attached(guest.messages, guests + idle)
    ways = {"each": _microseconds(times["each"])}
    if both:
        ways["group"] = _microseconds(times["group"])
    figures = dict(min(ways.values(), key=lambda way: way["us"]))
    if both:
        figures.update({f"{name}_us": way["us"] for name, way in ways.items()})
    return figures
