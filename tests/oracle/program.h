// tests/oracle/program.h
//
// Programs of operations: made from a seed, stored, printed as C++ that can be pasted into
// past_programs.cc. Nothing here knows against what a program is checked.
//
// Threads:  none.
// Errors:   LoadProgram returns a program without actors for a file that is none.
#ifndef HOSTMM_TESTS_ORACLE_PROGRAM_H_
#define HOSTMM_TESTS_ORACLE_PROGRAM_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "tests/oracle/operation.h"

namespace hostmm::oracle {

Program GenerateProgram(uint64_t seed, size_t operations);

// `MapOp{0, 1, ...}`.
std::string ToCpp(const Operation& operation);
// A definition `const Program kProgram = {...};`.
std::string ToCpp(const Program& program);

bool SaveProgram(const Program& program, const std::string& path);
Program LoadProgram(const std::string& path);

}  // namespace hostmm::oracle

#endif  // HOSTMM_TESTS_ORACLE_PROGRAM_H_
