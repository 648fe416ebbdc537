#include "runtime/image/fake_source.h"

#include <algorithm>
#include <cstring>
#include <random>

namespace hostmm {
namespace {

template <class Part>
void Append(std::string* image, const Part& part) {
  image->append(reinterpret_cast<const char*>(&part), sizeof(part));
}

}  // namespace

void FakeMemory::Fill(uint64_t page, uint64_t seed) {
  std::mt19937_64 noise(seed);
  for (size_t at = 0; at < kImagePage; at += sizeof(uint64_t)) {
    const uint64_t word = noise();
    std::memcpy(bytes.data() + page * kImagePage + at, &word, sizeof(word));
  }
  blocks[page / kPagesOfBlock].Set(page % kPagesOfBlock);
}

void FakeMemory::Clear(uint64_t page) {
  std::memset(bytes.data() + page * kImagePage, 0, kImagePage);
  blocks[page / kPagesOfBlock].Set(page % kPagesOfBlock);
}

FakeMemory FakeMemory::Sample() {
  FakeMemory memory(6 * kImageBlock + 5 * kImagePage);
  uint64_t seed = 0;
  for (const uint64_t page : {0, 1, 511,                             // block 0: both ends
                              512 + 100,                             // block 1
                              3 * 512 + 7, 3 * 512 + 9,              // block 3, after a gap
                              5 * 512, 5 * 512 + 256,                // block 5
                              6 * 512, 6 * 512 + 3, 6 * 512 + 4}) {  // the short one
    memory.Fill(page, ++seed);
  }
  memory.Clear(4 * 512 + 3);  // listed, and zero all the same
  return memory;
}

ImageHeader FakeHeader(const FakeMemory& memory, const ImageId& base) {
  ImageHeader header = {};
  header.magic = kImageMagic;
  header.version = kImageVersion;
  header.unit = kImagePage;
  header.length = memory.bytes.size();
  header.id = kFakeId;
  header.base = base;
  std::strcpy(header.name, "fake region");
  SealHeader(&header);
  return header;
}

std::string ImageOf(const FakeMemory& memory, const ImageId& base) {
  const ImageHeader header = FakeHeader(memory, base);
  std::string image;
  Append(&image, header);
  ImagePosition position = Behind(header);
  for (const auto& [index, changed] : memory.blocks) {
    ImageRecord record = {};
    record.magic = kRecordMagic;
    record.block = index;
    std::string data;
    for (uint32_t page = 0; page < kPagesOfBlock; ++page) {
      const uint64_t at = index * kImageBlock + page * kImagePage;
      if (at >= header.length || !changed.Test(page)) continue;
      const std::string content = memory.bytes.substr(at, kImagePage);
      if (content.find_first_not_of('\0') != std::string::npos) {
        record.data.Set(page);
        ++record.data_pages;
        data += content;
      } else if (header.incremental()) {
        record.zero.Set(page);
        ++record.zero_pages;
      }
    }
    if (record.data_pages == 0 && record.zero_pages == 0) continue;
    record.data_hash = ImageHash(data.data(), data.size(), 0);
    SealRecord(position.chain, &record);
    position = Behind(position, record);
    Append(&image, record);
    image += data;
  }
  ImageEnd end;
  SealEnd(position, &end);
  Append(&image, end);
  return image;
}

std::vector<size_t> PartsOf(const std::string& image) {
  std::vector<size_t> parts;
  size_t at = kImagePage;
  while (at < image.size()) {
    parts.push_back(at);
    ImageRecord record;
    std::memcpy(&record, image.data() + at, sizeof(record));
    if (record.magic != kRecordMagic) break;
    at += kImagePage + record.data_pages * kImagePage;
  }
  return parts;
}

std::optional<uint64_t> FakeSource::NextBlock(uint64_t from) {
  const auto found = memory_.blocks.lower_bound(from);
  if (found == memory_.blocks.end()) return std::nullopt;
  return found->first;
}

void FakeSource::ReadBlock(uint64_t block, std::byte* buffer, PageBitmap* pages,
                           std::function<void(int error)> done) {
  const int error = on_read(block);
  const uint64_t start = block * kImageBlock;
  const size_t bytes = std::min(kImageBlock, memory_.bytes.size() - start);
  std::memcpy(buffer, memory_.bytes.data() + start, bytes);
  *pages = memory_.blocks.at(block);
  done(error);
}

}  // namespace hostmm
