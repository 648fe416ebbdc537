#!/usr/bin/env python3
"""Row 17: fork of 1 .. 64 table pages: where sharing them begins to pay (LWN, January 2003).

    off        plain private memory of 4 KiB pages: fork copies the tables
    hostmm     MAP_PRIVATE_COW under hostmm, which manages memory from 8 MiB, four tables, on
    hostmm-all the same without that threshold

Timed: fork, the parent's first write into every table, the child's exit; the sum is what a program
pays. Beside them the pure half: what the software tables alone take, by vmm/'s own benchmark, with
tables shared from four on and from one on.
"""

import csv
import io
import os
import pathlib
import subprocess

import failures
import guest_program
import report
import sides
import svg_plot

_ALL = "hostmm-all"
_HOSTMM_SIDES = (sides.HOSTMM, _ALL)
# 2 MiB: one table.
_NO_THRESHOLD = ("env", f"HOSTMM_COW_MIN_BYTES={2 << 20}")
_THRESHOLD_TABLES = 4
_REPEAT = 30
_REPEAT_QUICK = 5
_PURE_REPEATS = 201
_PURE_REPEATS_QUICK = 11
_PURE_SECONDS = 300
_PARTS = {"total": "fork, first writes, exit", "fork": "  fork alone"}


def _check_managed(side, size):
    least = {sides.OFF: None, sides.HOSTMM: _THRESHOLD_TABLES, _ALL: 1}[side]
    wanted = least is not None and size["tables"] >= least
    if bool(size["managed"]) != wanted:
        raise failures.MeasurementFailed(
            f"{side}: memory of {size['tables']} tables is {'' if size['managed'] else 'not '}managed")


def _measure(side, hostmm, options):
    wrapper = hostmm.run_command() if side in _HOSTMM_SIDES else []
    if side == _ALL:
        wrapper = [*wrapper, *_NO_THRESHOLD]
    memory = "cow" if side in _HOSTMM_SIDES else "plain"
    repeat = _REPEAT_QUICK if options.quick else _REPEAT
    with guest_program.GuestProgram(
        wrapper, sides.benchmark_program("fork_tables"), f"--memory={memory}",
        f"--repeat={repeat}", f"--most={options.most}"
    ) as guest:
        sizes = guest.finish("timed")["sizes"]
        if wrapper:
            hostmm.note(guest.messages)
    metrics = {}
    for size in sizes:
        _check_managed(side, size)
        for part in ("total", "fork", "write", "exit"):
            metrics[f"t{size['tables']}_{part}_us"] = size[f"{part}_ns"] / 1000
    return metrics


def _sizes(samples):
    """Returns the numbers of tables that were measured."""
    return sorted(int(name[1:-len("_total_us")]) for name in samples.metrics()
                  if name.endswith("_total_us"))


def _table(samples, part):
    def row(tables):
        figures = [samples.median(side, f"t{tables}_{part}_us") for side in samples.sides()]
        return [tables, *map(report.number, figures)]

    return report.table([f"tables: {_PARTS[part]}, us"] + samples.sides(), map(row, _sizes(samples)))


def pays_from(samples, side):
    """Returns the number of tables from which on `side` is never slower than plain memory, or None."""
    found = None
    for tables in reversed(_sizes(samples)):
        ratio = samples.ratio(f"t{tables}_total_us", side, sides.OFF)
        if ratio is None or ratio > 1:
            break
        found = tables
    return found


def read_pure(text):
    """Returns {what: [(tables, microseconds), ...]} of the CSV that the pure half prints.

    Raises MeasurementFailed for another form.
    """
    found = {}
    try:
        for row in csv.DictReader(io.StringIO(text)):
            name = f"tables alone, from {row['min_shared_tables']}"
            found.setdefault(name, []).append(
                (int(row["table_pages"]), float(row["total_ns"]) / 1000))
    except (KeyError, TypeError, ValueError) as error:
        raise failures.MeasurementFailed(f"not the CSV of the pure half: {error!r}") from error
    return found


def _run_pure(options):
    try:
        program = sides.benchmark_program("cow_benchmark")
    except failures.NotAvailable as error:
        report.progress(f"the pure half is left out: {error}")
        return {}
    repeats = _PURE_REPEATS_QUICK if options.quick else _PURE_REPEATS
    done = subprocess.run([program, "--csv", str(repeats)], capture_output=True, text=True,
                          timeout=_PURE_SECONDS)
    if done.returncode != 0:
        raise failures.MeasurementFailed(f"{program} ended with {done.returncode}: {done.stderr}")
    return read_pure(done.stdout)


def _pure_table(pure, sizes):
    rows = [[tables, *(report.number(dict(points).get(tables)) for points in pure.values())]
            for tables in sizes]
    return report.table(["tables: snapshot, first writes, drop, us", *pure], rows)


def _plot(samples, pure, path):
    series = {side: [(tables, samples.median(side, f"t{tables}_total_us"))
                     for tables in _sizes(samples)] for side in samples.sides()}
    text = svg_plot.line_chart(
        "fork, first write into every table, exit", "page tables (2 MiB each)", "microseconds",
        {**series, **pure})
    pathlib.Path(path).write_text(text)
    print(f"plot written to {os.path.abspath(path)}")


def _claim(samples, what, over, under, tables):
    return report.Claim(
        f"fork of {tables} table pages, {what}: {over} / {under}",
        samples.ratio(f"t{tables}_total_us", over, under), ">=", 1, samples.why_missing(over, under))


def main():
    parser = report.arguments(__doc__, rounds=5, quick_rounds=1)
    sides.add_option(parser, (sides.OFF, *_HOSTMM_SIDES))
    parser.add_argument("--most", type=int, default=64, help="tables of the largest (default 64)")
    parser.add_argument("--plot", metavar="FILE", help="also draw the curve, as SVG")
    options = report.parse(parser)
    with sides.optional_hostmm(options) as hostmm:
        samples = sides.alternate(
            options, hostmm, measure=lambda side: _measure(side, hostmm, options))
        messages = hostmm.messages if hostmm else []
    pure = _run_pure(options)
    for part in _PARTS:
        print(f"\n{_table(samples, part)}")
    for side in samples.sides()[1:]:
        print(f"{side} is never slower than plain memory from this many tables on: "
              f"{pays_from(samples, side) or 'never'}")
    if pure:
        print(f"\n{_pure_table(pure, _sizes(samples))}")
    if options.plot:
        _plot(samples, pure, options.plot)
    claims = [_claim(samples, "what the threshold saves", _ALL, sides.HOSTMM, 3),
              _claim(samples, "what sharing them saves", sides.OFF, sides.HOSTMM, options.most)]
    settings = {"most": options.most, "hostmm": messages, "pure": pure}
    return report.finish("fork_curve", options, samples, claims, None, settings)


if __name__ == "__main__":
    report.run_main(main)
