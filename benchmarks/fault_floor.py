#!/usr/bin/env python3
"""Row 7: a fault of a populated region through the pager, beside its floor.

    bare    a server that does nothing but poll, read, UFFDIO_CONTINUE of one page
    hostmm  the pager with 4 KiB frames and a page-table budget, which continues a page per fault
    off     the kernel alone: what the fault costs when nobody is asked

Every side runs in a process of its own, touches the same number of pages in the same order and is
timed by the same code, around each touch. Two placements, because they measure different things:
guest and server on one processor, where the path itself is what costs; and on two, where waking
a processor that has gone idle can cost more than all the rest.
"""

import os

import guest_program
import report
import sides

_BARE = "bare"
# With a budget the pager tracks the region: every page is mapped by a fault that it answers.
_HOSTMM_OPTIONS = ("--frames=base", "--pt-budget=1g")
# A touch that took no fault was not served by anybody: such a run measures something else.
_LEAST_FAULTS_PER_PAGE = 0.99
_TARGET = 1.3

_FIGURES = {"p50_ns": "p50 of a fault, ns", "p99_ns": "p99 of a fault, ns",
            "mean_ns": "mean, ns", "faults_per_page": "minor faults per page touched"}


def _placements():
    """Returns {name: (processor of the server, processor of the guest)}."""
    processors = sorted(os.sched_getaffinity(0))
    placements = {"one": (processors[0], processors[0])}
    if len(processors) > 1:
        placements["two"] = (processors[1], processors[0])
    return placements


def _run(side, hostmm, pages, server, guest_cpu):
    # The launcher, and with it the pager, stays on the server's processor; the guest moves itself.
    pinned = ["taskset", "--cpu-list", str(server)]
    wrapper = hostmm.run_command(*_HOSTMM_OPTIONS) if side == sides.HOSTMM else []
    name = "bare_fault_loop" if side == _BARE else "minor_fault_guest"
    words = [f"--pages={pages}", f"--cpu={guest_cpu}"]
    with guest_program.GuestProgram(
        [*pinned, *wrapper], sides.benchmark_program(name), *words
    ) as guest:
        times = guest.finish("timed")
        if wrapper:
            hostmm.note(guest.messages)
    return {
        "p50_ns": times["p50_ns"],
        "p99_ns": times["p99_ns"],
        "mean_ns": times["mean_ns"],
        "faults_per_page": times["faults"] / times["pages"],
    }


def _measure(side, hostmm, pages):
    metrics = {}
    for placement, (server, guest_cpu) in _placements().items():
        for name, value in _run(side, hostmm, pages, server, guest_cpu).items():
            metrics[f"{placement}_{name}"] = value
    return metrics


def _claim(samples, placement):
    per_page = samples.median(sides.HOSTMM, f"{placement}_faults_per_page")
    missing = samples.why_missing(sides.HOSTMM, _BARE)
    value = samples.ratio(f"{placement}_p50_ns", sides.HOSTMM, _BARE)
    if per_page is not None and per_page < _LEAST_FAULTS_PER_PAGE:
        value, missing = None, f"only {per_page:.3f} faults per page: not every touch was served"
    return report.Claim(
        f"fault through the pager, on {placement} processor(s): p50, hostmm / bare loop",
        value, "<=", _TARGET, missing)


def main():
    parser = report.arguments(__doc__, rounds=9, quick_rounds=3)
    sides.add_option(parser, (_BARE, sides.HOSTMM, sides.OFF))
    parser.add_argument("--pages", type=int, default=16384, help="per round (default 16384)")
    options = report.parse(parser)
    settings = {"pages": options.pages, "hostmm_options": _HOSTMM_OPTIONS}
    with sides.optional_hostmm(options) as hostmm:
        samples = sides.alternate(
            options, hostmm, measure=lambda side: _measure(side, hostmm, options.pages))
        settings["hostmm"] = hostmm.messages if hostmm else []
    labels = {
        f"{placement}_{name}": f"{text}, {placement} processor(s)"
        for placement in _placements()
        for name, text in _FIGURES.items()
    }
    claims = [_claim(samples, placement) for placement in _placements()]
    return report.finish("fault_floor", options, samples, claims, labels, settings)


if __name__ == "__main__":
    report.run_main(main)
