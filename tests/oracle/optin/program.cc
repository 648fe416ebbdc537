#include "tests/oracle/optin/program.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <random>

namespace hostmm::oracle {
namespace {

// How often each is drawn, of the sum.
constexpr uint32_t kWeights[] = {16, 7, 14, 4, 8, 28, 28, 5, 5, 2, 2};
static_assert(std::size(kWeights) == static_cast<size_t>(Do::kKinds));
constexpr const char* kNames[] = {"kMap",    "kUnmap", "kProtect", "kProtectForAll",
                                  "kAdvise", "kRead",  "kWrite",   "kMove",
                                  "kFork",   "kExit",  "kKill"};

// Steps that meet: few pages, at the edges of blocks and in them.
uint32_t DrawPage(std::mt19937_64& random) {
  const uint32_t block = random() % kSlotBlocks;
  static constexpr uint32_t kPlaces[] = {0, 1, 2, 255, 256, 510, 511};
  return block * kBlockPages + kPlaces[random() % std::size(kPlaces)];
}

uint32_t DrawPages(std::mt19937_64& random) {
  static constexpr uint32_t kLengths[] = {1, 1, 2, 255, 511, 512, 513, 1024, 1536, 2048};
  return kLengths[random() % std::size(kLengths)];
}

uint32_t DrawMapNumber(std::mt19937_64& random, Known known) {
  // Mostly opt-in: the rest is there to be in the way.
  const uint32_t how = random() % 3 == 0 ? random() % static_cast<uint32_t>(MapHow::kHows) : 0;
  // Mostly writable.
  const uint32_t prot = random() % 3 == 0 ? random() % 3 : 2;
  const bool free = known == Known::kTaken || static_cast<MapHow>(how) == MapHow::kPlain;
  return how | (free ? prot : 2) << 8;
}

}  // namespace

const int kAdvices[kAdviceCount] = {MADV_DONTNEED, MADV_COLD,   MADV_PAGEOUT,
                                    MADV_WILLNEED, MADV_REMOVE, 102 /* MADV_GUARD_INSTALL */};
const int kProts[3] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE};

MapRange RangeOfMap(const Step& step) {
  const uint32_t slot_block = (step.page >> 8) % kSlotBlocks;
  const uint32_t file_block = (step.page & 0xff) % kFileBlocks;
  const uint32_t most = std::min(kSlotBlocks - slot_block, kFileBlocks - file_block);
  return {slot_block, file_block, 1 + step.pages % most};
}

PageRange RangeOf(const Step& step) {
  const uint32_t first = step.page % kSlotPages;
  return {first, std::min(std::max(step.pages, 1u), kSlotPages - first)};
}

Steps GenerateSteps(uint64_t seed, size_t count, Known known) {
  std::mt19937_64 random(seed);
  std::discrete_distribution<uint32_t> kinds(std::begin(kWeights), std::end(kWeights));
  Steps steps;
  for (size_t i = 0; i < count; ++i) {
    Step step = {};
    step.what = static_cast<Do>(kinds(random));
    step.actor = random() % kActors;
    step.slot = random() % kSlots;
    step.file = random() % kFiles;
    step.page = step.what == Do::kMap ? (random() % kSlotBlocks) << 8 | random() % kFileBlocks
                                      : DrawPage(random);
    step.pages = DrawPages(random);
    step.number = step.what == Do::kMap    ? DrawMapNumber(random, known)
                  : step.what == Do::kMove ? DrawPage(random)
                                           : 1 + random() % 200;
    steps.push_back(step);
  }
  return steps;
}

std::string ToCpp(const Step& step) {
  std::string text = std::string("{Do::") + kNames[static_cast<uint32_t>(step.what)];
  for (const uint32_t number :
       {step.actor, step.slot, step.file, step.page, step.pages, step.number}) {
    text += ", " + std::to_string(number);
  }
  return text + "}";
}

std::string ToCpp(const Steps& steps) {
  std::string text = "const Steps kProgram = {\n";
  for (const Step& step : steps) text += "    " + ToCpp(step) + ",\n";
  return text + "};\n";
}

std::string ToText(const Seen& seen) {
  switch (seen.kind) {
    case Seen::kOk:
      return "ok " + std::to_string(seen.number);
    case Seen::kErrno:
      return strerrorname_np(static_cast<int>(seen.number));
    case Seen::kMapErr:
      return "SIGSEGV/MAPERR";
    case Seen::kAccErr:
      return "SIGSEGV/ACCERR";
    case Seen::kSkipped:
      return "skipped";
    case Seen::kOther:
      break;
  }
  return "something else " + std::to_string(seen.number);
}

}  // namespace hostmm::oracle
