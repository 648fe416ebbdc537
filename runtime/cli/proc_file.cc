#include "runtime/cli/proc_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>

#include "runtime/unique_fd.h"

namespace hostmm {
namespace {

std::string_view SkipBlanks(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
  return text;
}

template <class Number>
std::optional<Number> LeadingNumber(std::string_view text) {
  text = SkipBlanks(text);
  Number number = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), number);
  if (result.ec != std::errc()) return std::nullopt;
  return number;
}

}  // namespace

std::optional<std::string> ReadProcFile(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.ok()) return std::nullopt;
  std::string content;
  std::array<char, 8192> buffer;  // arbitrary
  for (;;) {
    const ssize_t got = read(fd.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return std::nullopt;
    if (got == 0) return content;
    content.append(buffer.data(), static_cast<size_t>(got));
  }
}

std::optional<int64_t> ReadProcNumber(const std::string& path) {
  const std::optional<std::string> content = ReadProcFile(path);
  return content.has_value() ? LeadingNumber<int64_t>(*content) : std::nullopt;
}

std::optional<uint64_t> NumberOf(std::string_view content, std::string_view name) {
  while (!content.empty()) {
    const std::string_view line = content.substr(0, content.find('\n'));
    if (line.starts_with(name) && line.substr(name.size()).starts_with(":")) {
      return LeadingNumber<uint64_t>(line.substr(name.size() + 1));
    }
    content.remove_prefix(std::min(line.size() + 1, content.size()));
  }
  return std::nullopt;
}

std::optional<uint64_t> KilobytesOf(std::string_view content, std::string_view name) {
  const std::optional<uint64_t> number = NumberOf(content, name);
  if (!number.has_value()) return std::nullopt;
  return *number * 1024;
}

std::optional<uint64_t> PageTableBytesOf(int64_t pid) {
  const std::optional<std::string> status =
      ReadProcFile("/proc/" + std::to_string(pid) + "/status");
  return status.has_value() ? KilobytesOf(*status, "VmPTE") : std::nullopt;
}

}  // namespace hostmm
