#include "runtime/cli/progress_line.h"

#include <unistd.h>

#include <cstdio>
#include <string_view>

namespace hostmm {
namespace {

constexpr double kMiB = 1 << 20;

// Before this a rate says nothing. Arbitrary.
constexpr std::chrono::duration<double> kRateNeeds{0.2};

void WriteToTerminal(std::string_view text) {
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text.data(), text.size());
}

}  // namespace

std::string ProgressText(uint64_t done, uint64_t total, std::chrono::duration<double> elapsed) {
  const double mib = static_cast<double>(done) / kMiB;
  const double of = static_cast<double>(total) / kMiB;
  const int percent = total == 0 ? 100 : static_cast<int>(mib / of * 100);
  char text[128];
  int used = std::snprintf(text, sizeof(text), "%.1f of %.1f MiB, %d %%", mib, of, percent);
  if (elapsed >= kRateNeeds) {
    std::snprintf(text + used, sizeof(text) - static_cast<size_t>(used), ", %.0f MiB/s",
                  mib / elapsed.count());
  }
  return text;
}

std::string SizeText(uint64_t bytes) {
  char text[32];
  const auto number = static_cast<double>(bytes);
  if (bytes >= uint64_t{1} << 30) {
    std::snprintf(text, sizeof(text), "%.1f GiB", number / (1 << 30));
  } else if (bytes >= uint64_t{1} << 20) {
    std::snprintf(text, sizeof(text), "%.1f MiB", number / kMiB);
  } else {
    std::snprintf(text, sizeof(text), "%.0f KiB", number / 1024);
  }
  return text;
}

void ProgressLine::Show(uint64_t done, uint64_t total) {
  if (on_ == On::kNo) return;
  const auto elapsed = std::chrono::steady_clock::now() - start_;
  WriteToTerminal("\r\x1b[Khostmm: " + ProgressText(done, total, elapsed));
  shown_ = true;
}

void ProgressLine::Erase() {
  if (shown_) WriteToTerminal("\r\x1b[K");
  shown_ = false;
}

}  // namespace hostmm
