#include "tests/oracle/program.h"

#include <sys/mman.h>

#include <array>
#include <bit>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <random>
#include <type_traits>

// Newer than the headers of Debian 12.
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

namespace hostmm::oracle {
namespace {

constexpr uint32_t kBlock = 512;              // pages in 2 MiB
constexpr uint32_t kManaged = 4 * kBlock;     // the shortest mapping that hostmm manages: 8 MiB
constexpr uint32_t kGigabyte = 512 * kBlock;  // from here on another alignment is chosen
constexpr uint32_t kLongFill = 2 * kBlock;    // arbitrary: a few of these cost as much as the rest

// MADV_HWPOISON and MADV_SOFT_OFFLINE take memory from the machine; MADV_COLLAPSE may answer EAGAIN
// on plain Linux as it likes; MADV_PAGEOUT needs swap to do anything, and then takes long.
constexpr uint32_t kAdvices[] = {MADV_NORMAL,        MADV_RANDOM,         MADV_SEQUENTIAL,
                                 MADV_WILLNEED,      MADV_DONTNEED,       MADV_DONTNEED,
                                 MADV_DONTNEED,      MADV_FREE,           MADV_REMOVE,
                                 MADV_REMOVE,        MADV_REMOVE,         MADV_DONTFORK,
                                 MADV_DONTFORK,      MADV_DOFORK,         MADV_HUGEPAGE,
                                 MADV_NOHUGEPAGE,    MADV_DONTDUMP,       MADV_DODUMP,
                                 MADV_WIPEONFORK,    MADV_KEEPONFORK,     MADV_COLD,
                                 MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_DONTNEED_LOCKED,
                                 MADV_GUARD_INSTALL, MADV_GUARD_REMOVE,   99};

// Numbers that meet: pages and lengths at and beside the borders of blocks, and half of the time
// the place of the last mapping or access again, because what goes wrong is what happens to the
// same thing twice.
class Dice {
 public:
  explicit Dice(uint64_t seed) : random_(seed) {
    for (uint32_t& page : often_) page = Page();
  }

  uint32_t Below(uint32_t end) { return static_cast<uint32_t>(random_() % end); }
  bool OneIn(uint32_t count) { return Below(count) == 0; }
  uint32_t Name() { return Below(12); }  // a multiple of 1, 2, 3 and 4: no actor is preferred
  uint32_t TwistOrNot() { return OneIn(30) ? Below(kTwists) : uint32_t{kStraight}; }
  uint32_t Prot() {
    constexpr uint32_t kOften[] = {PROT_READ, PROT_READ | PROT_WRITE, PROT_NONE};
    return OneIn(3) ? Below(8) : kOften[Below(std::size(kOften))];
  }

  uint32_t Page() {
    switch (Below(5)) {
      case 0:
        return Below(5 * kBlock);
      case 1:
        return Below(10) * kBlock + Below(3) + kBlock - 1;  // beside a border
      case 2:
        return Below(4);
      default:
        return Below(10) * kBlock;
    }
  }
  uint32_t Pages() {
    switch (Below(6)) {
      case 0:
        return 1 + Below(4);
      case 1:
        return 1 + Below(4 * kBlock);
      case 2:
        return kBlock - 1 + Below(3);
      default:
        return (1 + Below(6)) * kBlock;
    }
  }
  uint32_t MapPages() {
    if (OneIn(60)) return kGigabyte + Below(4);
    switch (Below(6)) {
      case 0:
        return kManaged;
      case 1:
        return kManaged - 1 + Below(3);
      case 2:
        return 1 + Below(kManaged);
      case 3:
        return kManaged + Below(3 * kBlock);
      default:
        return (4 + Below(5)) * kBlock;
    }
  }

  // An actor's slot: that of the last mapping, or any.
  void Choose(uint32_t* actor, uint32_t* slot) {
    const bool again = OneIn(2);
    *actor = again ? actor_ : Name();
    *slot = again || OneIn(2) ? slot_ : Below(kSlots);
  }
  void Remember(uint32_t actor, uint32_t slot) {
    actor_ = actor;
    slot_ = slot;
  }
  // A page: one of the few that the program comes back to, or any near the last.
  uint32_t NearPage() {
    if (!OneIn(4)) return page_ = often_[Below(std::size(often_))];
    if (OneIn(3)) page_ = Page();
    return page_ / kBlock * kBlock + Below(kBlock + 2);
  }

 private:
  std::mt19937_64 random_;
  uint32_t actor_ = 0;
  uint32_t slot_ = 0;
  uint32_t page_ = 0;
  uint32_t often_[6];  // arbitrary: few enough that what is written is read
};

Operation GenerateMap(Dice& dice) {
  MapOp op = {};
  dice.Choose(&op.actor, &op.slot);
  if (dice.OneIn(2)) op.slot = dice.Below(kSlots);
  dice.Remember(op.actor, op.slot);
  op.place = dice.OneIn(3) ? uint32_t{kAnywhere} : dice.Below(kPlaces);
  op.page = dice.OneIn(2) ? 0 : dice.Page();
  op.pages = dice.MapPages();
  op.trim = dice.OneIn(4) ? dice.Below(kPage) : 0;
  constexpr uint32_t kOften[] = {kAnonymousShared, kAnonymousShared, kAnonymousPrivate};
  op.source = dice.OneIn(2) ? kOften[dice.Below(3)] : kFirstObject + dice.Below(12);
  // A private mapping as long as a shared one is not what is looked for here.
  if (op.source == kAnonymousPrivate && !dice.OneIn(4)) op.pages = 1 + dice.Below(kBlock);
  op.prot = dice.OneIn(6) ? dice.Below(8) : uint32_t{PROT_READ | PROT_WRITE};
  op.flags = dice.OneIn(4) ? dice.Below(16) : 0;
  // What is filled at once must be small enough to be filled often.
  if (op.pages >= kGigabyte) op.flags &= ~uint32_t{kPopulate | kLocked};
  op.object_page = dice.OneIn(3) ? dice.Page() : 0;
  return op;
}

Operation GenerateRemap(Dice& dice) {
  RemapOp op = {};
  dice.Choose(&op.actor, &op.slot);
  op.page = dice.OneIn(2) ? 0 : dice.Page();
  op.old_pages = dice.OneIn(2) ? dice.MapPages() : dice.Pages();
  op.new_pages = dice.OneIn(2) ? op.old_pages : dice.MapPages();
  op.to_slot = dice.Below(kSlots);
  op.to_page = dice.OneIn(2) ? 0 : dice.Page();
  op.how = dice.Below(kRemapHows);
  op.twist = dice.TwistOrNot();
  if (dice.OneIn(2)) dice.Remember(op.actor, op.to_slot);
  return op;
}

// Calls that change what is mapped, or how.
Operation GenerateChange(Dice& dice) {
  uint32_t actor = 0;
  uint32_t slot = 0;
  dice.Choose(&actor, &slot);
  const uint32_t page = dice.OneIn(3) ? 0 : dice.Page();
  const uint32_t pages = dice.Pages();
  const uint32_t kind = dice.Below(100);
  if (kind < 20) return GenerateMap(dice);
  if (kind < 28) return UnmapOp{actor, slot, page, pages, dice.TwistOrNot()};
  if (kind < 42) return GenerateRemap(dice);
  if (kind < 62) return ProtectOp{actor, slot, page, pages, dice.Prot(), dice.TwistOrNot()};
  if (kind < 90) {
    return AdviseOp{
        actor, slot, page, pages, kAdvices[dice.Below(std::size(kAdvices))], dice.TwistOrNot()};
  }
  if (kind < 96) return LockOp{actor, slot, page, 1 + dice.Below(32), dice.Below(2)};
  return DetachOp{actor, slot};
}

// Objects through their descriptors.
Operation GenerateObject(Dice& dice) {
  const uint32_t actor = dice.Name();
  const uint32_t object = dice.Name();
  const uint32_t kind = dice.Below(100);
  if (kind < 35) return ObjectReadOp{actor, object, dice.NearPage()};
  if (kind < 70) return ObjectWriteOp{actor, object, dice.NearPage()};
  if (kind < 80) {
    return TruncateOp{actor, object, dice.Below(11 * kBlock),
                      dice.OneIn(2) ? 0 : dice.Below(kPage)};
  }
  if (kind < 92) return PunchOp{actor, object, dice.Page(), dice.Pages()};
  return CountAttachedOp{actor, object};
}

// Accesses by the processor, by the kernel, and by another process.
Operation GenerateAccess(Dice& dice) {
  uint32_t actor = 0;
  uint32_t slot = 0;
  dice.Choose(&actor, &slot);
  const uint32_t page = dice.NearPage();
  const uint32_t byte = dice.OneIn(4) ? dice.Below(kPage) : 0;
  const uint32_t kind = dice.Below(1000);
  if (kind < 400) return ReadOp{actor, slot, page, byte};
  if (kind < 780) return WriteOp{actor, slot, page, byte};
  if (kind < 800) return ExecuteOp{actor, slot, page};
  if (kind < 810) return ScanOp{actor, slot, page, dice.Below(kLongFill)};
  if (kind < 820) return FillOp{actor, slot, page, dice.Below(kLongFill)};
  if (kind < 880) return ReceiveOp{actor, slot, page, byte, 1 + dice.Below(3 * kPage)};
  if (kind < 930) return SendOp{actor, slot, page, byte, 1 + dice.Below(3 * kPage)};
  if (kind < 970) return PeekOp{actor, dice.Name(), slot, page, 1 + dice.Below(3)};
  return PokeOp{actor, dice.Name(), slot, page};
}

Operation GenerateOperation(Dice& dice) {
  const uint32_t kind = dice.Below(1000);
  if (kind < 780) return GenerateAccess(dice);
  if (kind < 930) return GenerateChange(dice);
  if (kind < 982) return GenerateObject(dice);
  if (kind < 992) return ForkOp{dice.Name(), dice.OneIn(10) ? kBareFork : kFork};
  if (kind < 996) return ExitOp{dice.Name()};
  return KillOp{dice.Name(), dice.Name()};
}

// Around and above 8 MiB, below it, and not a multiple of a page.
constexpr ObjectSpec kObjectSpecs[] = {
    {kMemfd, 9 * 1024 * 1024 + 123}, {kShm, 8 * 1024 * 1024},  {kSysV, 10 * 1024 * 1024 + 1000},
    {kMemfd, 20 * 1024 * 1024},      {kShm, 1024 * 1024 + 1},  {kSysV, 8 * 1024 * 1024},
    {kMemfd, 8 * 1024 * 1024 - 1},   {kSysV, 2 * 1024 * 1024}, {kShm, 13 * 1024 * 1024 + 4096},
};

template <class Op>
struct NameOf;
#define HOSTMM_NAME(Op)                       \
  template <>                                 \
  struct NameOf<Op> {                         \
    static constexpr const char* kName = #Op; \
  }
HOSTMM_NAME(MapOp);
HOSTMM_NAME(UnmapOp);
HOSTMM_NAME(RemapOp);
HOSTMM_NAME(ProtectOp);
HOSTMM_NAME(AdviseOp);
HOSTMM_NAME(LockOp);
HOSTMM_NAME(DetachOp);
HOSTMM_NAME(ReadOp);
HOSTMM_NAME(WriteOp);
HOSTMM_NAME(ExecuteOp);
HOSTMM_NAME(ScanOp);
HOSTMM_NAME(FillOp);
HOSTMM_NAME(ReceiveOp);
HOSTMM_NAME(SendOp);
HOSTMM_NAME(ObjectReadOp);
HOSTMM_NAME(ObjectWriteOp);
HOSTMM_NAME(TruncateOp);
HOSTMM_NAME(PunchOp);
HOSTMM_NAME(CountAttachedOp);
HOSTMM_NAME(PeekOp);
HOSTMM_NAME(PokeOp);
HOSTMM_NAME(ForkOp);
HOSTMM_NAME(ExitOp);
HOSTMM_NAME(KillOp);
#undef HOSTMM_NAME

template <class Op>
std::string Braces(const Op& op) {
  // Every member of every operation is a uint32_t, in the order of an initializer list.
  const auto values = std::bit_cast<std::array<uint32_t, sizeof(Op) / sizeof(uint32_t)>>(op);
  std::string text = "{";
  for (uint32_t value : values) {
    text += (text.size() == 1 ? "" : ", ") + std::to_string(value);
  }
  return text + "}";
}

template <class Value>
void Put(std::ofstream& file, const Value& value) {
  static_assert(std::is_trivially_copyable_v<Value>);
  file.write(reinterpret_cast<const char*>(&value), sizeof(value));
}
template <class Value>
void PutAll(std::ofstream& file, const std::vector<Value>& values) {
  Put(file, values.size());
  for (const Value& value : values) Put(file, value);
}
template <class Value>
void Take(std::ifstream& file, Value* value) {
  file.read(reinterpret_cast<char*>(value), sizeof(*value));
}
template <class Value>
void TakeAll(std::ifstream& file, std::vector<Value>* values) {
  size_t count = 0;
  Take(file, &count);
  for (; count != 0 && file; --count) {
    Value value = {};
    Take(file, &value);
    values->push_back(value);
  }
}

}  // namespace

Program GenerateProgram(uint64_t seed, size_t operations) {
  Dice dice(seed);
  Program program;
  // Or most programs would differ, in one way.
  program.known = kLeaveKnownOut;
  program.actors = 1 + dice.Below(kMostActors - 1);
  const uint32_t objects = 3 + dice.Below(3);
  for (uint32_t i = 0; i < objects; ++i) {
    program.objects.push_back(kObjectSpecs[dice.Below(std::size(kObjectSpecs))]);
  }
  // Mappings first, or the program begins with accesses to nothing.
  while (program.operations.size() < operations) {
    program.operations.push_back(program.operations.size() < kSlots ? GenerateMap(dice)
                                                                    : GenerateOperation(dice));
  }
  return program;
}

std::string ToCpp(const Operation& operation) {
  return std::visit(
      [](const auto& op) { return NameOf<std::decay_t<decltype(op)>>::kName + Braces(op); },
      operation);
}

std::string ToCpp(const Program& program) {
  constexpr const char* kKinds[] = {"kMemfd", "kShm", "kSysV"};
  std::string text =
      "const Program kProgram = {\n    .actors = " + std::to_string(program.actors) + ",\n";
  if (program.known == kLeaveKnownOut) text += "    .known = kLeaveKnownOut,\n";
  text += "    .objects = {";
  const char* comma = "";
  for (const ObjectSpec& object : program.objects) {
    text +=
        comma + std::string("{") + kKinds[object.kind] + ", " + std::to_string(object.bytes) + "}";
    comma = ", ";
  }
  text += "},\n    .operations = {\n";
  for (const Operation& operation : program.operations) {
    text += "        " + ToCpp(operation) + ",\n";
  }
  return text + "    },\n};\n";
}

bool SaveProgram(const Program& program, const std::string& path) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  Put(file, program.actors);
  Put(file, program.known);
  PutAll(file, program.objects);
  PutAll(file, program.operations);
  file.close();
  return !file.fail();
}

Program LoadProgram(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  Program program;
  Take(file, &program.actors);
  Take(file, &program.known);
  TakeAll(file, &program.objects);
  TakeAll(file, &program.operations);
  if (!file) program.actors = 0;
  return program;
}

}  // namespace hostmm::oracle
