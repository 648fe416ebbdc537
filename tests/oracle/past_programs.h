// tests/oracle/past_programs.h
//
// Programs that have shown a difference once, as an oracle has printed them, each with what was
// wrong. They are run again with every test.
//
// Threads:  any; constants.
#ifndef HOSTMM_TESTS_ORACLE_PAST_PROGRAMS_H_
#define HOSTMM_TESTS_ORACLE_PAST_PROGRAMS_H_

#include <vector>

#include "tests/oracle/operation.h"

namespace hostmm::oracle {

// kDiffers: hostmm still does it otherwise, and random programs leave it out.
enum class Verdict { kAgrees, kDiffers };

struct PastProgram {
  const char* what;
  Verdict verdict;
  Program program;
};

const std::vector<PastProgram>& PastPrograms();

}  // namespace hostmm::oracle

#endif  // HOSTMM_TESTS_ORACLE_PAST_PROGRAMS_H_
