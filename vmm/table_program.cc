#include "vmm/table_program.h"

#include <algorithm>
#include <random>
#include <sstream>

#include "vmm/fault_policy.h"
#include "vmm/invariants.h"
#include "vmm/table_model.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

GuestAddr AddrOfPage(uint32_t page) { return GuestAddr(uint64_t{page} * kPageSize); }

// One run: the tables, the model, and the faults that were decided and not committed.
class Runner {
 public:
  explicit Runner(const SegmentConfig& config) : segment_(config), tables_(segment_.tables) {}

  // What went wrong, if anything.
  std::optional<std::string> Step(const ProgramOp& op) {
    complaint_.reset();
    released_.clear();
    had_user_ = model_.UsedMms();
    std::visit([this](const auto& concrete) { Do(concrete); }, op);
    std::vector<MmId> gone = model_.CollectUnused(had_user_);
    std::sort(gone.begin(), gone.end());
    std::sort(released_.begin(), released_.end());
    if (!complaint_.has_value() && gone != released_) complaint_ = "released mms differ";
    if (!complaint_.has_value()) complaint_ = model_.Compare(tables_);
    if (!complaint_.has_value()) {
      const std::vector<std::string> problems = CheckInvariants(tables_.reader());
      if (!problems.empty()) complaint_ = "invariants: " + problems.front();
    }
    return complaint_;
  }

 private:
  struct RunningFault {
    FaultDecision decision;
    bool committed = false;
  };

  bool HasGuest() const { return !model_.guests.empty(); }
  bool HasMm() const { return !model_.mms.empty(); }
  size_t Guest(uint32_t number) const { return number % model_.guests.size(); }
  size_t Mm(uint32_t number) const { return number % model_.mms.size(); }
  GuestId IdOf(size_t guest) const { return model_.guests[guest].id; }

  // An operation on a dead guest or mm must be refused as such. RETURNS: whether it may go on.
  bool Expect(TableStatus status, bool alive, TableStatus if_dead) {
    if (alive) return true;
    if (status != if_dead) complaint_ = "an operation on something dead was not refused";
    return false;
  }
  // kNoSpace is always allowed and must change nothing, which Compare sees.
  void ExpectOneOf(TableStatus status, std::initializer_list<TableStatus> allowed) {
    if (status == TableStatus::kNoSpace) return;
    if (std::find(allowed.begin(), allowed.end(), status) == allowed.end()) {
      complaint_ = "unexpected status " + std::to_string(static_cast<int>(status));
    }
  }

  void Do(const AddGuestOp&) {
    GuestId id;
    if (tables_.AddGuest(1, 0, &id) == TableStatus::kOk) model_.guests.push_back({.id = id});
  }
  void Do(const ForkOp& op) {
    if (!HasGuest()) return;
    const size_t parent = Guest(op.guest);
    GuestId child;
    const TableStatus status = tables_.ForkGuest(IdOf(parent), &child);
    if (!Expect(status, model_.guests[parent].alive, TableStatus::kNoSuchGuest)) return;
    ExpectOneOf(status, {TableStatus::kOk});
    if (status == TableStatus::kOk) model_.Fork(parent, child);
  }
  void Do(const RemoveGuestOp& op) {
    if (!HasGuest()) return;
    ModelGuest& guest = model_.guests[Guest(op.guest)];
    const TableStatus status = tables_.RemoveGuest(guest.id, &released_);
    if (!Expect(status, guest.alive, TableStatus::kNoSuchGuest)) return;
    if (status != TableStatus::kOk) complaint_ = "a guest could not be removed";
    guest.alive = false;
    guest.pages.clear();
  }
  void Do(const CreateMmOp& op) {
    const MmSpec spec{.length = PageCount(op.pages), .frames = static_cast<FrameKind>(op.frames)};
    MmId id;
    const TableStatus status = tables_.CreateMm(spec, &id);
    ExpectOneOf(status, {TableStatus::kOk, TableStatus::kBadRange});
    if (status == TableStatus::kOk) {
      model_.mms.push_back({.id = id, .length = op.pages, .spec = spec});
      had_user_.push_back(false);
    }
  }
  void Do(const PinOp& op) {
    if (!HasMm()) return;
    ModelMm& mm = model_.mms[Mm(op.mm)];
    if (Expect(tables_.PinMm(mm.id), mm.alive, TableStatus::kNoSuchMm)) ++mm.pins;
  }
  void Do(const UnpinOp& op) {
    if (!HasMm()) return;
    ModelMm& mm = model_.mms[Mm(op.mm)];
    if (mm.pins == 0) return;
    if (!Expect(tables_.UnpinMm(mm.id, &released_), mm.alive, TableStatus::kNoSuchMm)) return;
    --mm.pins;
  }
  void Do(const MapOp& op) {
    if (!HasGuest() || !HasMm()) return;
    const size_t guest = Guest(op.guest);
    const size_t mm = Mm(op.mm);
    const AccessSet access = AccessSet::FromBits(op.access);
    const TableStatus status = tables_.MapRegion(IdOf(guest), {.va = AddrOfPage(op.va),
                                                               .length = PageCount(op.pages),
                                                               .mm = model_.mms[mm].id,
                                                               .file_page = FilePage(op.file_page),
                                                               .access = access,
                                                               .flags = op.flags});
    if (!Expect(status, model_.guests[guest].alive, TableStatus::kNoSuchGuest)) return;
    if (!Expect(status, model_.mms[mm].alive, TableStatus::kNoSuchMm)) return;
    if (op.pages == 0) return ExpectOneOf(status, {TableStatus::kBadRange});
    if (!model_.IsFree(guest, op.va, op.pages)) {
      return ExpectOneOf(status, {TableStatus::kOverlap});
    }
    ExpectOneOf(status, {TableStatus::kOk});
    if (status != TableStatus::kOk) return;
    model_.Map(guest, op.va, op.pages,
               {.mm = mm,
                .file_page = op.file_page,
                .access = access,
                .mapped_access = access,
                .flags = op.flags});
  }
  void Do(const UnmapOp& op) {
    if (!HasGuest()) return;
    const size_t guest = Guest(op.guest);
    const TableStatus status =
        tables_.UnmapRange(IdOf(guest), AddrOfPage(op.va), PageCount(op.pages), &released_);
    if (!Expect(status, model_.guests[guest].alive, TableStatus::kNoSuchGuest)) return;
    if (op.pages == 0) return ExpectOneOf(status, {TableStatus::kBadRange});
    ExpectOneOf(status, {TableStatus::kOk});
    if (status == TableStatus::kOk) model_.Unmap(guest, op.va, op.pages);
  }
  void Do(const ProtectOp& op) {
    if (!HasGuest() || op.pages == 0) return;
    const size_t guest = Guest(op.guest);
    const AccessSet access = AccessSet::FromBits(op.access);
    const TableStatus status =
        tables_.ProtectRange(IdOf(guest), AddrOfPage(op.va), PageCount(op.pages), access);
    if (!Expect(status, model_.guests[guest].alive, TableStatus::kNoSuchGuest)) return;
    ExpectOneOf(status, {TableStatus::kOk});
    if (status == TableStatus::kOk) model_.Protect(guest, op.va, op.pages, access);
  }
  void Do(const FlagOp& op) {
    if (!HasGuest() || op.pages == 0) return;
    const size_t guest = Guest(op.guest);
    const TableStatus status =
        tables_.FlagRange(IdOf(guest), AddrOfPage(op.va), PageCount(op.pages), op.set, op.clear);
    if (!Expect(status, model_.guests[guest].alive, TableStatus::kNoSuchGuest)) return;
    ExpectOneOf(status, {TableStatus::kOk});
    if (status == TableStatus::kOk) model_.Flag(guest, op.va, op.pages, op.set, op.clear);
  }
  void Do(const MoveOp& op) {
    if (!HasGuest()) return;
    const size_t guest = Guest(op.guest);
    const TableStatus status =
        tables_.MoveRange(IdOf(guest), AddrOfPage(op.from), PageCount(op.old_pages),
                          AddrOfPage(op.to), PageCount(op.new_pages), &released_);
    if (!Expect(status, model_.guests[guest].alive, TableStatus::kNoSuchGuest)) return;
    if (!model_.CanMove(guest, op.from, op.old_pages, op.to, op.new_pages)) {
      return ExpectOneOf(status, {TableStatus::kBadRange, TableStatus::kOverlap});
    }
    ExpectOneOf(status, {TableStatus::kOk});
    if (status != TableStatus::kOk) return;
    model_.Move(guest, op.from, op.old_pages, op.to, op.new_pages);
  }
  void Do(const PunchOp& op) {
    if (!HasMm() || op.pages == 0) return;
    const size_t mm = Mm(op.mm);
    const TableStatus status =
        tables_.PunchRange(model_.mms[mm].id, FilePage(op.file_page), PageCount(op.pages));
    if (!Expect(status, model_.mms[mm].alive, TableStatus::kNoSuchMm)) return;
    ExpectOneOf(status, {TableStatus::kOk});
    if (status == TableStatus::kOk) model_.Punch(mm, op.file_page, op.pages);
  }
  void Do(const CollapseOp& op) {
    if (!HasMm()) return;
    const size_t mm = Mm(op.mm);
    const TableStatus status = tables_.SetBlockCollapsed(model_.mms[mm].id, BlockIndex(op.block));
    if (!Expect(status, model_.mms[mm].alive, TableStatus::kNoSuchMm)) return;
    const uint64_t first = uint64_t{op.block} * kPagesPerBlock;
    const uint64_t end = first + kPagesPerBlock;
    if (end > model_.mms[mm].length || model_.mms[mm].spec.frames == FrameKind::kForeign ||
        !tables_.segment().geometry().HasHugeLeaf()) {
      return ExpectOneOf(status, {TableStatus::kBadRange});
    }
    if (model_.mms[mm].AnyInFlight(first, end)) return ExpectOneOf(status, {TableStatus::kBusy});
    ExpectOneOf(status, {TableStatus::kOk});
    if (status == TableStatus::kOk) model_.Collapse(mm, op.block);
  }
  void Do(const FaultOp& op) {
    if (!HasGuest()) return;
    const size_t guest = Guest(op.guest);
    const FaultEvent event{.guest = IdOf(guest),
                           .addr = GuestAddr(AddrOfPage(op.va).value() + op.va % kPageSize),
                           .access = op.access == 0 ? Access::kRead : Access::kWrite,
                           .kind = static_cast<FaultKind>(op.kind)};
    const Climate climate{.memory = op.tight == 0 ? MemoryClimate::kAmple : MemoryClimate::kTight,
                          .tracked_around = PageCount(1 + op.tight * 8)};
    const FaultDecision decision = Decide(tables_, event, climate);
    complaint_ = model_.Decided(guest, event, decision, tables_);
    faults_.push_back({decision});
  }
  void Do(const CommitOp& op) {
    if (faults_.empty()) return;
    // Counted from the youngest.
    RunningFault& fault = faults_[faults_.size() - 1 - op.fault % faults_.size()];
    if (fault.committed) return;
    fault.committed = true;
    const auto outcome = static_cast<Outcome>(op.outcome);
    const auto actual = op.actual == 0 ? fault.decision.grain : Grain::kSmall;
    Commit(tables_, fault.decision, outcome, actual);
    model_.Committed(fault.decision, outcome, actual, tables_);
  }

  TestSegment segment_;
  HostTables& tables_;
  TableModel model_;
  std::vector<RunningFault> faults_;
  std::vector<bool> had_user_;
  ReleasedMms released_;
  std::optional<std::string> complaint_;
};

// Numbers for the generator: a few addresses and lengths that collide often, and whose alignment is
// sometimes that of a block or a span. Half of the time it comes back to the place of the last map
// or fault, because what goes wrong is what happens to the same thing twice.
class Dice {
 public:
  explicit Dice(uint64_t seed) : random_(seed) {}

  uint32_t Below(uint32_t end) { return static_cast<uint32_t>(random_() % end); }
  bool OneIn(uint32_t count) { return Below(count) == 0; }
  uint32_t Page() {
    constexpr uint32_t kGrains[] = {1, 64, kPagesPerBlock, kPagesPerBlock, 4 * kPagesPerBlock};
    const uint32_t grain = kGrains[Below(std::size(kGrains))];
    return Below(24 * kPagesPerBlock / grain) * grain;
  }
  uint32_t Pages() { return OneIn(40) ? 0 : std::max(1u, Page()); }
  uint32_t Name() { return Below(1000); }
  // For faults, which are counted from the youngest.
  uint32_t YoungName() { return OneIn(3) ? Name() : Below(2); }

  MapOp Map() {
    last_map_ = {Name(), Name(), Page(), Page(), Pages(), Below(8), OneIn(3) ? Below(16) : 0};
    if (OneIn(2)) last_map_.flags |= kSharedPt | (OneIn(4) ? Below(8) * kDedicated : 0);
    // Equal alignment more often than chance would have it: only that is shared.
    if (!OneIn(3)) last_map_.file_page = last_map_.va;
    return last_map_;
  }
  // A range of a guest: the last map's, or any.
  UnmapOp Range() {
    if (OneIn(2)) return {Name(), Page(), Pages()};
    return {last_map_.guest, last_map_.va, OneIn(2) ? last_map_.pages : Pages()};
  }
  MoveOp Move() {
    const UnmapOp from = Range();
    const uint32_t to = OneIn(2) ? from.va : Page();
    return {from.guest, from.va, from.pages, to, Pages()};
  }
  FaultOp Fault() {
    if (OneIn(4)) {
      last_fault_ = {Name(), Page()};
    } else if (OneIn(3)) {
      last_fault_ = {last_map_.guest, last_map_.va + Below(std::max(1u, last_map_.pages))};
    } else {
      // The same block again, or a neighbour.
      last_fault_.va = last_fault_.va / kPagesPerBlock * kPagesPerBlock +
                       Below(OneIn(2) ? kPagesPerBlock : 2 * kPagesPerBlock);
    }
    return {last_fault_.guest, last_fault_.va, Below(2), OneIn(6) ? Below(3) : 0, OneIn(5)};
  }

 private:
  struct Place {
    uint32_t guest = 0;
    uint32_t va = 0;
  };
  std::mt19937_64 random_;
  MapOp last_map_{};
  Place last_fault_;
};

ProgramOp GenerateOp(Dice& dice) {
  const uint32_t kind = dice.Below(100);
  if (kind < 3) return AddGuestOp{};
  if (kind < 6) return ForkOp{dice.Name()};
  if (kind < 8) return RemoveGuestOp{dice.Name()};
  if (kind < 11) {
    const uint32_t pages = std::max(1u, dice.Page());
    return CreateMmOp{pages, dice.OneIn(8) ? 3 + dice.Below(2) : dice.Below(3)};
  }
  if (kind < 12) return PinOp{dice.Name()};
  if (kind < 13) return UnpinOp{dice.Name()};
  if (kind < 22) return dice.Map();
  if (kind < 26) return dice.Range();
  if (kind < 30) {
    const UnmapOp range = dice.Range();
    return ProtectOp{range.guest, range.va, range.pages, dice.Below(4)};
  }
  if (kind < 33) {
    const UnmapOp range = dice.Range();
    return FlagOp{range.guest, range.va, range.pages, dice.Below(256), dice.Below(256)};
  }
  if (kind < 37) return dice.Move();
  if (kind < 40) return PunchOp{dice.Name(), dice.Page(), dice.Pages()};
  if (kind < 42) return CollapseOp{dice.Name(), dice.Below(24)};
  if (kind < 72) return dice.Fault();
  return CommitOp{dice.YoungName(), dice.OneIn(4) ? dice.Below(4) : 0, dice.OneIn(4)};
}

// One guest and one file of a few blocks, mapped whole; its last block is a tail.
constexpr uint32_t kFaultPages = 6 * kPagesPerBlock + 100;

Program FaultProgramStart(Dice& dice) {
  return {AddGuestOp{}, CreateMmOp{kFaultPages, dice.Below(3)},
          MapOp{0, 0, 0, 0, kFaultPages, 3, dice.OneIn(3) ? dice.Below(16) : 0}};
}

ProgramOp GenerateFaultOp(Dice& dice) {
  const uint32_t kind = dice.Below(100);
  if (kind < 2) return ForkOp{dice.Name()};
  if (kind < 3) return CollapseOp{0, dice.Below(7)};
  if (kind < 5) return PunchOp{0, dice.Page(), dice.Pages()};
  if (kind < 6) {
    return FlagOp{dice.Name(), dice.Page(), dice.Pages(), dice.Below(16), dice.Below(16)};
  }
  if (kind < 52) {
    FaultOp fault = dice.Fault();
    fault.va %= kFaultPages;
    return fault;
  }
  return CommitOp{dice.YoungName(), dice.OneIn(6) ? dice.Below(4) : 0, dice.OneIn(4)};
}

constexpr uint32_t kOptInGuests = 4;
constexpr uint32_t kOptInPages = 10 * kPagesPerBlock;

Program OptInProgramStart() {
  Program program = {CreateMmOp{kOptInPages, 0}, PinOp{0}};
  for (uint32_t i = 0; i < kOptInGuests; ++i) program.push_back(AddGuestOp{});
  return program;
}

// A guest has two places for windows, at which the file lies as it is; ranges are about a tenth of
// the file, so that they often meet in part.
ProgramOp GenerateOptInOp(Dice& dice) {
  constexpr uint32_t kSecondPlace = 2 * kOptInPages;
  const uint32_t guest = dice.Below(kOptInGuests + 2);
  const uint32_t page = dice.OneIn(2) ? dice.Below(kOptInPages) : dice.Below(10) * kPagesPerBlock;
  const uint32_t pages = 1 + dice.Below(dice.OneIn(3) ? 3 * kPagesPerBlock : kPagesPerBlock);
  const uint32_t va = page + (dice.OneIn(3) ? kSecondPlace : 0);
  const uint32_t kind = dice.Below(100);
  if (kind < 2) return AddGuestOp{};
  if (kind < 5) return ForkOp{guest};
  if (kind < 7) return RemoveGuestOp{guest};
  if (kind < 40) {
    const uint32_t flags =
        (dice.OneIn(6) ? 0u : uint32_t{kSharedPt}) | (dice.OneIn(8) ? dice.Below(256) : 0);
    return MapOp{guest, 0, va, page, pages, dice.Below(4), flags};
  }
  if (kind < 50) return UnmapOp{guest, va, pages};
  if (kind < 75) return ProtectOp{guest, va, pages, dice.Below(4)};
  if (kind < 82) return FlagOp{guest, va, pages, dice.Below(256), dice.Below(256)};
  if (kind < 92) {
    const uint32_t to = dice.OneIn(2) ? va : page + dice.Below(2) * kSecondPlace + dice.Below(3);
    // 0: a second window; 1: what stands there is often longer.
    const uint32_t old_pages = dice.OneIn(4) ? dice.Below(2) : pages;
    return MoveOp{guest, va, old_pages, to, 1 + dice.Below(2 * kPagesPerBlock)};
  }
  if (kind < 96) return FaultOp{guest, va, dice.Below(2), 0, 0};
  return CommitOp{0, 0, 0};
}

// Members in order, as an initializer list takes them.
std::string Braces(std::initializer_list<uint32_t> values) {
  std::string text = "{";
  for (uint32_t value : values) {
    text += (text.size() == 1 ? "" : ", ") + std::to_string(value);
  }
  return text + "}";
}

struct OpPrinter {
  std::string operator()(const AddGuestOp&) const { return "AddGuestOp{}"; }
  std::string operator()(const ForkOp& op) const { return "ForkOp" + Braces({op.guest}); }
  std::string operator()(const RemoveGuestOp& op) const {
    return "RemoveGuestOp" + Braces({op.guest});
  }
  std::string operator()(const CreateMmOp& op) const {
    return "CreateMmOp" + Braces({op.pages, op.frames});
  }
  std::string operator()(const PinOp& op) const { return "PinOp" + Braces({op.mm}); }
  std::string operator()(const UnpinOp& op) const { return "UnpinOp" + Braces({op.mm}); }
  std::string operator()(const MapOp& op) const {
    return "MapOp" + Braces({op.guest, op.mm, op.va, op.file_page, op.pages, op.access, op.flags});
  }
  std::string operator()(const UnmapOp& op) const {
    return "UnmapOp" + Braces({op.guest, op.va, op.pages});
  }
  std::string operator()(const ProtectOp& op) const {
    return "ProtectOp" + Braces({op.guest, op.va, op.pages, op.access});
  }
  std::string operator()(const FlagOp& op) const {
    return "FlagOp" + Braces({op.guest, op.va, op.pages, op.set, op.clear});
  }
  std::string operator()(const MoveOp& op) const {
    return "MoveOp" + Braces({op.guest, op.from, op.old_pages, op.to, op.new_pages});
  }
  std::string operator()(const PunchOp& op) const {
    return "PunchOp" + Braces({op.mm, op.file_page, op.pages});
  }
  std::string operator()(const CollapseOp& op) const {
    return "CollapseOp" + Braces({op.mm, op.block});
  }
  std::string operator()(const FaultOp& op) const {
    return "FaultOp" + Braces({op.guest, op.va, op.access, op.kind, op.tight});
  }
  std::string operator()(const CommitOp& op) const {
    return "CommitOp" + Braces({op.fault, op.outcome, op.actual});
  }
};

}  // namespace

Program GenerateProgram(ProgramMix mix, uint64_t seed, size_t operations) {
  Dice dice(seed);
  Program program;
  ProgramOp (*generate)(Dice&) = GenerateOp;
  if (mix == ProgramMix::kFaults) {
    program = FaultProgramStart(dice);
    generate = GenerateFaultOp;
  } else if (mix == ProgramMix::kOptIn) {
    program = OptInProgramStart();
    generate = GenerateOptInOp;
  }
  while (program.size() < operations) program.push_back(generate(dice));
  return program;
}

std::string ToCpp(const Program& program) {
  std::string text = "const Program program = {\n";
  for (const ProgramOp& op : program) text += "    " + std::visit(OpPrinter(), op) + ",\n";
  return text + "};\n";
}

std::optional<std::string> RunProgram(const SegmentConfig& config, const Program& program) {
  Runner runner(config);
  for (size_t i = 0; i < program.size(); ++i) {
    if (auto complaint = runner.Step(program[i])) {
      return "operation " + std::to_string(i) + ": " + *complaint;
    }
  }
  return std::nullopt;
}

Program Shrink(const SegmentConfig& config, Program program) {
  // Ever smaller chunks, each taken out if the rest still fails.
  for (size_t chunk = program.size() / 2; chunk != 0; chunk /= 2) {
    for (size_t start = 0; start + chunk <= program.size();) {
      Program shorter(program.begin(), program.begin() + start);
      shorter.insert(shorter.end(), program.begin() + start + chunk, program.end());
      if (RunProgram(config, shorter).has_value()) {
        program = std::move(shorter);
      } else {
        start += chunk;
      }
    }
  }
  return program;
}

}  // namespace hostmm
