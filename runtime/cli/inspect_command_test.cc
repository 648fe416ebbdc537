#include "runtime/cli/inspect_command.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/cli/segment_fetch.h"
#include "vmm/host_tables.h"

namespace hostmm {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// A segment in a memfd: two guests, of pid 1001 and 1002, with the same 16 MiB file, in which two
// blocks are huge.
class InspectTest : public ::testing::Test {
 protected:
  void SetUp() override {
    HostTables::Config config;
    config.max_guests = 8;
    config.max_mms = 8;
    config.max_regions = 8;
    config.max_nodes = 64;
    const size_t bytes = HostTables::SegmentBytes(config);
    file_.reset(memfd_create("segment", MFD_CLOEXEC));
    ASSERT_EQ(ftruncate(file_.get(), static_cast<off_t>(bytes)), 0);
    writable_ =
        Mapping(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_.get(), 0), bytes);
    ASSERT_TRUE(writable_.ok());
    tables_ = HostTables::Format(writable_.bytes(), config);
    MmSpec spec;
    spec.length = PagesFloor(uint64_t{16} << 20);
    std::strcpy(spec.name, "bad\nname");
    MmId mm;
    ASSERT_EQ(tables_->CreateMm(spec, &mm), TableStatus::kOk);
    AddGuest(&*tables_, 1001, mm, AccessSet::ReadWrite(), 0);
    AddGuest(&*tables_, 1002, mm, Access::kRead, kDontFork);
    ASSERT_EQ(tables_->SetBlockCollapsed(mm, BlockIndex(1)), TableStatus::kOk);
    ASSERT_EQ(tables_->SetBlockCollapsed(mm, BlockIndex(2)), TableStatus::kOk);
  }

  static void AddGuest(HostTables* tables, int32_t pid, MmId mm, AccessSet access, uint32_t flags) {
    GuestId guest;
    ASSERT_EQ(tables->AddGuest(pid, 7, &guest), TableStatus::kOk);
    RegionSpec region;
    region.va = GuestAddr(uint64_t{0x7f} << 32);
    region.length = PagesFloor(uint64_t{16} << 20);
    region.mm = mm;
    region.access = access;
    region.flags = flags;
    ASSERT_EQ(tables->MapRegion(guest, region), TableStatus::kOk);
  }

  // As a tool takes it: of guest 1002 nothing is known in /proc.
  Snapshot Take() {
    OrFailure<OpenSegment> opened = MapSegment(file_, "here");
    if (const Failure* failure = FailureOf(opened)) {
      ADD_FAILURE() << failure->text;
      return Snapshot();
    }
    return TakeSnapshot(std::get<OpenSegment>(opened).reader,
                        [](int64_t pid) -> std::optional<uint64_t> {
                          if (pid == 1001) return 4096;
                          return std::nullopt;
                        });
  }

  UniqueFd file_;
  Mapping writable_;
  std::optional<HostTables> tables_;
};

TEST_F(InspectTest, SnapshotHasEverything) {
  const Snapshot snapshot = Take();
  EXPECT_EQ(snapshot.consistent, ReadStatus::kConsistent);
  ASSERT_EQ(snapshot.guests.size(), 2u);
  EXPECT_EQ(snapshot.RegionCount(), 2u);
  ASSERT_EQ(snapshot.mms.size(), 1u);
  EXPECT_EQ(snapshot.PopulatedBytes(), uint64_t{4} << 20);
  EXPECT_EQ(snapshot.KernelTableBytes(), 4096u);
  // 4 MiB, 8 bytes per page, two guests.
  EXPECT_EQ(snapshot.PlainTableBytes(), 2u * 1024 * 8);
}

TEST_F(InspectTest, DumpLooksLikeProcMaps) {
  EXPECT_EQ(DumpText(Take()),
            "guest 1.1 pid 1001 uid 7 regions 1 page-tables 4 kB\n"
            "7f00000000-7f01000000 rw-- 00000000 1.1:huge bad?name\n"
            "guest 2.1 pid 1002 uid 7 regions 1\n"
            "7f00000000-7f01000000 r--- 00000000 1.1:huge bad?name [dontfork]\n");
}

TEST_F(InspectTest, StatsTextNamesTheEstimateAsOne) {
  const std::string text = StatsText(Take(), "/run/x");
  EXPECT_THAT(text, HasSubstr("2 guests, 2 regions, 1 files, by /run/x"));
  EXPECT_THAT(text, HasSubstr("4.0 MiB: 2 frames of 2 MiB, 0 of 4 KiB"));
  EXPECT_THAT(text, HasSubstr("up to"));
  EXPECT_THAT(text, Not(HasSubstr("busy")));
}

TEST_F(InspectTest, StatsJsonHasNullForWhatIsNotKnown) {
  const std::string json = StatsJson(Take(), "/run/\"x");
  EXPECT_THAT(json, HasSubstr("\"pager\":\"/run/\\\"x\""));
  EXPECT_THAT(json, HasSubstr("\"pid\":1001,\"uid\":7,\"regions\":1,\"page_table_bytes\":4096}"));
  EXPECT_THAT(json, HasSubstr("\"pid\":1002,\"uid\":7,\"regions\":1,\"page_table_bytes\":null}"));
  EXPECT_THAT(json, HasSubstr("\"saved_up_to_bytes\":12288"));
  EXPECT_THAT(json, HasSubstr("\"unaccounted\":0"));
}

TEST_F(InspectTest, SegmentThatIsNoneIsRefused) {
  std::memset(writable_.data(), 0x5a, writable_.size());
  const auto garbage = MapSegment(file_, "here");
  ASSERT_NE(FailureOf(garbage), nullptr);
  EXPECT_EQ(FailureOf(garbage)->status, ExitStatus::kBadSegment);
  ASSERT_EQ(ftruncate(file_.get(), 0), 0);
  const auto empty = MapSegment(file_, "here");
  ASSERT_NE(FailureOf(empty), nullptr);
  EXPECT_EQ(FailureOf(empty)->status, ExitStatus::kBadSegment);
}

}  // namespace
}  // namespace hostmm
