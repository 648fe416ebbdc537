// tests/oracle/guarded_access.h
//
// Accesses that may fault: a fault is an observation (signal, si_code, address), not the end.
//
// Threads:  one. CatchFaults once in a process; its children inherit it.
// Errors:   a fault outside of an access ends the process as it would have without us.
#ifndef HOSTMM_TESTS_ORACLE_GUARDED_ACCESS_H_
#define HOSTMM_TESTS_ORACLE_GUARDED_ACCESS_H_

#include <cstdint>

#include "tests/oracle/operation.h"

namespace hostmm::oracle {

// What stands at both ends of a page that an actor has written. Its first byte is an instruction: a
// return.
struct Stamp {
  uint64_t head;  // kReturn, the writer, a magic number
  uint64_t sequence;
  uint64_t page;  // of the writer's slot
  uint64_t check;
};

void CatchFaults();

// Each tells in `seen` what happened, with addresses counted from `base`.
void ReadByte(const char* at, const char* base, Observation* seen);
void WriteByte(char* at, char value, const char* base, Observation* seen);
// From `at` on, page after page: a digest, and the stamp of the last.
void ReadPages(const char* at, uint64_t pages, const char* base, Observation* seen);
void StampPages(char* at, uint64_t pages, uint32_t writer, uint32_t sequence, const char* base,
                Observation* seen);
// kSkipped if there is no return.
void Execute(const char* at, const char* base, Observation* seen);

// For bytes that did not come through a mapping.
uint64_t Digest(const char* bytes, uint64_t count, uint64_t digest = 0);
Stamp MakeStamp(uint32_t writer, uint32_t sequence, uint64_t page);

}  // namespace hostmm::oracle

#endif  // HOSTMM_TESTS_ORACLE_GUARDED_ACCESS_H_
