// benchmarks/store_records.h
//
// The store that is saved while it is written: records of 64 bytes, each written by one writer, in
// an order that is known beforehand. So an image of it can be checked completely: it must hold what
// the first n writes of each writer leave, for some n, and at most one record half-written.
//
// Writes:  begin = n, payload, end = n, in this order: who sees end == begin sees the payload.
// Units:   records; n counts a writer's writes from 1 on, 0 is how the store begins.
// Threads: a Sequence and a writer's records: that writer's alone.
#ifndef HOSTMM_BENCHMARKS_STORE_RECORDS_H_
#define HOSTMM_BENCHMARKS_STORE_RECORDS_H_

#include <cstdint>
#include <string>

namespace hostmm::benchmarks {

struct Record {
  uint64_t begin;
  uint64_t payload[6];
  uint64_t end;
};
static_assert(sizeof(Record) == 64);

struct Store {
  Record* records;
  uint64_t count;
  uint64_t writers;
};

// Uniform pseudo-random numbers (xorshift64*).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15 + 1) {}
  uint64_t Next();

 private:
  uint64_t state_;
};

// The records that a writer writes, one after another: any of its own, uniformly.
class Sequence {
 public:
  Sequence(const Store& store, uint64_t writer)
      : store_(store), writer_(writer), random_(writer + 1) {}
  uint64_t Next() {
    return random_.Next() % (store_.count / store_.writers) * store_.writers + writer_;
  }

 private:
  Store store_;
  uint64_t writer_;
  Random random_;
};

// Makes all of it as it begins.
void Fill(const Store& store);

void WriteRecord(Record* record, uint64_t n);

// RETURNS empty if `image` is a state that existed, else what is wrong with it.
std::string WhyWrong(const Store& image);

}  // namespace hostmm::benchmarks

#endif  // HOSTMM_BENCHMARKS_STORE_RECORDS_H_
