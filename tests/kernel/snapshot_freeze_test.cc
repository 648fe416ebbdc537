// Freezing a mapping under its writers, and thawing it: by a zap and by write protection from
// outside, on huge tmpfs and on hugetlb (facts F4, F18, F23 and what snapshots add to them).

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <future>
#include <memory>
#include <thread>
#include <utility>

#include "tests/kernel/frozen_file.h"
#include "tests/testing/child.h"
#include "tests/testing/collapse.h"
#include "tests/testing/scoped_fd.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/skip.h"
#include "tests/testing/smaps.h"
#include "tests/testing/test_uffd.h"
#include "tests/testing/touch.h"

namespace hostmm::test {
namespace {

class SnapshotFreezeTest : public FrozenFileTest, public ::testing::WithParamInterface<Store> {
 protected:
  void SetUp() override {
    Open(GetParam());
    if (!IsSkipped() && !HasFatalFailure()) Fill();
  }
};

INSTANTIATE_TEST_SUITE_P(On, SnapshotFreezeTest,
                         ::testing::Values(Store::kHugeTmpfs, Store::kHugetlb),
                         [](const auto& info) { return NameOf(info.param); });

TEST_P(SnapshotFreezeTest, RegistrationAloneLeavesWhatIsMapped) {
  ASSERT_TRUE(IsMappedHuge());
  ASSERT_EQ(uffd_.Register(guest_.data(), guest_.size(), kTracked), 0);
  // hugetlb gives a shared PMD table up here, which the next touches fill anew.
  if (GetParam() == Store::kHugeTmpfs) {
    EXPECT_TRUE(IsMappedHuge());
    EXPECT_TRUE(IsSilent(guest(2), Touch::Kind::kWrite));
  }
  EXPECT_TRUE(GuestIsRegistered("um"));
  EXPECT_TRUE(GuestIsRegistered("uw"));
  EXPECT_TRUE(GuestIsRegistered("ui"));
}

TEST_P(SnapshotFreezeTest, AfterTheZapAReadIsAnEventThenAWriteIsAnother) {
  Freeze(Road::kZap);
  Touch read(&uffd_, guest(3), Touch::Kind::kRead);
  ASSERT_TRUE(Raised(3, kReadEvent));
  ASSERT_EQ(ContinueAs(uffd_, guest(3), unit(), MapAs::kProtected), 0);
  ASSERT_TRUE(read.Finished());
  EXPECT_TRUE(IsSilent(guest(3), Touch::Kind::kRead));

  Touch write(&uffd_, guest(3), Touch::Kind::kWrite);
  ASSERT_TRUE(Raised(3, kProtectedEvent));
  EXPECT_EQ(ReadByte(pager(3)), OriginalByte(3)) << "the pre-image is still to be had";
  ASSERT_EQ(uffd_.WriteProtect(guest(3), unit(), 0), 0);
  ASSERT_TRUE(write.Finished());
  EXPECT_EQ(ReadByte(pager(3)), 1);
  EXPECT_TRUE(IsSilent(guest(3), Touch::Kind::kWrite)) << "one unit, one first write";
}

TEST_P(SnapshotFreezeTest, AfterTheZapAFirstWriteNeedsOneEvent) {
  Freeze(Road::kZap);
  Touch write(&uffd_, guest(5), Touch::Kind::kWrite);
  ASSERT_TRUE(Raised(5, kWriteEvent));
  EXPECT_EQ(ReadByte(pager(5)), OriginalByte(5));
  ASSERT_EQ(ContinueAs(uffd_, guest(5), unit(), MapAs::kWritable), 0);
  ASSERT_TRUE(write.Finished());
  EXPECT_EQ(ReadByte(pager(5)), 1);
  EXPECT_TRUE(IsSilent(guest(5), Touch::Kind::kWrite));
}

// A fault-around: one call for many pages, of which each still announces its first write.
TEST_P(SnapshotFreezeTest, AWindowIsContinuedProtected) {
  Freeze(Road::kZap);
  ASSERT_EQ(ContinueAs(uffd_, guest(0), 4 * unit(), MapAs::kProtected), 0);
  EXPECT_TRUE(IsSilent(guest(3), Touch::Kind::kRead));
  for (size_t index = 0; index < 4; ++index) {
    Touch write(&uffd_, guest(index), Touch::Kind::kWrite);
    ASSERT_TRUE(Raised(index, kProtectedEvent));
    ASSERT_EQ(uffd_.WriteProtect(guest(index), unit(), 0), 0);
    ASSERT_TRUE(write.Finished());
  }
}

// The other road. On hugetlb reads go on natively; on huge tmpfs the PMD entry is replaced by
// markers, and every read is an event, too.
TEST_P(SnapshotFreezeTest, WriteProtectionFreezesWithoutAZap) {
  Freeze(Road::kProtect);
  if (GetParam() == Store::kHugetlb) {
    EXPECT_TRUE(IsMappedHuge());
    EXPECT_TRUE(IsSilent(guest(2), Touch::Kind::kRead));
    Touch write(&uffd_, guest(2), Touch::Kind::kWrite);
    ASSERT_TRUE(Raised(2, kProtectedEvent));
    ASSERT_EQ(uffd_.WriteProtect(guest(2), unit(), 0), 0);
    ASSERT_TRUE(write.Finished());
    EXPECT_TRUE(IsMappedHuge());
  } else {
    EXPECT_EQ(PmdMappedKib(guest_.data()), 0);
    Touch read(&uffd_, guest(2), Touch::Kind::kRead);
    ASSERT_TRUE(Raised(2, kReadEvent));
    ASSERT_EQ(ContinueAs(uffd_, guest(2), unit(), MapAs::kProtected), 0);
    ASSERT_TRUE(read.Finished());
    Touch write(&uffd_, guest(4), Touch::Kind::kWrite);
    ASSERT_TRUE(Raised(4, kWriteEvent));
    ASSERT_EQ(ContinueAs(uffd_, guest(4), unit(), MapAs::kWritable), 0);
    ASSERT_TRUE(write.Finished());
    EXPECT_TRUE(IsSilent(guest(4), Touch::Kind::kWrite)) << "CONTINUE overrides the marker";
  }
}

// F4: the pager needs no thread of the guest for any of it but the zap.
TEST_P(SnapshotFreezeTest, AnotherProcessFreezesByProtection) {
  Child pager(Identity::kSame, [this](Channel&) {
    CHILD_CHECK(uffd_.Register(guest_.data(), guest_.size(), kTracked) == 0);
    CHILD_CHECK(uffd_.WriteProtect(guest_.data(), guest_.size(), UFFDIO_WRITEPROTECT_MODE_WP) == 0);
    return 0;
  });
  ASSERT_EQ(pager.Wait(), 0);
  Touch write(&uffd_, guest(1), Touch::Kind::kWrite);
  EXPECT_TRUE(Raised(1, GetParam() == Store::kHugetlb ? kProtectedEvent : kWriteEvent));
  Thaw();
}

TEST_P(SnapshotFreezeTest, AHoleOfAFrozenMappingIsAMissingEvent) {
  ASSERT_EQ(madvise(pager_.block(1), kBlock, MADV_REMOVE), 0) << strerror(errno);
  Freeze(Road::kZap);
  Touch write(&uffd_, guest_.block(1), Touch::Kind::kWrite);
  ASSERT_TRUE(RaisedAt(guest_.block(1), UFFD_PAGEFAULT_FLAG_WRITE));
  ASSERT_EQ(madvise(pager_.block(1), kBlock, MADV_POPULATE_WRITE), 0);
  ASSERT_EQ(ContinueAs(uffd_, guest_.block(1), unit(), MapAs::kWritable), 0);
  ASSERT_TRUE(write.Finished());
  EXPECT_EQ(ReadByte(pager_.block(1)), 1);
}

// Fewer modes do not take the others away: only UNREGISTER does.
TEST_P(SnapshotFreezeTest, RegisteringForLessKeepsTheModes) {
  Freeze(Road::kMapped);
  ASSERT_EQ(uffd_.Register(guest_.data(), guest_.size(), UFFDIO_REGISTER_MODE_MISSING), 0);
  EXPECT_TRUE(GuestIsRegistered("uw"));
  EXPECT_TRUE(GuestIsRegistered("ui"));
  Touch write(&uffd_, guest(2), Touch::Kind::kWrite);
  EXPECT_TRUE(Raised(2, kProtectedEvent));
  Thaw();
}

TEST_P(SnapshotFreezeTest, ThawGivesHugeMappingsBack) {
  for (const Road road : {Road::kZap, Road::kMapped, Road::kProtect}) {
    SCOPED_TRACE(NameOf(road));
    Freeze(road);
    // A thaw finds pages in every state.
    ASSERT_EQ(uffd_.WriteProtect(guest(1), unit(), 0), 0);
    Thaw();
    Touch touch(&uffd_, [this] {
      for (size_t at = 0; at < guest_.size(); at += kPage) WriteByte(guest_.data() + at, 2);
    });
    ASSERT_TRUE(touch.Finished());
    EXPECT_TRUE(uffd_.Quiet());
    EXPECT_TRUE(IsMappedHuge());
    EXPECT_TRUE(GuestIsRegistered("um"));
    EXPECT_FALSE(GuestIsRegistered("uw"));
    EXPECT_FALSE(GuestIsRegistered("ui"));
  }
}

// Small entries stay until they are zapped (F23), but nothing is protected any more.
TEST_P(SnapshotFreezeTest, UnregisteringLiftsTheProtectionItself) {
  Freeze(Road::kMapped);
  ASSERT_EQ(uffd_.Unregister(guest_.data(), guest_.size()), 0);
  EXPECT_TRUE(IsSilent(guest(2), Touch::Kind::kWrite));
  EXPECT_EQ(IsMappedHuge(), GetParam() == Store::kHugetlb);
}

TEST_P(SnapshotFreezeTest, UnregisteringWakesWhoWaits) {
  Freeze(Road::kMapped);
  Touch write(&uffd_, guest(2), Touch::Kind::kWrite);
  ASSERT_TRUE(Raised(2, kProtectedEvent));
  Thaw();
  EXPECT_TRUE(write.Finished());
  EXPECT_EQ(ReadByte(pager(2)), 1);
}

// What the guest does to its own mapping ---------------------------------------------------------

TEST_P(SnapshotFreezeTest, MprotectAndBackKeepsItFrozen) {
  Freeze(Road::kZap);
  ASSERT_EQ(ContinueAs(uffd_, guest(0), 4 * unit(), MapAs::kProtected), 0);
  for (const size_t index : {2, 5}) {
    for (const int prot : {PROT_READ, PROT_NONE}) {
      ASSERT_EQ(mprotect(guest(index), unit(), prot), 0);
      ASSERT_EQ(mprotect(guest(index), unit(), PROT_READ | PROT_WRITE), 0);
    }
  }
  for (const size_t index : {1, 2, 3}) {  // mapped
    Touch write(&uffd_, guest(index), Touch::Kind::kWrite);
    ASSERT_TRUE(Raised(index, kProtectedEvent));
    ASSERT_EQ(uffd_.WriteProtect(guest(index), unit(), 0), 0);
    ASSERT_TRUE(write.Finished());
  }
  for (const size_t index : {4, 5, 6}) {  // zapped
    Touch write(&uffd_, guest(index), Touch::Kind::kWrite);
    ASSERT_TRUE(Raised(index, kWriteEvent));
    ASSERT_EQ(ContinueAs(uffd_, guest(index), unit(), MapAs::kWritable), 0);
    ASSERT_TRUE(write.Finished());
  }
}

// A program that makes a range read-only and writable again does not lift protection from outside.
TEST_P(SnapshotFreezeTest, MprotectAndBackKeepsProtectionFromOutside) {
  Freeze(Road::kProtect);
  ASSERT_EQ(mprotect(guest(2), unit(), PROT_READ), 0);
  ASSERT_EQ(mprotect(guest(2), unit(), PROT_READ | PROT_WRITE), 0);
  Touch write(&uffd_, guest(2), Touch::Kind::kWrite);
  EXPECT_TRUE(Raised(2, GetParam() == Store::kHugetlb ? kProtectedEvent : kWriteEvent));
  EXPECT_EQ(ReadByte(pager(2)), OriginalByte(2));
  Thaw();
}

// REGISTER and WRITEPROTECT go over a range of several mappings; CONTINUE does not, and then says
// what it also says of a guest that is gone. (hugetlb mappings do not even merge again.)
TEST_P(SnapshotFreezeTest, AWindowMustStayInOneMapping) {
  ASSERT_EQ(mprotect(guest_.block(2), kBlock, PROT_READ), 0);
  Freeze(Road::kZap);
  EXPECT_EQ(ContinueAs(uffd_, guest_.block(1), 2 * kBlock, MapAs::kProtected), ENOENT);
  EXPECT_EQ(ContinueAs(uffd_, guest_.block(1), kBlock, MapAs::kProtected), 0) << "none was mapped";
  EXPECT_EQ(ContinueAs(uffd_, guest_.block(2), kBlock, MapAs::kProtected), 0);
}

// Without UFFD_FEATURE_EVENT_REMAP the moved range is neither watched nor protected: whoever moves
// it must register it again.
TEST_P(SnapshotFreezeTest, MremapDropsRegistrationAndProtection) {
  Freeze(Road::kMapped);
  char* target = ReserveAligned(2 * kBlock, kBlock);
  ASSERT_NE(target, nullptr);
  ASSERT_EQ(mremap(guest_.block(4), 2 * kBlock, 2 * kBlock, MREMAP_MAYMOVE | MREMAP_FIXED, target),
            target)
      << strerror(errno);
  const ScopedMapping moved = ScopedMapping::Adopt(target, 2 * kBlock);
  const auto vma = ReadVma(0, moved.data());
  ASSERT_TRUE(vma.has_value());
  EXPECT_FALSE(vma->HasFlag("uw"));
  EXPECT_FALSE(vma->HasFlag("ui"));
  EXPECT_TRUE(IsSilent(moved.data(), Touch::Kind::kWrite));
  EXPECT_EQ(ReadByte(pager_.block(4)), 1) << "written unseen";

  ASSERT_EQ(uffd_.Register(moved.data(), moved.size(), kTracked), 0);
  ASSERT_EQ(madvise(moved.data(), moved.size(), MADV_DONTNEED), 0);
  Touch write(&uffd_, moved.block(1), Touch::Kind::kWrite);
  EXPECT_TRUE(RaisedAt(moved.block(1), kWriteEvent)) << "frozen again";
  EXPECT_EQ(uffd_.Unregister(moved.data(), moved.size()), 0);
}

// F22: the child has the mapping but no entry of it, and no registration: what it writes before it
// registers is written unseen.
TEST_P(SnapshotFreezeTest, AForkedChildMustRegisterItself) {
  for (const Road road : {Road::kZap, Road::kMapped, Road::kProtect}) {
    SCOPED_TRACE(NameOf(road));
    Freeze(road);
    Child forked(Identity::kSame, [this](Channel&) {
      const auto vma = ReadVma(0, guest_.data());
      CHILD_CHECK(vma.has_value());
      CHILD_CHECK(vma->rss_kib == 0);
      CHILD_CHECK(vma->shared_hugetlb_kib + vma->private_hugetlb_kib == 0);
      CHILD_CHECK(!vma->HasFlag("um") && !vma->HasFlag("uw") && !vma->HasFlag("ui"));
      WriteByte(guest(1), 3);
      TestUffd own = TestUffd::Open();
      CHILD_CHECK(own.Register(guest_.data(), guest_.size(), kTracked) == 0);
      // In another block: what was touched is mapped, on huge tmpfs with all of its block.
      Touch write(&own, guest_.block(3), Touch::Kind::kWrite);
      const auto fault = own.WaitFault();
      CHILD_CHECK(fault.has_value() && (fault->flags & UFFD_PAGEFAULT_FLAG_MINOR) != 0);
      CHILD_CHECK(ContinueAs(own, guest_.block(3), unit(), MapAs::kWritable) == 0);
      CHILD_CHECK(write.Finished());
      return 0;
    });
    ASSERT_EQ(forked.Wait(), 0);
    EXPECT_TRUE(uffd_.Quiet()) << "the parent's registration has no part in it";
    EXPECT_EQ(ReadByte(pager(1)), 3);
    EXPECT_EQ(ReadByte(pager_.block(3)), 1);
    Thaw();
  }
}

// The life of the descriptor ---------------------------------------------------------------------

// A thread with a descriptor table of its own, which holds one more copy of a descriptor.
class Holder {
 public:
  explicit Holder(int fd) {
    thread_ = std::thread([this, fd] {
      is_apart_.set_value(unshare(CLONE_FILES) == 0);
      release_.get_future().wait();
      close(fd);
      closed_.set_value();
      leave_.get_future().wait();
    });
    ok_ = is_apart_.get_future().get();
  }
  ~Holder() {
    Release();
    leave_.set_value();
    thread_.join();
  }
  bool ok() const { return ok_; }
  void Release() {
    if (std::exchange(released_, true)) return;
    release_.set_value();
    closed_.get_future().wait();
  }

 private:
  bool ok_ = false;
  bool released_ = false;
  std::promise<bool> is_apart_;
  std::promise<void> release_;
  std::promise<void> closed_;
  std::promise<void> leave_;
  std::thread thread_;
};

// F4, and what the life of a frozen region hangs on: while any copy is open, faults wait, old ones
// and new ones; with the last copy they go on natively, also over what was protected.
TEST_P(SnapshotFreezeTest, TheLastDescriptorKeepsFaultsWaiting) {
  Freeze(Road::kMapped);
  // Before the holder: whatever fails below, it goes first and frees them.
  std::unique_ptr<Touch> early;
  std::unique_ptr<Touch> late;
  Holder holder(uffd_.fd());
  ASSERT_TRUE(holder.ok()) << "unshare(CLONE_FILES)";
  early = std::make_unique<Touch>(&uffd_, guest(2), Touch::Kind::kWrite);
  ASSERT_TRUE(Raised(2, kProtectedEvent));

  uffd_.Close();
  late = std::make_unique<Touch>(&uffd_, guest(3), Touch::Kind::kWrite);
  EXPECT_FALSE(early->Finished(kQuietTime));
  EXPECT_FALSE(late->Finished(kQuietTime));
  EXPECT_EQ(ReadByte(pager(2)), OriginalByte(2));
  EXPECT_EQ(ReadByte(pager(3)), OriginalByte(3));

  holder.Release();
  EXPECT_TRUE(early->Finished());
  EXPECT_TRUE(late->Finished());
  EXPECT_EQ(ReadByte(pager(2)), 1);
  EXPECT_EQ(ReadByte(pager(3)), 1);
  EXPECT_FALSE(GuestIsRegistered("um"));
  EXPECT_FALSE(GuestIsRegistered("uw"));
}

// Huge frames and their mappings -----------------------------------------------------------------

// The kernel's collapse, which exchanges frames and mappings behind everybody's back.
class SnapshotCollapseTest : public FrozenFileTest, public ::testing::WithParamInterface<Road> {
 protected:
  void SetUp() override {
    HOSTMM_SKIP_IF(WhyNoCollapse());
    Open(Store::kHugeTmpfs);
  }

  // Small frames, as a sparse region has them, and frozen; from then on they may be collapsed. Both
  // views say no before that: khugepaged looks at this file, too, whenever it likes.
  void FillSmallAndFreeze() {
    ASSERT_EQ(madvise(pager_.data(), pager_.size(), MADV_NOHUGEPAGE), 0);
    ASSERT_EQ(madvise(guest_.data(), guest_.size(), MADV_NOHUGEPAGE), 0);
    Fill();
    ASSERT_EQ(PmdMappedKib(guest_.data()), 0);
    Freeze(GetParam());
    ASSERT_EQ(madvise(pager_.data(), pager_.size(), MADV_HUGEPAGE), 0);
    ASSERT_EQ(madvise(guest_.data(), guest_.size(), MADV_HUGEPAGE), 0);
  }

  // The content is the same, and a write is still announced before it is done.
  void ExpectStillFrozen() {
    EXPECT_EQ(memcmp(pager_.data(), original().data(), original().size()), 0);
    EXPECT_EQ(PmdMappedKib(guest_.data()), 0);
    Touch write(&uffd_, guest_.block(1), Touch::Kind::kWrite);
    const auto fault = uffd_.WaitFault();
    ASSERT_TRUE(fault.has_value());
    EXPECT_TRUE(fault->flags & UFFD_PAGEFAULT_FLAG_WRITE);
    EXPECT_TRUE(write.StillWaiting());
    const bool is_mapped = (fault->flags & UFFD_PAGEFAULT_FLAG_MINOR) == 0;
    ASSERT_EQ(is_mapped ? uffd_.WriteProtect(guest_.block(1), kPage, 0)
                        : ContinueAs(uffd_, guest_.block(1), kPage, MapAs::kWritable),
              0);
    EXPECT_TRUE(write.Finished());
    EXPECT_EQ(ReadByte(pager_.block(1)), 1);
  }
};

INSTANTIATE_TEST_SUITE_P(By, SnapshotCollapseTest,
                         ::testing::Values(Road::kZap, Road::kMapped, Road::kProtect),
                         [](const auto& info) { return NameOf(info.param); });

TEST_P(SnapshotCollapseTest, TheGuestCannotMapAFrozenBlockHuge) {
  Fill();
  Freeze(GetParam());
  EXPECT_EQ(madvise(guest_.block(1), kBlock, kMadvCollapse), -1);
  EXPECT_EQ(errno, EINVAL);
  ExpectStillFrozen();
}

TEST_P(SnapshotCollapseTest, TheGuestCannotCollapseItsSmallFrames) {
  FillSmallAndFreeze();
  EXPECT_EQ(madvise(guest_.block(1), kBlock, kMadvCollapse), -1);
  EXPECT_EQ(errno, EINVAL);
  ExpectStillFrozen();
}

// The pager makes the frame huge through its own mapping. The guest's entries go, and where they
// were protected markers stay: the next read is an event, too.
TEST_P(SnapshotCollapseTest, ThePagersCollapseKeepsItFrozen) {
  FillSmallAndFreeze();
  ASSERT_EQ(Collapse(pager_.block(1)), 0);
  EXPECT_GE(PmdMappedKib(pager_.data()), static_cast<int64_t>(kBlock >> 10));
  ExpectStillFrozen();
}

// hugetlb: the PMD table that guests share -------------------------------------------------------

// Two guests that share one, of which one is frozen. Each takes 1 GiB of addresses.
class SnapshotHugetlbTest : public FrozenFileTest {
 protected:
  // What a shared table leaves to do, and the stack of the thread that touches.
  static constexpr int64_t kSharedFaults = 4;
  static constexpr int64_t kBlocksPerGiB = kGiB / kBlock;

  void SetUp() override {
    HOSTMM_SKIP_IF(WhyNoMemory(3));
    Open(Store::kHugetlb, kGiB);
    if (IsSkipped() || HasFatalFailure()) return;
    if (madvise(pager_.data(), kGiB, MADV_POPULATE_WRITE) != 0) {
      GTEST_SKIP() << "not 1 GiB of hugetlb pages to be had: memory is fragmented";
    }
    other_ = PlacedGuest();
    guest_ = PlacedGuest();
    ReadEvery(other_.data(), kGiB, kBlock);
    ASSERT_TRUE(IsShared(guest_)) << "the two share a table";
  }

  // Aligned so that its PMD table can be shared.
  ScopedMapping PlacedGuest() {
    ScopedMapping mapping =
        ScopedMapping::SharedFile(file_.get(), kGiB, PROT_READ | PROT_WRITE, kGiB);
    EXPECT_EQ(uffd_.Register(mapping.data(), kGiB, UFFDIO_REGISTER_MODE_MISSING), 0);
    return mapping;
  }

  // Minor faults that it takes to reach every block; -1 if an event stood in the way.
  int64_t FaultsToReachAll(const ScopedMapping& mapping) {
    Touch touch(&uffd_, [&] { ReadEvery(mapping.data(), kGiB, kBlock); });
    return touch.Finished() ? touch.minor_faults() : -1;
  }
  // As above, when the table is the other guest's.
  ::testing::AssertionResult IsShared(const ScopedMapping& mapping) {
    const int64_t faults = FaultsToReachAll(mapping);
    if (faults >= 0 && faults <= kSharedFaults) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << faults << " faults";
  }

  ScopedMapping other_;
};

// A table that was shared is given up at registration, so that protection finds nothing mapped:
// reads of a guest that shared its table are events on this road, too.
TEST_F(SnapshotHugetlbTest, ProtectionOfASharedTableTakesReadsAway) {
  Freeze(Road::kProtect);
  Touch read(&uffd_, guest_.block(1), Touch::Kind::kRead);
  ASSERT_TRUE(RaisedAt(guest_.block(1), kReadEvent));
  ASSERT_EQ(ContinueAs(uffd_, guest_.block(1), kBlock, MapAs::kProtected), 0);
  ASSERT_TRUE(read.Finished());
  Touch write(&uffd_, guest_.block(2), Touch::Kind::kWrite);
  ASSERT_TRUE(RaisedAt(guest_.block(2), kWriteEvent));
  ASSERT_EQ(ContinueAs(uffd_, guest_.block(2), kBlock, MapAs::kWritable), 0);
  ASSERT_TRUE(write.Finished());
  EXPECT_TRUE(IsShared(other_)) << "the other guest keeps the table";
}

// Thawed, a guest that mapped anything meanwhile has a table of its own, which a zap empties but
// does not free. Only a new mapping shares again.
TEST_F(SnapshotHugetlbTest, SharingReturnsWithANewMappingOnly) {
  Freeze(Road::kZap);
  Thaw();
  EXPECT_TRUE(IsShared(guest_)) << "nothing was mapped meanwhile";

  Freeze(Road::kMapped);
  Thaw();
  EXPECT_GE(FaultsToReachAll(guest_), kBlocksPerGiB);

  // Emptied once more, so that only what is shared is mapped below.
  ASSERT_EQ(madvise(guest_.data(), kGiB, MADV_DONTNEED), 0);
  void* place = guest_.data();
  ASSERT_EQ(mmap(place, kGiB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE,
                 file_.get(), 0),
            place)
      << strerror(errno);
  ASSERT_EQ(uffd_.Register(place, kGiB, UFFDIO_REGISTER_MODE_MISSING), 0);
  EXPECT_TRUE(IsShared(guest_));
}

}  // namespace
}  // namespace hostmm::test
