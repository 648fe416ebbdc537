"""Collects rounds, and turns them into a table, verdicts and JSON.

Every figure is a median over rounds; the smallest and largest stay in the JSON, so that a reader
sees how much the machine moved. A verdict is PASS or MISSED against a stated target, or n/a with
a reason when one of its sides could not run.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import sys
from typing import Optional

import failures
import interrupts
import kernel_counters

PASS = "PASS"
MISSED = "MISSED"
NOT_AVAILABLE = "n/a"

# Exit statuses of every program in this folder.
EXIT_MISSED = 1
EXIT_COULD_NOT_RUN = 2
EXIT_FAILED = 3


@dataclasses.dataclass(frozen=True)
class Claim:
    """One line of the table of targets."""
    name: str
    value: Optional[float]
    relation: str  # ">=" or "<="
    target: float
    why_not_available: str = ""

    def verdict(self):
        if self.value is None:
            return NOT_AVAILABLE
        held = self.value >= self.target if self.relation == ">=" else self.value <= self.target
        return PASS if held else MISSED

    def as_json(self):
        return {**dataclasses.asdict(self), "verdict": self.verdict()}

    def line(self):
        value = "-" if self.value is None else number(self.value)
        why = f" ({self.why_not_available})" if self.why_not_available else ""
        target = f"{self.relation} {number(self.target)}"
        return f"{self.verdict():7} {self.name}: {value}, target {target}{why}"


def number(value):
    """Formats a figure for people: as many digits as mean something."""
    if value is None:
        return "-"
    magnitude = abs(value)
    if magnitude >= 100:
        return f"{value:,.0f}"
    if magnitude >= 10:
        return f"{value:.1f}"
    return f"{value:.4g}" if magnitude < 1 else f"{value:.3f}"


def table(header, rows):
    """Returns rows of text in columns; the first column is left-aligned, the others right."""
    cells = [list(header)] + [list(row) for row in rows]
    widths = [max(len(str(row[i])) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        padded = [str(cell).rjust(width) for cell, width in zip(row, widths)]
        padded[0] = str(row[0]).ljust(widths[0])
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


class Samples:
    """{side: {metric: [one value per round]}}."""

    def __init__(self):
        self._values = {}
        self.unavailable = {}  # side -> why

    def add(self, side, metrics):
        for metric, value in metrics.items():
            self._values.setdefault(side, {}).setdefault(metric, []).append(value)

    def in_order(self, sides):
        """Puts the sides in the order in which tables show them; returns self."""
        self._values = {side: self._values[side] for side in sides if side in self._values}
        return self

    def sides(self):
        return list(self._values)

    def metrics(self):
        names = []
        for metrics in self._values.values():
            names += [name for name in metrics if name not in names]
        return names

    def rounds(self, side, metric):
        return self._values.get(side, {}).get(metric, [])

    def median(self, side, metric):
        """Returns the median over rounds, or None when the side has no such figure."""
        values = self.rounds(side, metric)
        return statistics.median(values) if values else None

    def ratio(self, metric, side, base):
        """Returns median(side) / median(base), or None if either is missing or the base is zero."""
        over, under = self.median(side, metric), self.median(base, metric)
        return over / under if over is not None and under else None

    def why_missing(self, *sides):
        """Says why a figure that needs all of `sides` cannot be had."""
        return "; ".join(
            f"{side}: {self.unavailable.get(side, 'not asked for')}"
            for side in sides if side not in self._values)

    def text(self, labels=None):
        sides = self.sides()
        rows = [
            [(labels or {}).get(metric, metric)] + [number(self.median(s, metric)) for s in sides]
            for metric in self.metrics()
        ]
        return table(["median"] + sides, rows)

    def as_json(self):
        def summary(values):
            return {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
                "rounds": values,
            }

        return {
            side: {metric: summary(values) for metric, values in metrics.items()}
            for side, metrics in self._values.items()
        }


def machine():
    """Describes the machine that figures belong to."""
    memory = kernel_counters.meminfo_kb()["MemTotal"]
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_mib": memory // 1024,
    }


def progress(text):
    """One line for the person who waits; on stderr, so that stdout holds results only."""
    print(text, file=sys.stderr, flush=True)


def arguments(description, rounds, quick_rounds):
    """Returns the parser with the options that all programs share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help=f"alternated rounds (default {rounds})")
    parser.add_argument("--quick", action="store_true",
                        help=f"only {quick_rounds} rounds and shorter ones: shows that it works,"
                        " settles nothing")
    parser.add_argument("--json", metavar="FILE", help="also write the result there")
    parser.set_defaults(full_rounds=rounds, quick_rounds=quick_rounds)
    return parser


def parse(parser):
    """Parses the command line and settles the number of rounds."""
    options = parser.parse_args()
    if options.rounds is None:
        options.rounds = options.quick_rounds if options.quick else options.full_rounds
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    # Tells a reader of the JSON whether the machine was quiet when the run began.
    options.load_before = os.getloadavg()[0]
    return options


def finish(name, options, samples, claims, labels=None, settings=None):
    """Prints table, verdicts and the JSON line; returns the exit status."""
    what = f"{name}: {options.rounds} alternated rounds"
    if options.quick:
        what += " (--quick: fewer and shorter than the targets ask for)"
    print(f"\n{what}\n{samples.text(labels)}")
    for side, why in samples.unavailable.items():
        print(f"not available: {side}: {why}")
    for claim in claims:
        print(claim.line())
    result = {
        "benchmark": name,
        "rounds": options.rounds,
        "quick": options.quick,
        "machine": {**machine(), "load_before": options.load_before},
        "settings": settings or {},
        "sides": samples.as_json(),
        "unavailable": samples.unavailable,
        "claims": [claim.as_json() for claim in claims],
    }
    text = json.dumps(result, sort_keys=True)
    print(text)
    if options.json:
        pathlib.Path(options.json).write_text(text + "\n")
    if any(claim.verdict() == MISSED for claim in claims):
        return EXIT_MISSED
    if any(claim.verdict() == NOT_AVAILABLE for claim in claims):
        return EXIT_COULD_NOT_RUN
    return 0


def run_main(main):
    """Runs `main` with signals as exceptions, and turns expected failures into one line each."""
    interrupts.raise_on_signals()
    try:
        sys.exit(main())
    except interrupts.Interrupted as interrupt:
        print(f"stopped by {interrupt}; everything that was started is gone", file=sys.stderr)
        sys.exit(interrupt.exit_status)
    except failures.NotAvailable as error:
        print(f"not available: {error}", file=sys.stderr)
        sys.exit(EXIT_COULD_NOT_RUN)
    except failures.MeasurementFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
