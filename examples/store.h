// What the store examples save: records, between which money is moved. Every record has a check,
// and what all have together never changes: an image of it says by itself whether it is of one
// moment.
#ifndef HOSTMM_EXAMPLES_STORE_H_
#define HOSTMM_EXAMPLES_STORE_H_

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

inline constexpr size_t kStoreBytes = size_t{64} << 20;
inline constexpr uint32_t kRecords = 4'000'000;
inline constexpr uint64_t kAmount = 1000;  // in each at first

struct Record {
  void Set(uint64_t to) { amount = to, check = ~to; }
  uint64_t amount, check;
};

inline void Check(bool holds, const char* what) {
  std::printf("%s: %s\n", what, holds ? "yes" : "NO");
  if (!holds) std::exit(1);
}

inline void Fill(Record* records) {
  for (uint32_t i = 0; i < kRecords; ++i) records[i].Set(kAmount);
}

// A transaction: one, from any record to any other. The caller has the store's lock.
inline void Transfer(Record* records, std::minstd_rand* random) {
  Record& from = records[(*random)() % kRecords];
  from.Set(from.amount - 1);
  Record& to = records[(*random)() % kRecords];
  to.Set(to.amount + 1);
}

// Every record whole, and nothing lost or made.
inline bool IsWhole(const Record* records) {
  uint64_t sum = 0;
  for (uint32_t i = 0; i < kRecords; ++i) {
    if (records[i].check != ~records[i].amount) return false;
    sum += records[i].amount;
  }
  return sum == kAmount * kRecords;
}

#endif  // HOSTMM_EXAMPLES_STORE_H_
