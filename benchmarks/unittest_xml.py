"""Runs unittest cases and writes test.xml where Bazel wants it, so that each case is counted.

A skipped case is reported as skipped, with its reason, never as passed.
"""

import os
import sys
import time
import unittest
import xml.etree.ElementTree as ElementTree


class _Result(unittest.TextTestResult):
    """Notes every case with its time and what became of it."""

    def __init__(self, *args):
        super().__init__(*args)
        self.suite = ElementTree.Element("testsuite", name="python")
        self._began = time.monotonic()
        self._case = None

    def startTest(self, test):
        super().startTest(test)
        self._began = time.monotonic()
        self._case = self._add(test)

    def stopTest(self, test):
        self._case.set("time", f"{time.monotonic() - self._began:.3f}")
        self._case = None
        super().stopTest(test)

    def _add(self, test):
        group, _, name = test.id().rpartition(".")
        return ElementTree.SubElement(self.suite, "testcase", classname=group, name=name)

    def _mark(self, test, what, text):
        # A failure in setUpClass comes without startTest: it is a case of its own.
        case = self._case if self._case is not None else self._add(test)
        ElementTree.SubElement(case, what, message=text)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._mark(test, "failure", str(err[1]))

    def addError(self, test, err):
        super().addError(test, err)
        self._mark(test, "error", str(err[1]))

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        print(f"skipped: {test.id()}: {reason}", flush=True)
        self._mark(test, "skipped", reason)


def main():
    """Runs the cases of __main__; returns the exit status."""
    suite = unittest.defaultTestLoader.loadTestsFromModule(sys.modules["__main__"])
    result = unittest.TextTestRunner(
        stream=sys.stdout, verbosity=2, resultclass=_Result, failfast=False).run(suite)
    path = os.environ.get("XML_OUTPUT_FILE")
    if path:
        root = ElementTree.Element("testsuites")
        root.append(result.suite)
        ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
    return 0 if result.wasSuccessful() else 1
