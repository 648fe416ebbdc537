#include "vmm/pte.h"

#include <gtest/gtest.h>

namespace hostmm {
namespace {

const Pte kPresent = Pte::Present(LeafSize::kSmall, FrameNumber(77), AccessSet::ReadWrite());
const Pte kHuge = Pte::Present(LeafSize::kHuge, FrameNumber(512), Access::kRead);

TEST(PteTest, EmptyIsAZeroWord) {
  EXPECT_EQ(Pte().raw(), 0u);
  EXPECT_TRUE(Pte().is_empty());
  EXPECT_TRUE(Pte().valid());
  EXPECT_FALSE(Pte().is_leaf());
}

TEST(PteTest, KeepsWhatItWasGiven) {
  EXPECT_TRUE(kPresent.is_present());
  EXPECT_FALSE(kPresent.is_huge());
  EXPECT_EQ(kPresent.frame(), FrameNumber(77));
  EXPECT_EQ(kPresent.access(), AccessSet::ReadWrite());
  EXPECT_TRUE(kHuge.is_huge());
  EXPECT_EQ(Pte::Table(HostOffset(8192)).table(), HostOffset(8192));
  EXPECT_TRUE(Pte::Table(HostOffset(8192)).is_table());
  EXPECT_EQ(Pte::FromRaw(kPresent.raw()), kPresent);
}

TEST(PteTest, CopiedIsALeafThatIsNeitherPresentNorInFlight) {
  const Pte copied = Pte::Copied(LeafSize::kHuge, FrameNumber(12));
  EXPECT_TRUE(copied.is_copied() && copied.is_leaf() && copied.is_huge() && copied.valid());
  EXPECT_FALSE(copied.is_present() || copied.is_in_flight() || copied.is_table());
  EXPECT_EQ(copied.frame(), FrameNumber(12));
  EXPECT_FALSE(kPresent.is_copied());
  EXPECT_TRUE(Pte::FromRaw(4).valid());  // small, in frame 0
}

TEST(PteTest, ACopyIsNeverInFlight) {
  EXPECT_EQ(kPresent.ForCopy(), kPresent);
  EXPECT_EQ(kHuge.TakeOffFromPresent().ForCopy(), kHuge);
  EXPECT_EQ(Pte::InFlight(LeafSize::kSmall, FrameNumber(7), Access::kRead).ForCopy(), Pte());
  EXPECT_EQ(Pte::Table(HostOffset(4096)).ForCopy(), Pte::Table(HostOffset(4096)));
}

TEST(PteTest, LargestFrame) {
  const FrameNumber last(kMaxFilePages - 1);
  EXPECT_EQ(Pte::Present(LeafSize::kSmall, last, AccessSet::All()).frame(), last);
}

TEST(PteTest, FlightFromEmpty) {
  const Pte flight = Pte::InFlight(LeafSize::kSmall, FrameNumber(77), AccessSet::ReadWrite());
  EXPECT_TRUE(flight.is_in_flight());
  EXPECT_FALSE(flight.is_present());
  EXPECT_FALSE(flight.was_present());
  EXPECT_EQ(flight.LandFromInFlight(), kPresent);
  EXPECT_EQ(flight.AbandonFromInFlight(), Pte());
}

TEST(PteTest, FlightFromPresentGoesBackToPresent) {
  const Pte flight = kHuge.TakeOffFromPresent();
  EXPECT_TRUE(flight.is_in_flight());
  EXPECT_TRUE(flight.was_present());
  EXPECT_TRUE(flight.is_huge());
  EXPECT_EQ(flight.LandFromInFlight(), kHuge);
  EXPECT_EQ(flight.AbandonFromInFlight(), kHuge);
  EXPECT_EQ(flight.ForgetOldInFlight().AbandonFromInFlight(), Pte());
}

TEST(PteTest, EveryTransitionStaysValid) {
  for (Pte entry : {kPresent, kHuge, kPresent.TakeOffFromPresent(),
                    kHuge.TakeOffFromPresent().ForgetOldInFlight(), Pte::Table(HostOffset(4096)),
                    Pte::InFlight(LeafSize::kHuge, FrameNumber(0), AccessSet())}) {
    EXPECT_TRUE(entry.valid()) << entry.raw();
  }
}

TEST(PteTest, WordsThatNoPteWroteAreNotValid) {
  EXPECT_FALSE(Pte::FromRaw(0x100).valid());  // empty with a payload
  EXPECT_FALSE(Pte::FromRaw(5).valid());      // states that do not exist
  EXPECT_FALSE(Pte::FromRaw(7).valid());
  EXPECT_FALSE(Pte::FromRaw(1 | 8).valid());   // a huge table
  EXPECT_FALSE(Pte::FromRaw(2 | 16).valid());  // present and "was present"
  EXPECT_FALSE(Pte::FromRaw(4 | 16).valid());  // copied and "was present"
  EXPECT_FALSE(Pte::FromRaw(4 | 32).valid());  // copied with an access
  EXPECT_FALSE(Pte::FromRaw(~uint64_t{0}).valid());
}

TEST(PteDeathTest, TransitionsCheckWhereTheyStart) {
  EXPECT_DEATH(Pte().TakeOffFromPresent(), "is_present");
  EXPECT_DEATH(kPresent.LandFromInFlight(), "is_in_flight");
  EXPECT_DEATH(kPresent.AbandonFromInFlight(), "is_in_flight");
}

}  // namespace
}  // namespace hostmm
