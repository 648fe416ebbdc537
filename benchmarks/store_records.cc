#include "benchmarks/store_records.h"

#include <algorithm>
#include <atomic>
#include <unordered_map>

namespace hostmm::benchmarks {
namespace {

uint64_t PayloadWord(uint64_t n, uint64_t word) { return n * 0x2545f4914f6cdd1d + word; }

bool HasPayload(const Record& record, uint64_t n) {
  for (uint64_t word = 0; word < 6; ++word) {
    if (record.payload[word] != PayloadWord(n, word)) return false;
  }
  return true;
}

// The last write that the image has whole.
uint64_t LastWrite(const Store& image, uint64_t writer) {
  uint64_t last = 0;
  for (uint64_t i = writer; i < image.count; i += image.writers) {
    last = std::max(last, image.records[i].end);
  }
  return last;
}

std::string WhyWrongOf(const Store& image, uint64_t writer) {
  const uint64_t last = LastWrite(image, writer);
  std::unordered_map<uint64_t, uint64_t> expected;
  Sequence sequence(image, writer);
  for (uint64_t n = 1; n <= last; ++n) expected[sequence.Next()] = n;
  const uint64_t being_written = sequence.Next();
  for (uint64_t i = writer; i < image.count; i += image.writers) {
    const auto found = expected.find(i);
    const uint64_t n = found == expected.end() ? 0 : found->second;
    const Record& record = image.records[i];
    if (record.end == n && record.begin == n && HasPayload(record, n)) continue;
    if (record.end == n && record.begin == last + 1 && i == being_written) continue;
    return "record " + std::to_string(i) + " is of write " + std::to_string(record.begin) + "/" +
           std::to_string(record.end) + " where " + std::to_string(n) +
           " was expected after write " + std::to_string(last) + " of its writer";
  }
  return "";
}

}  // namespace

uint64_t Random::Next() {
  state_ ^= state_ >> 12;
  state_ ^= state_ << 25;
  state_ ^= state_ >> 27;
  return state_ * 0x2545f4914f6cdd1d;
}

void Fill(const Store& store) {
  for (uint64_t i = 0; i < store.count; ++i) WriteRecord(&store.records[i], 0);
}

void WriteRecord(Record* record, uint64_t n) {
  // In this order for whoever takes an image, at whatever moment.
  std::atomic_ref<uint64_t>(record->begin).store(n, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  for (uint64_t word = 0; word < 6; ++word) {
    std::atomic_ref<uint64_t>(record->payload[word])
        .store(PayloadWord(n, word), std::memory_order_relaxed);
  }
  std::atomic_ref<uint64_t>(record->end).store(n, std::memory_order_release);
}

std::string WhyWrong(const Store& image) {
  std::string why;
  for (uint64_t writer = 0; writer < image.writers && why.empty(); ++writer) {
    why = WhyWrongOf(image, writer);
  }
  return why;
}

}  // namespace hostmm::benchmarks
