// The signals that `hostmm run` passes on to its command instead of obeying them itself.
//
// While a ForwardedSignals lives they are blocked in this process and arrive on a signalfd. What
// the terminal sends (Ctrl-C) reaches the command without us, since both are in its foreground
// group: such signals are told from those that a process sent, and not passed on. Stop signals keep
// their default action: the shell's job control sees `run` stop together with the command.
#ifndef HOSTMM_RUNTIME_CLI_FORWARDED_SIGNALS_H_
#define HOSTMM_RUNTIME_CLI_FORWARDED_SIGNALS_H_

#include <signal.h>
#include <sys/types.h>

#include <optional>

#include "runtime/unique_fd.h"

namespace hostmm {

enum class SignalSource { kProcess, kTerminal };

struct ReceivedSignal {
  int number;
  SignalSource source;
  pid_t sender;
};

class ForwardedSignals {
 public:
  // Blocks the signals. The old mask is put back by RestoreMask(), in a child before exec.
  ForwardedSignals();
  ~ForwardedSignals();
  ForwardedSignals(const ForwardedSignals&) = delete;
  ForwardedSignals& operator=(const ForwardedSignals&) = delete;

  int fd() const { return fd_.get(); }  // readable when a signal has come; non-blocking
  std::optional<ReceivedSignal> Take() const;
  void RestoreMask() const;  // async-signal-safe

 private:
  sigset_t old_mask_;
  UniqueFd fd_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_FORWARDED_SIGNALS_H_
