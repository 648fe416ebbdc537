#include "runtime/cli/failure.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace hostmm {

std::string OneLine(std::string_view text) {
  std::string line(text);
  std::ranges::replace_if(
      line, [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
  return line;
}

Failure MakeFailure(ExitStatus status, std::string_view what, std::string_view why,
                    std::string_view remedy) {
  std::string text(what);
  text.append(": ").append(why);
  if (!remedy.empty()) text.append("; ").append(remedy);
  return Failure{status, OneLine(text)};
}

std::string ErrnoText(int error) { return std::strerror(error); }

void PrintLine(std::string_view text) {
  std::string line = "hostmm: ";
  line.append(OneLine(text)).append("\n");
  // Nothing useful can be done when standard error is closed or full.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

int Report(const Failure& failure) {
  PrintLine(failure.text);
  return ToInt(failure.status);
}

}  // namespace hostmm
