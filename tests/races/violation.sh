#!/usr/bin/env bash
# A million judged touches, or as many as asked for:
#   tools/bazel run //tests/races:violation -- [touches=N] [source=memfd|named|anonymous] [kill=probers] ...
# See violation.cc for the options and what the exit status says.
set -euo pipefail
hostmm=$1 guest=$2
shift 2
exec "$hostmm" run --strict -- "$guest" --peer violation touches=1000000 seconds=600 "$@"
