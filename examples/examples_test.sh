#!/usr/bin/env bash
# Runs each example plain and under hostmm, as its first lines say.
set -euo pipefail

# The kilobytes of page tables that the example reports.
page_tables() { sed -n 's/.*: \([0-9]*\) kB of page tables, content right$/\1/p' <<<"$1"; }

plain=$(examples/many_children)
shared=$(runtime/hostmm run --quiet -- examples/many_children)
printf 'plain:  %s\nhostmm: %s\n' "$plain" "$shared"
# 16 children need 8 MiB for the region alone with 4 KiB pages; for themselves less than 1 MiB either way.
(($(page_tables "$shared") * 5 < $(page_tables "$plain")))
