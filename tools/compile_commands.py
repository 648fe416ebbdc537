#!/usr/bin/env python3
"""Writes compile_commands.json, for clangd and for the clang step of tools/check.

Usage: tools/compile_commands.py [OUTPUT]    (default: compile_commands.json in the workspace)

Asks Bazel for its own compile actions (aquery), so it needs no other list of files or flags, and builds nothing.
Paths are made to work from the workspace: Bazel's "external/" and "bazel-out/" lead into its output base.
"""
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Options followed by a file that Bazel wants written, and options that clang does not know.
WITH_OUTPUT = ("-MF", "-o")
GCC_ONLY = ("-MD", "-fno-canonical-system-headers", "-Wno-free-nonheap-object", "-Wunused-but-set-parameter")


def bazel(*args):
    return subprocess.run([os.path.join(ROOT, "tools", "bazel"), *args], cwd=ROOT, check=True,
                          stdout=subprocess.PIPE, text=True).stdout


def absolute(arg, output_base, execroot):
    """Rewrites one argument that is, or ends in, a path below external/ or bazel-out/."""
    for prefix in ("", "-I", "-iquote", "-isystem"):
        for folder, base in (("external/", output_base), ("bazel-out/", execroot)):
            if arg.startswith(prefix + folder):
                return prefix + os.path.join(base, arg[len(prefix):])
    return arg


def entry(arguments, output_base, execroot):
    """Returns the entry for one compile action, or None if its source is not the project's."""
    source = arguments[arguments.index("-c") + 1]
    if source.startswith(("external/", "bazel-out/")):
        return None
    kept = []
    rest = iter(arguments)
    for arg in rest:
        if arg in WITH_OUTPUT:
            next(rest)
        elif arg not in GCC_ONLY:
            kept.append(absolute(arg, output_base, execroot))
    return {"directory": ROOT, "file": source, "arguments": kept}


def main():
    output = sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, "compile_commands.json")
    graph = json.loads(bazel("aquery", "--noshow_progress", "--output=jsonproto",
                             'mnemonic("CppCompile", //...)'))
    output_base = bazel("info", "output_base").strip()
    execroot = bazel("info", "execution_root").strip()
    entries = {}
    for action in graph.get("actions", []):
        found = entry(action["arguments"], output_base, execroot)
        if found:
            entries[found["file"]] = found
    with open(output, "w", encoding="utf-8") as out:
        json.dump([entries[name] for name in sorted(entries)], out, indent=1)
    print(f"{len(entries)} entries")


if __name__ == "__main__":
    main()
