// tests/oracle/known_differences.h
//
// What a random program leaves out, because hostmm is known to differ there and the rest of the
// program would differ too. Each has a program in past_programs.cc that shows it, and a test there
// that fails when it is gone: then it is to be taken out of here.
//
// Threads:  any. Reads /proc/self/maps.
// Errors:   none.
#ifndef HOSTMM_TESTS_ORACLE_KNOWN_DIFFERENCES_H_
#define HOSTMM_TESTS_ORACLE_KNOWN_DIFFERENCES_H_

#include <cstdint>

namespace hostmm::oracle {

// mremap of several mappings at once, or of one and what is unmapped behind it: Linux 6.17 and
// later moves what there is, but refuses (EFAULT) what is registered with userfaultfd. hostmm moves
// the mappings of one region itself, not those of two, nor holes; what is one region cannot be told
// from here, so all of it is left out. RETURNS: whether [address, address + bytes) is such a range,
// with anonymous shared memory in it.
bool MovesSeveralMappings(uint64_t address, uint64_t bytes);

}  // namespace hostmm::oracle

#endif  // HOSTMM_TESTS_ORACLE_KNOWN_DIFFERENCES_H_
