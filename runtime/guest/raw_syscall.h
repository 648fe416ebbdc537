// System calls without libc: no errno, no cancellation point, no hook of our own in the way.
//
// Returns what the kernel returns: a value, or -errno in [-4095, -1]. Safe in signal handlers, in a
// child between fork and exec, and in the agent thread, which shares the thread pointer (and so
// errno) of the thread that made it.
#ifndef HOSTMM_RUNTIME_GUEST_RAW_SYSCALL_H_
#define HOSTMM_RUNTIME_GUEST_RAW_SYSCALL_H_

#include <sys/syscall.h>

#include <type_traits>

namespace hostmm::raw {

inline bool Failed(long result) { return result < 0 && result >= -4095; }

template <typename T>
inline long Word(T value) {
  if constexpr (std::is_null_pointer_v<T>) {
    return 0;
  } else if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<long>(value);
  } else {
    return static_cast<long>(value);
  }
}

#if defined(__x86_64__)
inline long Syscall6(long number, long a, long b, long c, long d, long e, long f) {
  long result;
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}
#elif defined(__aarch64__)
inline long Syscall6(long number, long a, long b, long c, long d, long e, long f) {
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc 0"
                   : "+r"(x0)
                   : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                   : "memory");
  return x0;
}
#else
#error "hostmm's guest side needs the system call instruction of this architecture here"
#endif

template <typename A = long, typename B = long, typename C = long, typename D = long,
          typename E = long, typename F = long>
inline long Call(long number, A a = 0, B b = 0, C c = 0, D d = 0, E e = 0, F f = 0) {
  return Syscall6(number, Word(a), Word(b), Word(c), Word(d), Word(e), Word(f));
}

}  // namespace hostmm::raw

#endif  // HOSTMM_RUNTIME_GUEST_RAW_SYSCALL_H_
