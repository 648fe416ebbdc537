#include "runtime/cli/inspect_command.h"

#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/cli/json_text.h"
#include "runtime/cli/proc_file.h"
#include "runtime/cli/segment_fetch.h"
#include "runtime/cli/version.h"
#include "vmm/invariants.h"

namespace hostmm {
namespace {

// Each try walks the whole segment; a pager under load needs some. Arbitrary.
constexpr int kCheckAttempts = 1000;

// printf into a string; lines here are far shorter than the buffer.
[[gnu::format(printf, 1, 2)]] std::string Format(const char* format, ...) {
  char buffer[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(buffer, sizeof(buffer), format, arguments);
  va_end(arguments);
  return buffer;
}

double MiB(uint64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

uint64_t SavedBytes(const Snapshot& snapshot) {
  const uint64_t plain = snapshot.PlainTableBytes();
  const uint64_t kernel = snapshot.KernelTableBytes();
  return plain > kernel ? plain - kernel : 0;
}

std::string GuestLine(const GuestRow& guest) {
  std::string line =
      Format("guest %u.%u pid %d uid %u regions %zu", guest.info.id.slot, guest.info.id.generation,
             guest.info.pid, guest.info.uid, guest.regions.size());
  if (guest.page_table_bytes.has_value()) {
    line += Format(" page-tables %" PRIu64 " kB", *guest.page_table_bytes >> 10);
  }
  return line + "\n";
}

char ShareLetter(const Region& region) {
  if ((region.flags & kView) != 0) return 'v';
  if ((region.flags & kCow) != 0) return 'c';
  if ((region.flags & kPrivate) != 0) return 'p';
  switch (ShareModeOf(region)) {
    case ShareMode::kUnshare:
      return '-';
    case ShareMode::kSharedPt:
      return 's';
    case ShareMode::kDedicated:
      return 'd';
  }
  return '?';
}

std::string RegionLine(const Region& region, const MmInfo* mm) {
  const AccessSet access = region.access;
  std::string line =
      Format("%" PRIx64 "-%" PRIx64 " %c%c%c%c %08" PRIx64 " %u.%u:", region.va.value(),
             region.end().value(), access.Contains(Access::kRead) ? 'r' : '-',
             access.Contains(Access::kWrite) ? 'w' : '-',
             access.Contains(Access::kExec) ? 'x' : '-', ShareLetter(region),
             region.file_page.value() << kPageShift, region.mm.slot, region.mm.generation);
  line += mm == nullptr ? "?" : std::string(NameOf(mm->frames)) + " " + NameOf(*mm);
  if (mm != nullptr && mm->frames == FrameKind::kForeign) {
    line += " [tables not shared: the file is on a disk, its pages are the kernel's]";
  }
  if ((region.flags & kNeverWrite) != 0) line += " [opened read-only]";
  if ((region.flags & kDontFork) != 0) line += " [dontfork]";
  if ((region.flags & kTracked) != 0) line += " [tracked]";
  return line + "\n";
}

std::string FaultLines(const FaultStats& faults) {
  std::string text = Format("faults       %" PRIu64 " events", faults.Of(FaultCounter::kEvents));
  for (size_t i = 0; i < kFaultCauses; ++i) {
    const FaultCause cause = static_cast<FaultCause>(i);
    if (faults.Of(cause) == 0) continue;
    text.append(", ").append(Name(cause)).append(Format(" %" PRIu64, faults.Of(cause)));
  }
  text += "\noutcomes    ";
  for (size_t i = 0; i < kFaultCounters; ++i) {
    const FaultCounter counter = static_cast<FaultCounter>(i);
    if (counter == FaultCounter::kEvents || faults.Of(counter) == 0) continue;
    text.append(" ").append(Name(counter)).append(Format(" %" PRIu64, faults.Of(counter)));
  }
  return text + Format("\nwaiting      %" PRIu64 " entries in flight, %" PRIu64 " faults\n",
                       faults.in_flight_entries, faults.outstanding_faults);
}

// Empty while nothing has been shared so.
std::string OptInLine(const OptInCounts& counts) {
  if (counts.operations == 0 && counts.votes == 0) return "";
  return Format("opt-in       %" PRIu64 " operations for all, %" PRIu64 " guests woken, %" PRIu64
                " timed out, %" PRIu64 " votes\n",
                counts.operations, counts.woken, counts.timed_out, counts.votes);
}

JsonObject OptInJson(const OptInCounts& counts) {
  JsonObject object;
  object.Add("operations", counts.operations);
  object.Add("woken", counts.woken);
  object.Add("timed_out", counts.timed_out);
  object.Add("votes", counts.votes);
  return object;
}

JsonObject FaultsJson(const FaultStats& faults) {
  JsonObject causes;
  for (size_t i = 0; i < kFaultCauses; ++i) {
    const FaultCause cause = static_cast<FaultCause>(i);
    causes.Add(Name(cause), faults.Of(cause));
  }
  JsonObject counters;
  for (size_t i = 0; i < kFaultCounters; ++i) {
    const FaultCounter counter = static_cast<FaultCounter>(i);
    counters.Add(Name(counter), faults.Of(counter));
  }
  JsonObject object;
  object.Add("causes", causes);
  object.Add("counters", counters);
  object.Add("in_flight_entries", faults.in_flight_entries);
  object.Add("outstanding_faults", faults.outstanding_faults);
  object.Add("unaccounted", faults.Unaccounted());
  return object;
}

JsonObject GuestJson(const GuestRow& guest) {
  JsonObject object;
  object.Add("slot", guest.info.id.slot);
  object.Add("generation", guest.info.id.generation);
  object.Add("pid", guest.info.pid);
  object.Add("uid", guest.info.uid);
  object.Add("regions", guest.regions.size());
  if (guest.page_table_bytes.has_value()) {
    object.Add("page_table_bytes", *guest.page_table_bytes);
  } else {
    object.AddNull("page_table_bytes");
  }
  return object;
}

JsonObject MmJson(const MmInfo& mm) {
  JsonObject object;
  object.Add("slot", mm.id.slot);
  object.Add("generation", mm.id.generation);
  object.Add("name", NameOf(mm));
  object.Add("frames", NameOf(mm.frames));
  object.Add("owner_uid", mm.owner_uid);
  object.Add("length_bytes", BytesOf(mm.length));
  object.Add("populated_bytes", PopulatedBytesOf(mm));
  object.Add("small_pages", mm.small_pages.value());
  object.Add("huge_blocks", mm.huge_blocks);
  object.Add("in_flight_entries", mm.in_flight);
  object.Add("regions", mm.regions);
  object.Add("guests", mm.mappers);
  object.Add("pins", mm.pins);
  return object;
}

int RunCheck(const TableReader& reader, const std::string& pager) {
  std::vector<std::string> problems;
  if (CheckLive(reader, kCheckAttempts, &problems) == ReadStatus::kBusy) {
    return Report(MakeFailure(ExitStatus::kSegmentBusy, pager,
                              "the pager changed its tables during every attempt", "try again"));
  }
  if (problems.empty()) {
    std::puts("ok: all invariants hold");
    return ToInt(ExitStatus::kOk);
  }
  for (const std::string& problem : problems) std::printf("%s\n", OneLine(problem).c_str());
  return Report(MakeFailure(ExitStatus::kInvariantsBroken, pager,
                            std::to_string(problems.size()) + " invariants are broken",
                            "please report them with the output of 'hostmm dump'"));
}

}  // namespace

std::string StatsText(const Snapshot& snapshot, const std::string& pager) {
  uint64_t small = 0;
  uint64_t huge = 0;
  for (const MmInfo& mm : snapshot.mms) {
    small += mm.small_pages.value();
    huge += mm.huge_blocks;
  }
  std::string text =
      Format("managed      %zu guests, %" PRIu64 " regions, %zu files, by %s\n",
             snapshot.guests.size(), snapshot.RegionCount(), snapshot.mms.size(), pager.c_str());
  text += Format("populated    %.1f MiB: %" PRIu64 " frames of 2 MiB, %" PRIu64 " of 4 KiB\n",
                 MiB(snapshot.PopulatedBytes()), huge, small);
  text += Format(
      "page tables  %.1f MiB in the guests; plain 4 KiB mappings need up to %.1f MiB: up to %.1f "
      "MiB saved\n",
      MiB(snapshot.KernelTableBytes()), MiB(snapshot.PlainTableBytes()), MiB(SavedBytes(snapshot)));
  text += Format("host mm      %u tables, %.1f MiB\n", snapshot.pools.nodes,
                 MiB(snapshot.pools.table_bytes));
  text += FaultLines(snapshot.faults);
  text += OptInLine(snapshot.opt_in);
  for (const MmInfo& mm : snapshot.mms) {
    text += Format("file %u.%u     %.1f of %.1f MiB, %s, %u guests, %s\n", mm.id.slot,
                   mm.id.generation, MiB(PopulatedBytesOf(mm)), MiB(BytesOf(mm.length)),
                   NameOf(mm.frames).data(), mm.mappers, NameOf(mm).c_str());
  }
  if (snapshot.consistent == ReadStatus::kBusy) {
    text += "The pager was busy: the numbers are from several moments.\n";
  }
  return text;
}

std::string StatsJson(const Snapshot& snapshot, const std::string& pager) {
  std::vector<JsonObject> guests;
  for (const GuestRow& guest : snapshot.guests) guests.push_back(GuestJson(guest));
  std::vector<JsonObject> mms;
  for (const MmInfo& mm : snapshot.mms) mms.push_back(MmJson(mm));
  JsonObject tables;
  tables.Add("guests_bytes", snapshot.KernelTableBytes());
  tables.Add("plain_up_to_bytes", snapshot.PlainTableBytes());
  tables.Add("saved_up_to_bytes", SavedBytes(snapshot));
  JsonObject host_mm;
  host_mm.Add("tables", snapshot.pools.nodes);
  host_mm.Add("table_bytes", snapshot.pools.table_bytes);
  host_mm.Add("attachments", snapshot.pools.attachments);
  JsonObject report;
  report.Add("version", HOSTMM_VERSION);
  report.Add("pager", pager);
  report.Add("snapshot", snapshot.consistent == ReadStatus::kConsistent ? "consistent" : "busy");
  report.Add("regions", snapshot.RegionCount());
  report.Add("populated_bytes", snapshot.PopulatedBytes());
  report.Add("page_tables", tables);
  report.Add("host_mm", host_mm);
  report.Add("faults", FaultsJson(snapshot.faults));
  report.Add("opt_in", OptInJson(snapshot.opt_in));
  report.Add("guests", guests);
  report.Add("files", mms);
  return report.text() + "\n";
}

std::string DumpText(const Snapshot& snapshot) {
  std::string text;
  for (const GuestRow& guest : snapshot.guests) {
    text += GuestLine(guest);
    for (const Region& region : guest.regions) text += RegionLine(region, snapshot.Find(region.mm));
  }
  return text;
}

int RunInspect(const InspectOptions& options) {
  OrFailure<OpenSegment> opened = OpenSegmentOf(options.socket_path);
  if (const Failure* failure = FailureOf(opened)) return Report(*failure);
  const TableReader& reader = std::get<OpenSegment>(opened).reader;
  if (options.question == Question::kCheck) return RunCheck(reader, options.socket_path);
  Snapshot snapshot = TakeSnapshot(reader, PageTableBytesOf);
  snapshot.opt_in = std::get<OpenSegment>(opened).opt_in;
  std::string text;
  if (options.question == Question::kDump) {
    text = DumpText(snapshot);
  } else if (options.format == OutputFormat::kJson) {
    text = StatsJson(snapshot, options.socket_path);
  } else {
    text = StatsText(snapshot, options.socket_path);
  }
  std::fputs(text.c_str(), stdout);
  return ToInt(ExitStatus::kOk);
}

}  // namespace hostmm
