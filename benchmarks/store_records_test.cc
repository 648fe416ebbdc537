#include "benchmarks/store_records.h"

#include <gtest/gtest.h>

#include <vector>

namespace hostmm::benchmarks {
namespace {

constexpr uint64_t kWriters = 2;
constexpr uint64_t kWrites = 500;

class StoreRecordsTest : public testing::Test {
 protected:
  StoreRecordsTest() : records_(256), store_{records_.data(), records_.size(), kWriters} {
    Fill(store_);
    for (uint64_t writer = 0; writer < kWriters; ++writer) {
      Sequence sequence(store_, writer);
      for (uint64_t n = 1; n <= kWrites; ++n) {
        last_[writer] = sequence.Next();
        WriteRecord(&records_[last_[writer]], n);
      }
      next_[writer] = sequence.Next();
    }
  }

  std::vector<Record> records_;
  Store store_;
  uint64_t last_[kWriters];
  uint64_t next_[kWriters];
};

TEST_F(StoreRecordsTest, StateThatExistedIsRight) {
  EXPECT_EQ(WhyWrong(store_), "");
  Fill(store_);
  EXPECT_EQ(WhyWrong(store_), "");
}

TEST_F(StoreRecordsTest, EachWriterWritesItsOwn) {
  for (uint64_t writer = 0; writer < kWriters; ++writer) {
    EXPECT_EQ(last_[writer] % kWriters, writer);
  }
}

TEST_F(StoreRecordsTest, OneHalfWrittenRecordIsRight) {
  records_[next_[1]].begin = kWrites + 1;
  records_[next_[1]].payload[0] = 77;
  EXPECT_EQ(WhyWrong(store_), "");
}

TEST_F(StoreRecordsTest, HalfWrittenElsewhereIsWrong) {
  records_[(next_[1] + kWriters) % records_.size()].begin = kWrites + 1;
  EXPECT_NE(WhyWrong(store_), "");
}

TEST_F(StoreRecordsTest, PayloadOfAnotherWriteIsWrong) {
  records_[last_[0]].payload[3] += 1;
  EXPECT_NE(WhyWrong(store_), "");
}

// An earlier write is missing while a later one is there: pages of two moments.
TEST_F(StoreRecordsTest, TwoMomentsAreWrong) {
  Sequence sequence(store_, 0);
  uint64_t earlier = 0;
  for (uint64_t n = 1; n < kWrites; ++n) earlier = sequence.Next();
  if (earlier == last_[0]) GTEST_SKIP() << "the two last writes go to one record";
  WriteRecord(&records_[earlier], 0);
  EXPECT_NE(WhyWrong(store_), "");
}

// The newest write of one writer as yet unseen is a state of a moment before.
TEST_F(StoreRecordsTest, WritersAreIndependent) {
  Fill(store_);
  Sequence sequence(store_, 0);
  for (uint64_t n = 1; n <= kWrites; ++n) WriteRecord(&records_[sequence.Next()], n);
  EXPECT_EQ(WhyWrong(store_), "");
}

}  // namespace
}  // namespace hostmm::benchmarks
