#!/usr/bin/env python3
"""Prints 'N passed, N failed[, N skipped]' for one or more `bazel test` runs, as its last line.

Usage: test_summary.py BUILD_EVENTS.json...

Reads the event streams that --build_event_json_file wrote and the test.xml files that they name: so it counts the
test cases of those runs, cached results included, and never a file that another run left. A target without test
cases (sh_test) counts as one case; it skips by printing a line 'SKIPPED: reason' and ending with status 0. A run
that failed in any other way (nothing built, a package that does not load, Bazel killed) counts as one failure.
Exits 1 if anything failed or if nothing passed.
"""
import dataclasses
import json
import re
import sys
import urllib.parse
import xml.etree.ElementTree as ElementTree


@dataclasses.dataclass
class Counts:
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped


@dataclasses.dataclass
class Attempt:
    """The last attempt of one shard of one run of a target."""
    number: int
    xml: str
    log: str


class Run:
    """What one event stream says."""

    def __init__(self, path):
        self.expected = set()  # labels of the test targets asked for
        self.status = {}       # label -> overall status
        self.attempts = {}     # label -> {(run, shard): Attempt}
        self.exit_name = "ended without a verdict"
        try:
            with open(path, encoding="utf-8") as events:
                for line in events:
                    self._read(json.loads(line))
        except (OSError, ValueError) as error:
            # A stream cut short has no verdict, which summarize() counts as a failure.
            print(f"{path}: {error}")

    def _read(self, event):
        ident = event["id"]
        if "targetConfigured" in ident:
            if event.get("configured", {}).get("testSize"):
                self.expected.add(ident["targetConfigured"]["label"])
        elif "testSummary" in ident and "testSummary" in event:
            self.status[ident["testSummary"]["label"]] = event["testSummary"]["overallStatus"]
        elif "testResult" in ident and "testResult" in event:
            self._read_result(ident["testResult"], event["testResult"])
        elif "buildFinished" in ident and "finished" in event:
            self.exit_name = event["finished"].get("exitCode", {}).get("name", "no status")

    def _read_result(self, ident, result):
        paths = {
            output["name"]: urllib.parse.unquote(urllib.parse.urlparse(output["uri"]).path)
            for output in result.get("testActionOutput", []) if "uri" in output
        }
        attempt = Attempt(ident.get("attempt", 0), paths.get("test.xml", ""), paths.get("test.log", ""))
        shards = self.attempts.setdefault(ident["label"], {})
        key = (ident.get("run", 0), ident.get("shard", 0))
        if key not in shards or attempt.number >= shards[key].number:
            shards[key] = attempt


def is_placeholder(root):
    """True for the test.xml that Bazel itself writes for a test that wrote none: one case named after the target."""
    cases = list(root.iter("testcase"))
    return len(cases) == 1 and "classname" not in cases[0].attrib


def count_cases(path, label):
    """Counts the cases of one test.xml, or returns None where the test wrote none itself."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return None
    if is_placeholder(root):
        return None
    counts = Counts()
    for case in root.iter("testcase"):
        name = f"{label} {case.get('classname')}.{case.get('name')}"
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            counts.failed += 1
            print(f"failed: {name}")
        elif skipped is not None or case.get("result") == "skipped":
            counts.skipped += 1
            # gtest puts 'file:line' on a line of its own before the reason.
            reason = (skipped.get("message", "") if skipped is not None else "").strip().split("\n")[-1]
            print(f"skipped: {name}: {reason or 'no reason given'}")
        elif case.get("result") == "suppressed" or case.get("status") == "notrun":
            counts.skipped += 1
            print(f"skipped: {name}: disabled")
        else:
            counts.passed += 1
    return counts


def skip_reason(log):
    """Returns what follows the first 'SKIPPED: ' of a shell test's output, or None."""
    try:
        with open(log, encoding="utf-8", errors="replace") as lines:
            match = re.search(r"^SKIPPED: *(.*)$", lines.read(), re.MULTILINE)
    except OSError:
        return None
    return match and match.group(1)


def count_target(run, label):
    """Counts one target; prints what is not a pass."""
    counts = Counts()
    caseless = False
    for attempt in run.attempts.get(label, {}).values():
        cases = count_cases(attempt.xml, label)
        if cases is not None:
            counts.add(cases)
            continue
        caseless = True
        reason = skip_reason(attempt.log)
        if reason is not None:
            counts.skipped += 1
            print(f"skipped: {label}: {reason or 'no reason given'}")
        else:
            counts.passed += 1
    status = run.status.get(label, "did not run")
    if status in ("PASSED", "FLAKY"):
        if counts == Counts():
            print(f"failed: {label}: it has no test case")
            counts.failed = 1
    elif caseless:
        # A shell test that failed, or a program that died before it could write its cases.
        print(f"failed: {label}: {status}")
        counts = Counts(failed=1)
    elif not counts.failed:
        print(f"failed: {label}: {status}")
        counts.failed = 1
    return counts


def summarize(path):
    run = Run(path)
    counts = Counts()
    for label in sorted(run.expected | set(run.status)):
        counts.add(count_target(run, label))
    if run.exit_name != "SUCCESS" and not counts.failed:
        print(f"failed: bazel: {run.exit_name}")
        counts.failed = 1
    return counts


def main(paths):
    totals = Counts()
    for path in paths:
        totals.add(summarize(path))
    line = f"{totals.passed} passed, {totals.failed} failed"
    if totals.skipped:
        line += f", {totals.skipped} skipped"
    print(line)
    return 1 if totals.failed or not totals.passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
