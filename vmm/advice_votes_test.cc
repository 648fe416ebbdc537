#include "vmm/advice_votes.h"

#include <gtest/gtest.h>

#include <array>
#include <bitset>
#include <random>
#include <vector>

namespace hostmm {
namespace {

using Ranges = std::vector<PageRange>;
using Mappers = std::vector<AdviceVotes::Mapper>;

constexpr PageRange Pages(uint64_t first, uint64_t end) { return {FilePage(first), FilePage(end)}; }
constexpr PageRange kAll = Pages(0, 1000);
constexpr MmId kMm{1, 1};
constexpr GuestId kA{1, 1};
constexpr GuestId kB{2, 1};

TEST(AdviceVotesTest, PagesGoWhenAllWhoMapThemHaveVoted) {
  AdviceVotes votes;
  const Mappers mappers = {{kA, {Pages(0, 20)}}, {kB, {Pages(10, 30)}}};
  votes.Vote(kMm, kA, Pages(0, 15));
  EXPECT_EQ(votes.Unanimous(kMm, kAll, mappers), Ranges({Pages(0, 10)}));
  votes.Vote(kMm, kB, Pages(12, 40));
  // Nobody maps 30 to 40.
  EXPECT_EQ(votes.Unanimous(kMm, kAll, mappers),
            Ranges({Pages(0, 10), Pages(12, 15), Pages(20, 30)}));
  EXPECT_EQ(votes.Unanimous(kMm, Pages(13, 25), mappers), Ranges({Pages(13, 15), Pages(20, 25)}));
}

TEST(AdviceVotesTest, NobodyVotedOrNobodyMaps) {
  AdviceVotes votes;
  EXPECT_EQ(votes.Unanimous(kMm, kAll, Mappers{{kA, {kAll}}}), Ranges());
  votes.Vote(kMm, kA, kAll);
  EXPECT_EQ(votes.Unanimous(kMm, kAll, {}), Ranges());
  EXPECT_EQ(votes.Unanimous(MmId{1, 2}, kAll, Mappers{{kA, {kAll}}}), Ranges());
  EXPECT_EQ(votes.Unanimous(kMm, kAll, Mappers{{GuestId{1, 2}, {kAll}}}), Ranges());
}

TEST(AdviceVotesTest, AGuestThatGoesNoLongerHoldsTheOthers) {
  AdviceVotes votes;
  votes.Vote(kMm, kA, Pages(0, 20));
  const Mappers both = {{kA, {Pages(0, 20)}}, {kB, {Pages(0, 20)}}};
  EXPECT_EQ(votes.Unanimous(kMm, kAll, both), Ranges());
  EXPECT_EQ(votes.Unanimous(kMm, kAll, std::span(both).first(1)), Ranges({Pages(0, 20)}));
}

TEST(AdviceVotesTest, OneGuestWithSeveralWindows) {
  AdviceVotes votes;
  votes.Vote(kMm, kA, Pages(0, 10));
  votes.Vote(kMm, kA, Pages(15, 20));
  const Mappers mappers = {{kA, {Pages(0, 12), Pages(5, 20)}}, {kA, {Pages(8, 9)}}};
  EXPECT_EQ(votes.Unanimous(kMm, kAll, mappers), Ranges({Pages(0, 10), Pages(15, 20)}));
}

TEST(AdviceVotesTest, AVoteIsTakenBack) {
  AdviceVotes votes;
  const Mappers mappers = {{kA, {kAll}}};
  votes.Vote(kMm, kA, Pages(0, 20));
  votes.Drop(kMm, kA, Pages(5, 10));
  EXPECT_EQ(votes.Unanimous(kMm, kAll, mappers), Ranges({Pages(0, 5), Pages(10, 20)}));
  votes.Clear(kMm, Pages(0, 12));
  EXPECT_EQ(votes.Unanimous(kMm, kAll, mappers), Ranges({Pages(12, 20)}));
  votes.Clear(kMm, kAll);
  EXPECT_TRUE(votes.empty());
}

TEST(AdviceVotesTest, NothingStaysBehind) {
  AdviceVotes votes;
  votes.Vote(kMm, kA, Pages(3, 3));
  EXPECT_TRUE(votes.empty());
  votes.Vote(kMm, kA, kAll);
  votes.Vote(MmId{2, 1}, kA, kAll);
  votes.Vote(MmId{2, 1}, kB, kAll);
  votes.DropGuest(kA);
  EXPECT_EQ(votes.Unanimous(MmId{2, 1}, kAll, Mappers{{kB, {kAll}}}), Ranges({kAll}));
  votes.DropMm(MmId{2, 1});
  EXPECT_TRUE(votes.empty());
  votes.Vote(kMm, kB, kAll);
  votes.Drop(kMm, kB, kAll);
  EXPECT_TRUE(votes.empty());
}

TEST(AdviceVotesTest, OneGuestCannotVoteForTooManyPieces) {
  AdviceVotes votes;
  const PageRange everything = Pages(0, 4 * kMaxVotedRanges);
  const Mappers mappers = {{kA, {everything}}};
  for (uint64_t i = 0; i < 2 * kMaxVotedRanges; ++i) votes.Vote(kMm, kA, Pages(2 * i, 2 * i + 1));
  EXPECT_EQ(votes.Unanimous(kMm, everything, mappers).size(), kMaxVotedRanges);
  // What joins pieces is no further piece.
  votes.Vote(kMm, kA, Pages(0, 100));
  EXPECT_EQ(votes.Unanimous(kMm, Pages(0, 100), mappers), Ranges({Pages(0, 100)}));
  votes.Vote(kMm, kA, everything);
  EXPECT_EQ(votes.Unanimous(kMm, everything, mappers), Ranges({everything}));
  // Nor do holes make too many.
  for (uint64_t i = 0; i < kMaxVotedRanges - 1; ++i) votes.Drop(kMm, kA, Pages(2 * i, 2 * i + 1));
  EXPECT_EQ(votes.Unanimous(kMm, everything, mappers).size(), kMaxVotedRanges - 1);
  votes.Drop(kMm, kA, Pages(3 * kMaxVotedRanges, 3 * kMaxVotedRanges + 1));
  votes.Clear(kMm, Pages(3 * kMaxVotedRanges + 2, 3 * kMaxVotedRanges + 3));
  EXPECT_EQ(votes.Unanimous(kMm, everything, mappers), Ranges());
  EXPECT_TRUE(votes.empty());
}

// Random votes of a few guests with random windows, against a bit for each page.
TEST(AdviceVotesTest, RandomAgainstBits) {
  constexpr uint64_t kPages = 64;
  constexpr size_t kGuests = 3;
  constexpr size_t kMms = 2;
  using Bits = std::bitset<kPages>;
  std::mt19937_64 random(1);
  const auto below = [&random](uint64_t end) { return random() % end; };
  const auto range = [&below] {
    const uint64_t first = below(kPages);
    return Pages(first, first + below(kPages + 1 - first));
  };
  const auto bits_of = [](PageRange pages) {
    Bits bits;
    for (uint64_t i = pages.first.value(); i < pages.end.value(); ++i) bits.set(i);
    return bits;
  };
  AdviceVotes votes;
  std::array<std::array<Bits, kGuests>, kMms> model{};
  size_t agreed_pages = 0;
  for (int step = 0; step < 20'000; ++step) {
    const size_t mm = below(kMms);
    const size_t guest = below(kGuests);
    const MmId mm_id{static_cast<uint32_t>(mm + 1), 1};
    const GuestId guest_id{static_cast<uint32_t>(guest + 1), 1};
    const PageRange pages = range();
    switch (below(20)) {
      case 0:
        votes.DropGuest(guest_id);
        for (auto& of_mm : model) of_mm[guest].reset();
        break;
      case 1:
        votes.DropMm(mm_id);
        for (Bits& bits : model[mm]) bits.reset();
        break;
      case 2:
        votes.Clear(mm_id, pages);
        for (Bits& bits : model[mm]) bits &= ~bits_of(pages);
        break;
      case 3:
      case 4:
        votes.Drop(mm_id, guest_id, pages);
        model[mm][guest] &= ~bits_of(pages);
        break;
      default:
        votes.Vote(mm_id, guest_id, pages);
        model[mm][guest] |= bits_of(pages);
    }
    Mappers mappers;
    Bits mapped, refused;
    for (size_t i = below(4); i != 0; --i) {
      const size_t who = below(kGuests);
      mappers.push_back({GuestId{static_cast<uint32_t>(who + 1), 1}, {range(), range()}});
      for (const PageRange& window : mappers.back().pages) {
        mapped |= bits_of(window);
        refused |= bits_of(window) & ~model[mm][who];
      }
    }
    const PageRange asked = range();
    Bits found;
    for (const PageRange& part : votes.Unanimous(mm_id, asked, mappers)) found |= bits_of(part);
    ASSERT_EQ(found, mapped & ~refused & bits_of(asked)) << "step " << step;
    agreed_pages += found.count();
  }
  EXPECT_GT(agreed_pages, 10'000u);  // not trivially nothing
}

}  // namespace
}  // namespace hostmm
