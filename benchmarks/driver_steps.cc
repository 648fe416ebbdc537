#include "benchmarks/driver_steps.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <cstdlib>

namespace hostmm::benchmarks {

void Report(const std::string& json) {
  std::printf("%s\n", json.c_str());
  std::fflush(stdout);
}

void ReportAndWait(const std::string& json) {
  Report(json);
  char c = 0;
  // Not stdio: a buffered read would keep bytes that belong to a later step from a forked child.
  ssize_t n = 0;
  do {
    n = read(STDIN_FILENO, &c, 1);
  } while ((n == 1 && c != '\n') || (n < 0 && errno == EINTR));
  if (n != 1) std::_Exit(3);
}

std::string_view TextOption(int argc, char** argv, std::string_view name,
                            std::string_view fallback) {
  for (int i = 1; i < argc; ++i) {
    std::string_view word(argv[i]);
    if (word.starts_with("--") && word.substr(2).starts_with(name) &&
        word.substr(2 + name.size()).starts_with("=")) {
      return word.substr(2 + name.size() + 1);
    }
  }
  return fallback;
}

uint64_t NumberOption(int argc, char** argv, std::string_view name, uint64_t fallback) {
  const std::string_view text = TextOption(argc, argv, name, "");
  if (text.empty()) return fallback;
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    std::fprintf(stderr, "%s: --%.*s wants a number\n", program_invocation_short_name,
                 static_cast<int>(name.size()), name.data());
    std::exit(2);
  }
  return value;
}

void Fail(std::string_view what) {
  std::fprintf(stderr, "%s: %.*s: %s\n", program_invocation_short_name,
               static_cast<int>(what.size()), what.data(), strerror(errno));
  std::exit(1);
}

}  // namespace hostmm::benchmarks
