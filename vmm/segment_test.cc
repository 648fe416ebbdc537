#include "vmm/segment.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "vmm/test_segment.h"

namespace hostmm {
namespace {

constexpr SegmentConfig kConfig{.max_guests = 3, .max_mms = 4, .max_regions = 5, .max_nodes = 6};

class SegmentTest : public testing::Test {
 protected:
  AttachStatus AttachTo(std::span<const std::byte> bytes) {
    SegmentView view;
    return SegmentView::Attach(bytes, &view);
  }
  AttachStatus Attach() { return AttachTo(segment_.bytes()); }
  SegmentHeader& header() { return segment_.tables.segment().header(); }

  TestSegment segment_{kConfig};
};

TEST_F(SegmentTest, AttachFindsWhatFormatMade) {
  SegmentView view;
  ASSERT_EQ(SegmentView::Attach(segment_.bytes(), &view), AttachStatus::kOk);
  EXPECT_EQ(view.config(), kConfig);
  EXPECT_EQ(view.node_bytes(), 4096u);
}

TEST_F(SegmentTest, AttachKeepsTheGeometry) {
  SegmentConfig config = kConfig;
  config.geometry = kPowerPcSegments;
  TestSegment other(config);
  SegmentView view;
  ASSERT_EQ(SegmentView::Attach(other.bytes(), &view), AttachStatus::kOk);
  EXPECT_EQ(view.geometry(), kPowerPcSegments);
}

TEST_F(SegmentTest, AttachRefusesWhatIsNoSegment) {
  EXPECT_EQ(AttachTo({}), AttachStatus::kTooSmall);
  EXPECT_EQ(AttachTo(segment_.bytes().first(kSegmentHeaderBytes - 1)), AttachStatus::kTooSmall);
  EXPECT_EQ(AttachTo(segment_.bytes().subspan(8)), AttachStatus::kMisaligned);
  std::memset(segment_.bytes().data(), 0, kSegmentHeaderBytes);
  EXPECT_EQ(Attach(), AttachStatus::kBadMagic);
  std::memset(segment_.bytes().data(), 0xff, kSegmentHeaderBytes);
  EXPECT_EQ(Attach(), AttachStatus::kBadMagic);
}

TEST_F(SegmentTest, AttachRefusesAnotherVersion) {
  header().version.StoreLow(kSegmentVersion + 1);
  EXPECT_EQ(Attach(), AttachStatus::kBadVersion);
  header().version.StoreLow(0);
  EXPECT_EQ(Attach(), AttachStatus::kBadVersion);
  header().version.StoreHalves(kSegmentVersion, kSegmentHeaderBytes + 64);
  EXPECT_EQ(Attach(), AttachStatus::kBadVersion);
}

TEST_F(SegmentTest, AttachRefusesImpossibleShapes) {
  const uint64_t geometry = header().geometry.Load();
  for (int byte = 0; byte < 8; ++byte) {
    header().geometry.Store(geometry ^ (uint64_t{0x7f} << (8 * byte)));
    EXPECT_EQ(Attach(), AttachStatus::kBadGeometry) << byte;
  }
  header().geometry.Store(geometry);
  header().max_guests_mms.StoreLow(0);
  EXPECT_EQ(Attach(), AttachStatus::kBadGeometry);
  header().max_guests_mms.StoreLow(~uint32_t{0});
  EXPECT_EQ(Attach(), AttachStatus::kBadGeometry);
}

TEST_F(SegmentTest, AttachRefusesArraysThatDoNotMatchTheSize) {
  header().max_regions_nodes.StoreHigh(7);
  EXPECT_EQ(Attach(), AttachStatus::kBadGeometry);
}

TEST_F(SegmentTest, AttachRefusesATruncatedSegment) {
  EXPECT_EQ(AttachTo(segment_.bytes().first(segment_.bytes().size() - 1)),
            AttachStatus::kTruncated);
  EXPECT_EQ(AttachTo(segment_.bytes().first(kSegmentHeaderBytes)), AttachStatus::kTruncated);
}

TEST_F(SegmentTest, RecordsOutsideTheirArrayDoNotExist) {
  const Segment& segment = segment_.tables.segment();
  EXPECT_EQ(segment.guest(kNullRecord), nullptr);
  EXPECT_NE(segment.guest(1), nullptr);
  EXPECT_NE(segment.guest(3), nullptr);
  EXPECT_EQ(segment.guest(4), nullptr);
  EXPECT_EQ(segment.mm(5), nullptr);
  EXPECT_EQ(segment.region(6), nullptr);
  EXPECT_EQ(segment.attachment(~RecordIndex{0}), nullptr);
  EXPECT_EQ(segment.node(7), nullptr);
}

TEST_F(SegmentTest, OffsetsThatAreNoTableDoNotExist) {
  const Segment& segment = segment_.tables.segment();
  const HostOffset first = segment.OffsetOfNode(1);
  EXPECT_EQ(segment.NodeAt(first), 1u);
  EXPECT_NE(segment.entries(first), nullptr);
  EXPECT_EQ(segment.entries(kNullOffset), nullptr);
  EXPECT_EQ(segment.entries(HostOffset(first.value() + 8)), nullptr);
  EXPECT_EQ(segment.entries(HostOffset(first.value() - 4096)), nullptr);
  EXPECT_EQ(segment.entries(HostOffset(first.value() + 6 * 4096)), nullptr);
  EXPECT_EQ(segment.entries(HostOffset(~uint64_t{0} << 12)), nullptr);
  EXPECT_EQ(segment.NodeAt(segment.OffsetOfNode(6)), 6u);
}

TEST_F(SegmentTest, LastRecordsStayInsideTheBytes) {
  const Segment& segment = segment_.tables.segment();
  const auto* end =
      reinterpret_cast<const char*>(segment_.bytes().data() + segment_.bytes().size());
  const HostOffset last = segment.OffsetOfNode(kConfig.max_nodes);
  EXPECT_EQ(reinterpret_cast<const char*>(segment.entries(last)) + segment.node_bytes(), end);
  EXPECT_LE(reinterpret_cast<const char*>(segment.node(kConfig.max_nodes) + 1), end);
}

TEST_F(SegmentTest, IdsOfOtherIncarnationsNameNobody) {
  const GuestId id = segment_.AddGuest();
  const Segment& segment = segment_.tables.segment();
  EXPECT_NE(segment.Find(id), nullptr);
  EXPECT_EQ(segment.Find(GuestId{id.slot, id.generation + 1}), nullptr);
  EXPECT_EQ(segment.Find(GuestId{id.slot + 1, id.generation}), nullptr);
  EXPECT_EQ(segment.Find(GuestId{}), nullptr);
  EXPECT_EQ(segment.Find(GuestId{99, 1}), nullptr);
}

TEST_F(SegmentTest, WriteSectionIsOddInside) {
  const Segment& segment = segment_.tables.segment();
  const uint64_t before = header().write_sequence.Load();
  {
    const WriteSection section(segment);
    EXPECT_EQ(header().write_sequence.Load(), before + 1);
  }
  EXPECT_EQ(header().write_sequence.Load(), before + 2);
}

}  // namespace
}  // namespace hostmm
