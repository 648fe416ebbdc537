#!/usr/bin/env python3
"""Runs the benchmark programs one after another; prints one table of targets and writes JSON.

Exit status: 0 all targets reached, 1 some missed, 2 some could not be measured.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import interrupts
import report

_FOLDER = pathlib.Path(__file__).resolve().parent
# In the order of README.md.
_PROGRAMS = ("pg_select", "anon_region", "hugetlb_faults", "pg_connect", "nothing_shared",
             "sparse_touch", "fault_floor", "pt_budget", "shared_mprotect", "mprotect_idle_guests",
             "attach", "many_guests", "snapshot_freeze", "snapshot_writers", "snapshot_latency",
             "snapshot_memory", "fork_curve")


def _run(name, options, folder):
    """Runs one program; returns its JSON, or one that says that it did not run."""
    result = pathlib.Path(folder, f"{name}.json")
    words = [sys.executable, str(_FOLDER / f"{name}.py"), "--json", str(result)]
    words += ["--quick"] if options.quick else []
    words += ["--rounds", str(options.rounds)] if options.rounds else []
    process = None
    try:
        with interrupts.held_back():
            process = subprocess.Popen(words, start_new_session=True)
        status = process.wait()
    except BaseException:
        if process is not None:
            # It has servers and settings of its own to put away: it is asked, and waited for.
            process.terminate()
            process.wait()
        raise
    if result.exists():
        return json.loads(result.read_text())
    claim = report.Claim(name, None, ">=", 0, f"the program ended with status {status}")
    return {"benchmark": name, "claims": [claim.as_json()]}


def _table(results):
    rows = []
    for result in results:
        for claim in result["claims"]:
            value = report.number(claim["value"])
            target = f"{claim['relation']} {report.number(claim['target'])}"
            rows.append([claim["name"], value, target, claim["verdict"]])
    return report.table(["work", "measured", "target", "verdict"], rows)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true",
                        help="fewer and shorter rounds: shows that it works, settles nothing")
    parser.add_argument("--rounds", type=int, help="for every program, in place of its own number")
    parser.add_argument("--json", metavar="FILE", default=str(_FOLDER / "results.json"),
                        help="where the results go (default benchmarks/results.json)")
    parser.add_argument("--only", metavar="NAMES", default=",".join(_PROGRAMS),
                        help=f"which programs, separated by commas, of {', '.join(_PROGRAMS)}")
    options = parser.parse_args()
    names = options.only.split(",")
    unknown = [name for name in names if name not in _PROGRAMS]
    if unknown:
        parser.error(f"no such program: {', '.join(unknown)}")

    began = time.monotonic()
    results = []
    with tempfile.TemporaryDirectory(prefix="hostmm-bench-") as folder:
        for name in names:
            report.progress(f"== {name}")
            results.append(_run(name, options, folder))
    print(f"\n{_table(results)}")
    if options.quick:
        print("--quick: fewer and shorter rounds than the targets ask for; settles nothing")
    print(f"{time.monotonic() - began:.0f} s in all")
    whole = {"quick": options.quick, "machine": report.machine(), "results": results}
    pathlib.Path(options.json).write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")
    print(f"written to {options.json}")
    verdicts = [claim["verdict"] for result in results for claim in result["claims"]]
    if report.MISSED in verdicts:
        return report.EXIT_MISSED
    return report.EXIT_COULD_NOT_RUN if report.NOT_AVAILABLE in verdicts else 0


if __name__ == "__main__":
    report.run_main(main)
