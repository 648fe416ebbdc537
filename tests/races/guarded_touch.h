// tests/races/guarded_touch.h
//
// One access to memory that may refuse it, many times a second: by an instruction, or by a system
// call.
//
// Threads:  any; Init once in each process (children inherit it). A SIGSEGV that is not of a touch
//           ends the process as it would have without us.
// Errors:   MUST-free: kOther when a touch ends in a way that protection does not explain.
#ifndef HOSTMM_TESTS_RACES_GUARDED_TOUCH_H_
#define HOSTMM_TESTS_RACES_GUARDED_TOUCH_H_

#include <cstdint>

namespace hostmm::test {

enum class Touch : uint32_t { kLoad, kStore, kCallStores, kTouches };
enum class Touched : uint32_t { kDone, kRefused, kOther };

void InitTouches();

// kStore writes back what it reads in one atomic step, kCallStores a zero: content is not the
// point.
Touched TryTouch(Touch touch, char* at);

const char* NameOf(Touch touch);

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_RACES_GUARDED_TOUCH_H_
