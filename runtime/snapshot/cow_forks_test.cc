// Forks of copy-on-write memory, as the pager is asked for them.
#include <gtest/gtest.h>
#include <poll.h>

#include <cstdint>
#include <optional>

#include "runtime/snapshot/snapshots.h"
#include "runtime/snapshot/snapshots_fixture.h"
#include "tests/testing/scoped_mapping.h"

namespace hostmm {
namespace {

using protocol::Kind;
using protocol::Message;
using protocol::Status;

using CowForksTest = SnapshotsTest;

// It would read its parent's live memory for ever.
TEST_F(CowForksTest, ACopyOnWriteChildWithoutAViewIsNotServed) {
  Guest& guest = NewProcess();
  const std::optional<Message> created = Ask(guest, Ranged(Kind::kCreate, 0, kRegion));
  ASSERT_TRUE(created.has_value());
  const test::ScopedMapping memory = test::ScopedMapping::SharedFile(file_.get(), kRegion);
  const auto va = reinterpret_cast<uint64_t>(memory.data());
  Message map = Ranged(Kind::kMap, va, kRegion);
  map.mm = created->mm;
  map.mode = kCow;
  ASSERT_EQ(StatusOf(guest, map), Status::kOk);
  for (const bool lost : {false, true}) {
    SCOPED_TRACE(lost);
    ASSERT_EQ(Ask(guest, Ranged(Kind::kForkCow, va, kRegion))->status, Status::kOk);
    if (lost) snapshots_.LoseFor({created->mm.slot, created->mm.generation}, "no memory");
    const UniqueFd childs_end = AnnounceFork(guest);
    pollfd end = {childs_end.get(), POLLIN | POLLRDHUP, 0};
    ASSERT_GE(poll(&end, 1, 0), 0);
    EXPECT_EQ((end.revents & POLLRDHUP) != 0, lost);
    EndGuest(*guests_.Find(children_.back()));
  }
}

}  // namespace
}  // namespace hostmm
