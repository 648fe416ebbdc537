#!/usr/bin/env bash
# Runs drivers_test.py from the runfiles.
set -euo pipefail
export HOSTMM_BIN=$PWD PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$PWD/benchmarks
exec python3 benchmarks/drivers_test.py
