#include "tests/races/guarded_touch.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>

namespace hostmm::test {
namespace {

thread_local sigjmp_buf g_escape;
thread_local volatile sig_atomic_t g_armed = 0;
thread_local volatile sig_atomic_t g_code = 0;
int g_zero = -1;

void OnFault(int number, siginfo_t* info, void*) {
  if (g_armed == 0) {
    signal(number, SIG_DFL);
    return;
  }
  g_code = number == SIGSEGV ? info->si_code : 0;
  siglongjmp(g_escape, 1);
}

Touched TouchByInstruction(Touch touch, char* at) {
  // Without the signal mask, which would cost two system calls for each touch; so the handler does
  // not block its signal.
  if (sigsetjmp(g_escape, 0) != 0) {
    g_armed = 0;
    return g_code == SEGV_ACCERR ? Touched::kRefused : Touched::kOther;
  }
  g_armed = 1;
  if (touch == Touch::kStore) {
    __atomic_fetch_add(at, 0, __ATOMIC_SEQ_CST);
  } else {
    __atomic_load_n(at, __ATOMIC_SEQ_CST);
  }
  g_armed = 0;
  return Touched::kDone;
}

}  // namespace

void InitTouches() {
  struct sigaction action = {};
  action.sa_sigaction = OnFault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
  g_zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
}

Touched TryTouch(Touch touch, char* at) {
  if (touch != Touch::kCallStores) return TouchByInstruction(touch, at);
  const ssize_t got = read(g_zero, at, 1);
  if (got == 1) return Touched::kDone;
  return got == -1 && errno == EFAULT ? Touched::kRefused : Touched::kOther;
}

const char* NameOf(Touch touch) {
  static constexpr const char* kNames[] = {"load", "store", "store by read(2)"};
  return kNames[static_cast<uint32_t>(touch)];
}

}  // namespace hostmm::test
