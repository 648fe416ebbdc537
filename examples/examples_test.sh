#!/usr/bin/env bash
# Runs each example as its first lines say. Each checks what it claims and ends with another status than 0 if it is not
# so; what only shows from outside is checked here.
set -euo pipefail

export HOSTMM_PROGRAM=$PWD/runtime/hostmm

# The kilobytes of page tables that the example reports.
page_tables() { sed -n 's/.*: \([0-9]*\) kB of page tables, content right$/\1/p' <<<"$1"; }

plain=$(examples/many_children)
shared=$("$HOSTMM_PROGRAM" run --quiet -- examples/many_children)
printf 'plain:  %s\nhostmm: %s\n' "$plain" "$shared"
# 16 children need 8 MiB for the region alone with 4 KiB pages; for themselves less than 1 MiB either way.
(($(page_tables "$shared") * 5 < $(page_tables "$plain")))

# Linked with the library: with a pager of their own, and with the one of `hostmm run`.
for example in opt_in buffer_pool arena store_snapshot store_fork; do
  echo "== $example"
  "examples/$example"
  "$HOSTMM_PROGRAM" run --quiet -- "examples/$example" >/dev/null
done

echo "== named_region"
folder=$(mktemp -d /tmp/hostmm-example.XXXXXX)
"$HOSTMM_PROGRAM" pager --socket "$folder/socket" >"$folder/log" 2>&1 &
pager=$!
trap 'kill "$pager" 2>/dev/null || true; wait "$pager" || true; rm -rf "$folder"' EXIT
for ((tries = 0; tries < 200; ++tries)); do
  "$HOSTMM_PROGRAM" stats --pager "$folder/socket" >/dev/null 2>&1 && break
  kill -0 "$pager" || { cat "$folder/log"; exit 1; }
  sleep 0.05
done
# Nobody has made it yet.
if examples/named_region "$folder/socket" read 2>/dev/null; then
  echo "read a region that nobody has made"
  exit 1
fi
examples/named_region "$folder/socket" write
examples/named_region "$folder/socket" read
