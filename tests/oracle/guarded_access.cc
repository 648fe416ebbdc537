#include "tests/oracle/guarded_access.h"

#include <setjmp.h>
#include <signal.h>

#include <cstring>

namespace hostmm::oracle {
namespace {

constexpr uint64_t kReturn = 0xC3;           // x86-64
constexpr uint64_t kMagic = 0x5354414D5000;  // arbitrary, low two bytes free
constexpr uint64_t kStampWords = sizeof(Stamp) / sizeof(uint64_t);
constexpr uint64_t kPageWords = kPage / sizeof(uint64_t);

sigjmp_buf g_escape;
volatile sig_atomic_t g_armed = 0;
volatile int g_signal = 0;
volatile int g_code = 0;
void* volatile g_address = nullptr;

void OnFault(int number, siginfo_t* info, void*) {
  if (g_armed == 0) {
    signal(number, SIG_DFL);
    return;
  }
  g_signal = number;
  g_code = info->si_code;
  g_address = info->si_addr;
  siglongjmp(g_escape, 1);
}

// Not inlined: what the compiler keeps in registers across sigsetjmp is lost.
template <class Access>
__attribute__((noinline)) void Guarded(const char* base, Observation* seen, Access access) {
  // SA_NODEFER below: no signal mask to restore, which would be two more system calls.
  if (sigsetjmp(g_escape, 0) == 0) {
    g_armed = 1;
    access();
    g_armed = 0;
    return;
  }
  g_armed = 0;
  seen->outcome = Outcome::kSignal;
  seen->number = g_signal;
  seen->code = g_code;
  seen->place = static_cast<const char*>(g_address) - base;
}

uint64_t Mix(uint64_t digest, uint64_t word) {
  // A multiplicative hash (Knuth's 64-bit constant), with the high bits folded in.
  digest = (digest ^ word) * 6364136223846793005u;
  return digest ^ (digest >> 29);
}

uint64_t CheckOf(const Stamp& stamp) {
  return Mix(Mix(Mix(1, stamp.head), stamp.sequence), stamp.page);
}

// `zero`: whether the whole page is.
void Describe(const Stamp& first, const Stamp& last, bool zero, Observation* seen) {
  seen->writer = 0;
  seen->sequence = 0;
  if (zero) {
    seen->stamp = StampState::kZero;
    return;
  }
  const bool whole = first.check == CheckOf(first) && memcmp(&first, &last, sizeof(first)) == 0;
  seen->stamp = whole ? StampState::kGood : StampState::kOther;
  if (!whole) return;
  seen->writer = static_cast<uint32_t>(first.head >> 8 & 0xFF);
  seen->sequence = static_cast<uint32_t>(first.sequence);
}

}  // namespace

void CatchFaults() {
  struct sigaction action = {};
  action.sa_sigaction = OnFault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
}

void ReadByte(const char* at, const char* base, Observation* seen) {
  Guarded(base, seen, [&] {
    seen->value = static_cast<unsigned char>(*static_cast<const volatile char*>(at));
  });
}

void WriteByte(char* at, char value, const char* base, Observation* seen) {
  Guarded(base, seen, [&] { *static_cast<volatile char*>(at) = value; });
}

void ReadPages(const char* at, uint64_t pages, const char* base, Observation* seen) {
  Guarded(base, seen, [&] {
    for (uint64_t page = 0; page < pages; ++page) {
      const auto* words = reinterpret_cast<const volatile uint64_t*>(at + page * kPage);
      uint64_t copy[kPageWords];
      uint64_t any = 0;
      uint64_t digest = seen->value;
      for (uint64_t i = 0; i < kPageWords; ++i) any |= copy[i] = words[i];
      for (uint64_t i = 0; any != 0 && i < kPageWords; ++i) digest = Mix(digest, copy[i]);
      seen->value = Mix(digest, any);
      Stamp first;
      Stamp last;
      memcpy(&first, copy, sizeof(first));
      memcpy(&last, copy + kPageWords - kStampWords, sizeof(last));
      Describe(first, last, any == 0, seen);
    }
  });
}

void StampPages(char* at, uint64_t pages, uint32_t writer, uint32_t sequence, const char* base,
                Observation* seen) {
  Guarded(base, seen, [&] {
    for (uint64_t page = 0; page < pages; ++page) {
      char* const start = at + page * kPage;
      const Stamp stamp = MakeStamp(writer, sequence, static_cast<uint64_t>(start - base) / kPage);
      uint64_t words[kStampWords];
      memcpy(words, &stamp, sizeof(stamp));
      auto* const first = reinterpret_cast<volatile uint64_t*>(start);
      auto* const last = first + kPageWords - kStampWords;
      for (uint64_t i = 0; i < kStampWords; ++i) first[i] = words[i];
      for (uint64_t i = 0; i < kStampWords; ++i) last[i] = words[i];
    }
  });
}

void Execute(const char* at, const char* base, Observation* seen) {
  ReadByte(at, base, seen);
  if (seen->outcome != Outcome::kOk) return;
  if (seen->value != kReturn) {
    seen->outcome = Outcome::kSkipped;
    return;
  }
  Guarded(base, seen, [at] { reinterpret_cast<void (*)()>(reinterpret_cast<uintptr_t>(at))(); });
}

uint64_t Digest(const char* bytes, uint64_t count, uint64_t digest) {
  for (uint64_t i = 0; i < count; i += sizeof(uint64_t)) {
    uint64_t word = 0;
    memcpy(&word, bytes + i, count - i < sizeof(word) ? count - i : sizeof(word));
    digest = Mix(digest, word);
  }
  return Mix(digest, count);
}

Stamp MakeStamp(uint32_t writer, uint32_t sequence, uint64_t page) {
  Stamp stamp = {kReturn | uint64_t{writer} << 8 | kMagic << 16, sequence, page, 0};
  stamp.check = CheckOf(stamp);
  return stamp;
}

}  // namespace hostmm::oracle
