// What a person sees while an image is written: one line of a terminal, drawn over itself.
//
// Threads: one. Pure but for Show and Erase, which write to standard error.
#ifndef HOSTMM_RUNTIME_CLI_PROGRESS_LINE_H_
#define HOSTMM_RUNTIME_CLI_PROGRESS_LINE_H_

#include <chrono>
#include <cstdint>
#include <string>

namespace hostmm {

// "512.0 of 1024.0 MiB, 50 %, 812 MiB/s". No rate before there is one.
std::string ProgressText(uint64_t done, uint64_t total, std::chrono::duration<double> elapsed);

// "1.0 GiB", "123.4 MiB", "96 KiB".
std::string SizeText(uint64_t bytes);

class ProgressLine {
 public:
  enum class On { kYes, kNo };
  explicit ProgressLine(On on) : on_(on) {}
  ~ProgressLine() { Erase(); }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void Show(uint64_t done, uint64_t total);
  // Before another line goes to the terminal.
  void Erase();

 private:
  const On on_;
  bool shown_ = false;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_PROGRESS_LINE_H_
