#include "runtime/cli/forwarded_signals.h"

#include <sys/signalfd.h>
#include <unistd.h>

#include <array>

namespace hostmm {
namespace {

constexpr auto kSignals = std::to_array<int>({SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2});

sigset_t ForwardedSet() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : kSignals) sigaddset(&set, number);
  return set;
}

}  // namespace

ForwardedSignals::ForwardedSignals() {
  const sigset_t set = ForwardedSet();
  sigprocmask(SIG_BLOCK, &set, &old_mask_);
  fd_.reset(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

ForwardedSignals::~ForwardedSignals() { RestoreMask(); }

std::optional<ReceivedSignal> ForwardedSignals::Take() const {
  signalfd_siginfo info = {};
  if (read(fd_.get(), &info, sizeof(info)) != sizeof(info)) return std::nullopt;
  // SI_USER, SI_QUEUE, SI_TKILL are zero or less; what the kernel raises by itself is above.
  const SignalSource source = info.ssi_code <= 0 ? SignalSource::kProcess : SignalSource::kTerminal;
  return ReceivedSignal{static_cast<int>(info.ssi_signo), source, static_cast<pid_t>(info.ssi_pid)};
}

void ForwardedSignals::RestoreMask() const { sigprocmask(SIG_SETMASK, &old_mask_, nullptr); }

}  // namespace hostmm
