#!/usr/bin/env python3
"""Checks the thread-safety annotations of the project's sources with clang.

Usage: thread_safety.py CLANG COMPILE_COMMANDS.json

Only parses (-fsyntax-only), with the flags of the gcc build: no second build of Abseil. Warnings other than
-Wthread-safety are gcc's business here. Prints what clang says and exits 1 if it objects.
"""
import concurrent.futures
import json
import os
import subprocess
import sys


def check(clang, entry):
    """Returns (clang accepts, what it said)."""
    flags = [arg for arg in entry["arguments"][1:] if not arg.startswith("-W")]
    done = subprocess.run([clang, *flags, "-fsyntax-only", "-Wno-everything", "-Wthread-safety", "-Werror=thread-safety"],
                          cwd=entry["directory"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode == 0, done.stdout


def main():
    clang, commands = sys.argv[1:]
    with open(commands, encoding="utf-8") as stream:
        # The annotations are C++.
        entries = [entry for entry in json.load(stream) if not entry["file"].endswith(".c")]
    rejected = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for accepted, output in pool.map(lambda entry: check(clang, entry), entries):
            if not accepted:
                rejected += 1
                print(output, end="")
    if not entries:
        print("no source to check")
    return 1 if rejected or not entries else 0


if __name__ == "__main__":
    sys.exit(main())
