#include "runtime/memory_climate.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace hostmm {
namespace {

constexpr uint64_t kTightPart = 16;

UniqueFd OpenForReading(const std::string& path) {
  return UniqueFd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
}

std::string Read(const UniqueFd& file) {
  // All that is looked for stands in the first lines, and memory.stat has about 2 KiB.
  char text[8192];
  const ssize_t got = file.ok() ? pread(file.get(), text, sizeof(text), 0) : -1;
  return std::string(text, got > 0 ? static_cast<size_t>(got) : 0);
}

// The number behind `key` at the start of a line: "MemTotal:   24105 kB", "inactive_file 4096".
std::optional<uint64_t> Field(std::string_view text, std::string_view key) {
  for (std::string_view line : absl::StrSplit(text, '\n')) {
    if (!absl::ConsumePrefix(&line, key)) continue;
    line = absl::StripLeadingAsciiWhitespace(line);
    uint64_t value;
    if (absl::SimpleAtoi(line.substr(0, line.find(' ')), &value)) return value;
  }
  return std::nullopt;
}

std::optional<uint64_t> Number(const UniqueFd& file) {
  const std::string text = Read(file);
  uint64_t value;
  if (absl::SimpleAtoi(absl::StripAsciiWhitespace(text), &value)) return value;
  return std::nullopt;  // "max": no limit
}

}  // namespace

ClimateWatch::ClimateWatch(const Files& files) : meminfo_(OpenForReading(files.meminfo)) {
  const std::string groups = Read(OpenForReading(files.self_cgroup));
  // "4:memory:/path" is version 1, "0::/path" version 2. Where both are mounted, memory is in one
  // of them.
  for (std::string_view line : absl::StrSplit(groups, '\n')) {
    const std::vector<std::string_view> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3 || limit_.ok()) continue;
    if (parts[1] == "memory") {
      const std::string directory = absl::StrCat(files.cgroup_root, "/memory", parts[2]);
      OpenGroup(directory, "memory.limit_in_bytes", "memory.usage_in_bytes");
    } else if (parts[1].empty()) {
      OpenGroup(absl::StrCat(files.cgroup_root, parts[2]), "memory.max", "memory.current");
    }
  }
}

void ClimateWatch::OpenGroup(std::string_view directory, const char* limit, const char* usage) {
  limit_ = OpenForReading(absl::StrCat(directory, "/", limit));
  usage_ = OpenForReading(absl::StrCat(directory, "/", usage));
  stat_ = OpenForReading(absl::StrCat(directory, "/memory.stat"));
}

bool ClimateWatch::MachineIsTight() const {
  const std::string text = Read(meminfo_);
  const std::optional<uint64_t> total = Field(text, "MemTotal:");
  const std::optional<uint64_t> available = Field(text, "MemAvailable:");
  return total.has_value() && available.has_value() && *available < *total / kTightPart;
}

bool ClimateWatch::GroupIsTight() const {
  const std::optional<uint64_t> limit = Number(limit_);
  const std::optional<uint64_t> usage = Number(usage_);
  if (!limit.has_value() || !usage.has_value()) return false;
  const std::string stat = Read(stat_);
  // Version 1 counts the groups below in fields of their own.
  uint64_t droppable = Field(stat, "inactive_file ").value_or(0);
  droppable = std::max(droppable, Field(stat, "total_inactive_file ").value_or(0));
  const uint64_t used = *usage - std::min(*usage, droppable);
  return used > *limit - std::min(*limit, *limit / kTightPart);
}

MemoryClimate ClimateWatch::Now() const {
  return MachineIsTight() || GroupIsTight() ? MemoryClimate::kTight : MemoryClimate::kAmple;
}

}  // namespace hostmm
