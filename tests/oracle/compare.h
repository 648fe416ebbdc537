// tests/oracle/compare.h
//
// Whether two sides have seen the same, what the first difference is, and the shortest program that
// still shows one. A side is anything that turns a program into observations: plain Linux, a
// managed run, a model.
//
// Threads:  none.
// Errors:   none; what goes wrong on a side is its `trouble`, and a difference.
#ifndef HOSTMM_TESTS_ORACLE_COMPARE_H_
#define HOSTMM_TESTS_ORACLE_COMPARE_H_

#include <chrono>
#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tests/oracle/operation.h"

namespace hostmm::oracle {

struct Transcript {
  std::vector<Observation> seen = {};
  std::string trouble = {};  // what went wrong beside the observations; empty if nothing did
};

using Side = std::function<Transcript(const Program& program)>;

struct Difference {
  size_t operation;  // the first that differs; the number of operations if only troubles do
  std::string text;
};

std::optional<Difference> Compare(const Program& program, const Transcript& expected,
                                  const Transcript& actual);

// Takes operations, objects and processes out of a program for as long as it still differs and the
// time lasts. REQUIRES: it differs.
Program Shrink(Program program, const Side& expected, const Side& actual,
               std::chrono::seconds patience);

// The program as C++ and, for a short one, what each side saw of each operation.
std::string Explain(const Program& program, const Transcript& expected, const Transcript& actual);

}  // namespace hostmm::oracle

#endif  // HOSTMM_TESTS_ORACLE_COMPARE_H_
