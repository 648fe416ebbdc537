#include "runtime/cli/help.h"

#include <cstdio>

#include "runtime/cli/exit_status.h"

namespace hostmm {
namespace {

constexpr char kOverview[] =
    R"(hostmm: one set of page tables for many processes that share memory

  hostmm run [options] [--] COMMAND...   run a program under it
  hostmm pager --socket PATH [options]   the pager as a service
  hostmm doctor [--json]                 what this host can do, and the remedy for what it cannot
  hostmm stats [--json] [--pager PATH]   what a pager manages, and what that saves
  hostmm dump [--pager PATH]             its guests and regions, as in /proc/PID/maps
  hostmm check [--pager PATH]            the invariants of its tables
  hostmm snapshot REGION FILE            an image of a region as it is now, while programs go on
  hostmm image FILE...                   checks images, and says what they are of
  hostmm help [SUBCOMMAND | status]      more about one of them, or about the exit statuses
  hostmm --version
)";

constexpr char kRun[] =
    R"(hostmm run [options] [--] COMMAND [ARGUMENT...]

Starts a pager, runs COMMAND and all that it starts with the preload library, and ends with
COMMAND's exit status (128 + N if signal N ended it). The pager ends with the last process that it
serves. Signals sent to hostmm are passed on to COMMAND.

  --pager SOCKET     use the pager that serves SOCKET instead of starting one
  --frames=FRAMES    auto (default) | huge | hugetlb | base
                       huge     2 MiB frames of a private tmpfs, needs nothing
                       hugetlb  2 MiB frames of hugetlb: for programs that keep to 2 MiB units
                       base     4 KiB frames, collapsed when a block is full
  --pt-budget=SIZE   with --frames=base: page tables that a process may have for its regions
  --snapshot-memory=SIZE  copies for the snapshots of one region; beyond, they are lost
  --only EXE[:EXE]   manage only programs of these names; the others run as without hostmm
  --strict           refuse to start rather than run unmanaged, in native mode or on weaker frames
  --quiet            no lines of our own on standard error
  --dry-run          print the environment and the command, start nothing

If its own pager cannot be started, hostmm says so and runs COMMAND without it (not with --strict).
HOSTMM_RUNTIME_DIR=DIRECTORY is where the pager's socket goes, before /run, XDG_RUNTIME_DIR, /tmp.
HOSTMM_PAGER_LOG=FILE appends what that pager says to FILE.
)";

constexpr char kPager[] =
    R"(hostmm pager --socket PATH [options]

Serves PATH in the foreground for any number of 'hostmm run --pager PATH', until SIGTERM or SIGINT.
A socket that a dead pager has left is replaced.

  --socket PATH      the unix socket
  --mode MODE        its permission bits, octal; default 0660: owner and group
  --frames=FRAMES    auto (default) | huge | hugetlb | base
  --pt-budget=SIZE   with --frames=base: page tables that a process may have for its regions
  --snapshot-memory=SIZE  copies for the snapshots of one region; beyond, they are lost
  --strict           refuse to start in native mode or on weaker frames
  --until-last-guest end with the last process that it serves, or if none comes within 10 s; remove
                     PATH, and its folder if that is empty and named hostmm-*
  --ready-fd N       in the background: no terminal, no standard files; says on descriptor N that it
                     serves, or why it cannot
)";

constexpr char kDoctor[] =
    R"(hostmm doctor [--json]

Tries everything that hostmm needs, as the user that asks, and prints a line for each:
  ok|warn|fail  thing  fact  -> command that remedies it
Exit status: 0 the default rung works, 1 degraded (native mode or base frames), 2 cannot run.
)";

constexpr char kStats[] =
    R"(hostmm stats [--json] [--pager SOCKET]

What the pager at SOCKET ($HOSTMM_SOCKET by default) manages: guests, regions, frames by size, page
tables, faults by cause, operations on opt-in memory. "Up to": what 4 KiB mappings of all that is populated would need in all
guests, less what the guests' page tables (VmPTE) really take.
)";

constexpr char kDump[] =
    R"(hostmm dump [--pager SOCKET]

A line per guest and one per region, in the form of /proc/PID/maps:
  guest SLOT.GENERATION pid PID uid UID regions N page-tables N kB
  START-END rwxs OFFSET FILE:FRAMES NAME
The fourth letter: - did not opt in, s MAP_SHARED_PT, d dedicated, p private (read-only), c private
copy-on-write, v a view of a snapshot. FRAMES: huge, hugetlb, base; adopted: a file of the program's
own in memory; foreign: a file on a disk, whose tables are not shared; snapshot. NAME: of a named region its name, else the program that made the file.
)";

constexpr char kCheck[] =
    R"(hostmm check [--pager SOCKET]

Walks the tables of the running pager and checks every invariant. Exit status: 0 all hold, 1 not.
)";

constexpr char kSnapshot[] =
    R"(hostmm snapshot REGION FILE [options]
hostmm snapshot --drop NAME

Takes a snapshot of a region of the pager at SOCKET ($HOSTMM_SOCKET by default) and writes it to
FILE, while the programs that use the region go on. FILE must not exist, is made for its owner only,
and is on the disk when hostmm ends; '-' is standard output.

REGION is the name of a named region, #N for the file N.x of 'hostmm dump', or @NAME for a snapshot
that was kept.

  --pager SOCKET           the pager
  --keep NAME              the snapshot lives on as @NAME until --drop, for what follows; until then
                           each page that is written for the first time is copied
  --incremental-from NAME  only what has changed since the kept snapshot NAME of the same region
  --resume                 go on with FILE, which was interrupted: REGION is @NAME of its snapshot
  --drop NAME              forget the kept snapshot
  --quiet                  no progress on the terminal, no line at the end

For a chain of backups:
  hostmm snapshot buffers full.img --keep mon
  hostmm snapshot buffers tue.img --keep tue --incremental-from mon && hostmm snapshot --drop mon
  hostmm image full.img tue.img --to buffers.raw
)";

constexpr char kImage[] =
    R"(hostmm image FILE... [--to RAW]

Reads images that 'hostmm snapshot' has written, checks all of them, and says a line about each. '-'
is standard input.

  --to RAW   writes the memory itself to RAW, a new file with holes for zeros: FILE... are a full
             image and then the incremental ones based on it, each on the one before

Exit status: 0 all are whole, 82 one is not.
)";

std::string StatusPage() {
  std::string text =
      "Exit statuses of hostmm. 'hostmm run' otherwise ends with the status of its command.\n\n";
  for (const ExitStatusMeaning& row : ExitStatusMeanings()) {
    char number[16];
    std::snprintf(number, sizeof(number), "  %3d  ", ToInt(row.status));
    text.append(number).append(row.meaning).append("\n");
  }
  return text + "  128+N  run: signal N ended the command\n";
}

}  // namespace

std::optional<std::string> HelpText(std::string_view topic) {
  if (topic.empty()) return kOverview;
  if (topic == "run") return kRun;
  if (topic == "pager") return kPager;
  if (topic == "doctor") return kDoctor;
  if (topic == "stats") return kStats;
  if (topic == "dump") return kDump;
  if (topic == "check") return kCheck;
  if (topic == "snapshot") return kSnapshot;
  if (topic == "image") return kImage;
  if (topic == "status") return StatusPage();
  return std::nullopt;
}

}  // namespace hostmm
