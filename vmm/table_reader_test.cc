// Reading: what a reader sees in a sound segment, and that no garbage can hurt it.

#include "vmm/table_reader.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "vmm/cow_tables.h"
#include "vmm/fault_policy.h"
#include "vmm/invariants.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

constexpr uint64_t kBase = uint64_t{1} << 30;
constexpr SegmentConfig kConfig{
    .max_guests = 6, .max_mms = 4, .max_regions = 24, .max_nodes = 24, .geometry = kSmallSpans};

// Three guests, two files, small and huge pages, a fault in flight.
class TableReaderTest : public testing::Test {
 protected:
  TableReaderTest() {
    for (int i = 0; i < 2; ++i) mms_.push_back(segment_.AddMm(PageCount(10 * kPagesPerBlock)));
    for (int i = 0; i < 3; ++i) {
      guests_.push_back(segment_.AddGuest());
      for (const MmId& mm : mms_) {
        segment_.tables.MapRegion(guests_.back(), {.va = GuestAddr(kBase * mm.slot),
                                                   .length = PageCount(10 * kPagesPerBlock),
                                                   .mm = mm,
                                                   .file_page = FilePage(0),
                                                   .access = AccessSet::ReadWrite()});
      }
    }
    segment_.tables.SetBlockCollapsed(mms_[0], BlockIndex(3));
    const FaultDecision decision = Fault(5);
    Commit(segment_.tables, decision, Outcome::kDone, decision.grain);
    Fault(6 * kPagesPerBlock);
    EXPECT_EQ(CheckInvariants(segment_.reader()), std::vector<std::string>());
  }
  FaultDecision Fault(uint64_t page) {
    return Decide(segment_.tables,
                  {.guest = guests_[0], .addr = GuestAddr(kBase * mms_[0].slot + page * kPageSize)},
                  {});
  }

  void DamageAndRead(uint64_t seed) {
    const std::vector<std::byte> sound(segment_.bytes().begin(), segment_.bytes().end());
    const size_t words = sound.size() / sizeof(uint64_t);
    std::mt19937_64 random(seed);
    for (int round = 0; round < 600; ++round) {
      std::memcpy(segment_.bytes().data(), sound.data(), sound.size());
      for (uint64_t damages = 1 + random() % 8; damages != 0; --damages) {
        // Half of it in the header's mutable part and the records, where the references are.
        const size_t word = random() % 2 == 0 ? 8 + random() % 1500 : random() % words;
        uint64_t value = random();
        if (random() % 2 == 0) value %= 64;  // plausible indices
        if (random() % 4 == 0) value = ~uint64_t{0};
        reinterpret_cast<SharedWord*>(segment_.bytes().data())[word].Store(value);
      }
      ReadEverything(segment_.bytes());
    }
  }

  // Uses every way of reading. The values do not matter; to come back does.
  void ReadEverything(std::span<const std::byte> bytes) {
    TableReader reader;
    if (TableReader::Attach(bytes, &reader) != AttachStatus::kOk) return;
    uint64_t sum = reader.Stats().Denied() + reader.Pools().table_bytes;
    reader.ForEachGuest([&](const GuestInfo& guest) {
      reader.ForEachRegion(guest.id, [&](const Region& region) {
        sum += region.length.value();
        sum += static_cast<uint64_t>(reader.IsShared(guest.id, region.va));
        sum += reader.LookupFrom(guest.id, region.mm, region.file_page).frame.value();
      });
    });
    reader.ForEachMm([&](const MmInfo& mm) {
      sum += std::strlen(mm.name);
      for (uint64_t block : {uint64_t{0}, uint64_t{1}, uint64_t{7}, ~uint64_t{0} >> 9}) {
        sum += reader.Lookup(mm.id, FirstPageOf(BlockIndex(block))).frame.value();
        reader.ForEachMapper(mm.id, BlockIndex(block),
                             [&](GuestId guest, const Region&, Writable) { sum += guest.slot; });
      }
    });
    sum += CheckInvariants(reader).size();
    total_ += sum;
  }

  TestSegment segment_{kConfig};
  std::vector<MmId> mms_;
  std::vector<GuestId> guests_;
  uint64_t total_ = 0;
};

TEST_F(TableReaderTest, SeesWhatTheWriterMade) {
  TableReader reader;
  ASSERT_EQ(TableReader::Attach(segment_.bytes(), &reader), AttachStatus::kOk);
  int guests = 0;
  reader.ForEachGuest([&](const GuestInfo& guest) {
    EXPECT_EQ(guest.regions, 2u);
    ++guests;
  });
  EXPECT_EQ(guests, 3);
  int mms = 0;
  reader.ForEachMm([&](const MmInfo& mm) {
    EXPECT_EQ(mm.mappers, 3u);
    EXPECT_EQ(mm.regions, 3u);
    ++mms;
  });
  EXPECT_EQ(mms, 2);
  EXPECT_EQ(reader.Lookup(mms_[0], FilePage(5)).state, PageState::kPresentSmall);
  EXPECT_EQ(reader.Lookup(mms_[0], FilePage(5)).frame, FrameNumber(5));
  EXPECT_EQ(reader.Lookup(mms_[0], FilePage(3 * 512 + 1)).state, PageState::kPresentHuge);
  EXPECT_EQ(reader.Lookup(mms_[0], FilePage(3 * 512 + 1)).frame, FrameNumber(3 * 512));
  EXPECT_EQ(reader.Lookup(mms_[0], FilePage(6 * kPagesPerBlock)).state, PageState::kInFlight);
  EXPECT_EQ(reader.Lookup(mms_[1], FilePage(5)).state, PageState::kEmpty);
  EXPECT_EQ(reader.Stats().Of(FaultCounter::kEvents), 2u);
}

TEST_F(TableReaderTest, QuestionsAboutNobody) {
  const TableReader reader = segment_.reader();
  EXPECT_FALSE(reader.Info(GuestId{5, 5}).has_value());
  EXPECT_FALSE(reader.Info(MmId{}).has_value());
  EXPECT_EQ(reader.Lookup(MmId{}, FilePage(0)).state, PageState::kEmpty);
  EXPECT_EQ(reader.LookupFrom(GuestId{}, mms_[0], FilePage(5)).state, PageState::kEmpty);
  EXPECT_EQ(reader.Lookup(mms_[0], FilePage(10 * kPagesPerBlock)).state, PageState::kEmpty);
  EXPECT_EQ(reader.Lookup(mms_[0], FilePage(~uint64_t{0})).state, PageState::kEmpty);
  EXPECT_EQ(reader.IsShared(guests_[0], GuestAddr(0)), TableReader::Sharing::kNotShared);
}

TEST_F(TableReaderTest, ADamagedTableIsUnreadable) {
  const Segment& segment = segment_.tables.segment();
  const HostOffset top(segment.Find(mms_[0])->top.Load());
  segment.entries(top)[0].Store(Pte::Table(HostOffset(12345)).raw());
  EXPECT_EQ(segment_.reader().Lookup(mms_[0], FilePage(5)).state, PageState::kUnreadable);
  segment.entries(top)[0].Store(~uint64_t{0});
  EXPECT_EQ(segment_.reader().Lookup(mms_[0], FilePage(5)).state, PageState::kUnreadable);
  segment.entries(top)[0].Store(Pte::Table(top).raw());  // a table that contains itself
  EXPECT_EQ(segment_.reader().Lookup(mms_[0], FilePage(0)).state, PageState::kUnreadable);
}

TEST_F(TableReaderTest, RandomDamageIsSurvived) { DamageAndRead(1); }

TEST_F(TableReaderTest, NothingButNoiseIsSurvived) {
  std::mt19937_64 random(2);
  for (int round = 0; round < 20; ++round) {
    // Everything but the immutable part of the header is noise.
    for (size_t i = 64; i + 8 <= segment_.bytes().size(); i += 8) {
      const uint64_t value = round % 2 == 0 ? random() : random() % 32 | (random() % 8) << 32;
      std::memcpy(segment_.bytes().data() + i, &value, sizeof(value));
    }
    ReadEverything(segment_.bytes());
  }
}

// The same with snapshots: two of one file, with tables of their own and shared ones.
class SnapshotReaderTest : public TableReaderTest {
 protected:
  SnapshotReaderTest() {
    CowTables cow(&segment_.tables);
    uint32_t uses = 0;
    for (MmId& snapshot : snapshots_) {
      EXPECT_EQ(cow.Take(mms_[0], {.min_shared_tables = 1}, &snapshot), TableStatus::kOk);
      EXPECT_EQ(segment_.tables.PinMm(snapshot), TableStatus::kOk);
      EXPECT_EQ(cow.Privatize(mms_[0], FilePage(5), PageCount(1), FrameNumber(frame_++), &uses),
                TableStatus::kOk);
    }
    EXPECT_EQ(CheckInvariants(segment_.reader()), std::vector<std::string>());
  }

  MmId snapshots_[2];
  uint64_t frame_ = 40;
};

TEST_F(SnapshotReaderTest, APageIsThePreimageOrTheLiveOne) {
  const TableReader reader = segment_.reader();
  EXPECT_EQ(reader.Lookup(snapshots_[0], FilePage(5)).state, PageState::kCopied);
  EXPECT_EQ(reader.Lookup(snapshots_[0], FilePage(5)).frame, FrameNumber(40));
  EXPECT_EQ(reader.Lookup(snapshots_[1], FilePage(5)).frame, FrameNumber(41));
  for (const uint64_t page : {uint64_t{4}, 3 * kPagesPerBlock, 6 * kPagesPerBlock, uint64_t{600}}) {
    EXPECT_EQ(reader.Lookup(snapshots_[0], FilePage(page)).state,
              reader.Lookup(mms_[0], FilePage(page)).state);
  }
  EXPECT_EQ(reader.Lookup(snapshots_[0], FilePage(10 * kPagesPerBlock)).state, PageState::kEmpty);
  // Its copy of the table still says present, which means as in the live file.
  ASSERT_EQ(reader.Lookup(snapshots_[0], FilePage(4)).state, PageState::kPresentSmall);
  ASSERT_EQ(segment_.tables.PunchRange(mms_[0], FilePage(4), PageCount(1)), TableStatus::kOk);
  EXPECT_EQ(reader.Lookup(snapshots_[0], FilePage(4)).state, PageState::kEmpty);
  EXPECT_EQ(reader.Info(snapshots_[0])->source, mms_[0]);
  EXPECT_EQ(reader.Info(snapshots_[0])->pages_copied, 1u);
  EXPECT_EQ(reader.Info(mms_[0])->snapshots, 2u);
}

TEST_F(SnapshotReaderTest, RandomDamageIsSurvived) { DamageAndRead(3); }

TEST_F(SnapshotReaderTest, ASnapshotOfItselfIsSurvived) {
  const Segment& segment = segment_.tables.segment();
  MmRecord* record = segment.Find(snapshots_[0]);
  record->source.StoreHalves(snapshots_[0].slot, snapshots_[0].generation);
  ReadEverything(segment_.bytes());
  EXPECT_FALSE(CheckInvariants(segment_.reader()).empty());
}

}  // namespace
}  // namespace hostmm
