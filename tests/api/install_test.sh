#!/usr/bin/env bash
# tools/install: what it installs can be compiled against with pkg-config and run, from wherever it is moved to; a
# second time changes nothing, --dry-run nothing at all.
set -euo pipefail

folder=$(mktemp -d /tmp/hostmm-install.XXXXXX)
trap 'chmod -R u+w "$folder"; rm -rf "$folder"' EXIT
# Others must get to the library when a command changes its user.
chmod 755 "$folder"

fail() {
  echo "install_test: $*" >&2
  exit 1
}
listing() { (cd "$1" && find . \( -type f -o -type l \) -print0 | sort -z | xargs -0 stat -c '%N %a %s'); }
# The one line that it says when it refuses.
refusal() {
  ! tools/install "$@" >"$folder/said" 2>&1 || fail "it took: $*"
  [[ $(wc -l <"$folder/said") == 1 ]] || fail "it refuses $* with more than one line: $(<"$folder/said")"
  cat "$folder/said"
}

export HOSTMM_BUILT=runtime
unset DESTDIR HOSTMM_PROGRAM HOSTMM_SOCKET
prefix=$folder/prefix

[[ $(tools/install "$prefix" --dry-run) == *" $prefix/bin/hostmm"* ]] || fail "--dry-run does not say what it would do"
[[ ! -e $prefix ]] || fail "--dry-run has made something"
[[ $(refusal) == *usage* && $(refusal --all) == *usage* && $(refusal a b) == *usage* ]] || fail "no usage"
# Root may write everywhere, but below a file nobody can make a folder.
touch "$folder/file"
[[ $(refusal "$folder/file/prefix") == *remedy:* ]] || fail "no remedy"
[[ $(refusal /proc/nowhere/prefix) == *remedy:* ]] || fail "no remedy"

tools/install "$prefix" >/dev/null
first=$(listing "$prefix")
[[ $(wc -l <<<"$first") == 11 ]] || fail "not eleven files: $first"
tools/install "$prefix" >/dev/null
[[ $(listing "$prefix") == "$first" ]] || fail "the second time differs"
DESTDIR=$folder/stage tools/install "$prefix" >/dev/null
[[ $(listing "$folder/stage$prefix") == "$first" ]] || fail "DESTDIR differs"

# As a user has it: the header in the include path; and not where it was installed.
mv "$prefix" "$folder/moved"
mkdir -p "$folder/use/tests/api"
sed 's|"runtime/hostmm_c.h"|<hostmm_c.h>|' tests/api/c_api_test.c >"$folder/use/c_api.c"
cp -L tests/api/c_checks.h "$folder/use/tests/api/"
if command -v pkg-config >/dev/null; then
  export PKG_CONFIG_PATH=$folder/moved/lib/pkgconfig
  read -ra flags < <(pkg-config --cflags --libs hostmm)
  version=$(sed -n 's/^#define HOSTMM_VERSION "\(.*\)"/\1/p' runtime/cli/version.h)
  [[ $(pkg-config --modversion hostmm) == "$version" ]] || fail "hostmm.pc is of another version"
else
  echo "pkg-config is missing (package pkgconf): its file is not tried"
  flags=(-I"$folder/moved/include" -L"$folder/moved/lib" -lhostmm)
fi
gcc -std=c11 -Wall -Wextra -Werror -pedantic -I"$folder/use" "$folder/use/c_api.c" -o "$folder/use/c_api" "${flags[@]}"

# The installed library finds the installed program, and the program its library.
export LD_LIBRARY_PATH=$folder/moved/lib
"$folder/use/c_api" || fail "a linked program with a pager of its own"
# What a header includes of ours lies beside it (Abseil's is the program's own).
for beside in $(sed -n 's/^#include "\(.*\)".*/\1/p' "$folder/moved/include"/*.h | grep -v '^absl/'); do
  [[ -f $folder/moved/include/$beside ]] || fail "a header includes $beside, which is not installed"
done
"$folder/moved/bin/hostmm" run -- true 2>"$folder/said" || fail "hostmm run: $(<"$folder/said")"
grep -q managed "$folder/said" || fail "hostmm run does not load its library: $(<"$folder/said")"
echo "all that was installed works"
