// What a snapshot shows: the moment in which it was taken, whatever happens to the live region
// after that, to any number of views, in any process.
#include <unistd.h>

#include <array>
#include <memory>

#include "tests/process/guest_program.h"
#include "tests/snapshots/world.h"

namespace hostmm::test {
namespace {

HOSTMM_CASE(ViewKeepsWhatWas) {
  Live live;
  Fill(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  Want(Holds(view.at(), view.bytes(), 1), "before anybody writes");
  Fill(live.at(), live.bytes(), 2);
  Want(Holds(view.at(), view.bytes(), 1), "everything has been written");
  Want(Holds(live.at(), live.bytes(), 2), "the live region is what was written");
  const View late(snapshot);
  Want(Holds(late.at(), late.bytes(), 1), "a view that is mapped afterwards");
}

// Pages that a view has mapped from the live region, those that it has not, and both orders.
HOSTMM_CASE(PagesAreTakenBackFromViews) {
  Live live;
  Fill(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  const size_t half = live.bytes() / 2;
  Want(Holds(view.at(), half, 1), "one half is mapped");
  Stamp(live.at(), live.bytes(), 7);
  Want(Holds(view.at(), view.bytes(), 1), "what was mapped and what was not");
  Stamp(live.at(), live.bytes(), 8);
  Want(Holds(view.at(), view.bytes(), 1), "written once more");
  Want(IsStamped(live.at(), live.bytes(), 8), "the live region has the latest");
}

HOSTMM_CASE(ReadersShareUnmodifiedFrames) {
  Live live;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  Want(IsStamped(view.at(), view.bytes(), 1), "all of it is read");
  const SnapshotInfo info = snapshot.Info();
  Want(info.copied_bytes == 0 && info.pages_copied == 0, "reading copies nothing: %zu bytes",
       info.copied_bytes);
}

HOSTMM_CASE(HolesAreZeros) {
  Live live;
  const size_t half = live.bytes() / 2;
  Stamp(live.at() + half, half, 1);
  const Snapshot snapshot(live.at());
  const View early(snapshot);
  Want(IsZero(early.at(), half / 2), "a quarter that nobody has touched");
  Stamp(live.at(), half, 2);
  Want(IsZero(early.at(), half), "written after the snapshot");
  Want(IsStamped(early.at() + half, half, 1), "the rest");
  const View late(snapshot);
  Want(IsZero(late.at(), half), "in a view that is mapped later");
  Want(IsStamped(live.at(), half, 2), "the live region");
}

HOSTMM_CASE(NestedInTimeDroppedInAnyOrder) {
  constexpr size_t kCount = 5;
  Live live;
  const size_t part = live.bytes() / 8;
  Stamp(live.at(), live.bytes(), 1);
  std::array<std::unique_ptr<Snapshot>, kCount> snapshots;
  std::array<std::unique_ptr<View>, kCount> views;
  // Of what moment a part is, in the i-th snapshot: part p is written after snapshots p, p+2, ...
  const auto seed = [](size_t i, size_t p) {
    uint64_t last = 1;
    for (size_t k = p; k < i; k += 2) last = 10 + k;
    return last;
  };
  for (size_t i = 0; i < kCount; ++i) {
    snapshots[i] = std::make_unique<Snapshot>(live.at());
    views[i] = std::make_unique<View>(*snapshots[i]);
    for (size_t p = i % 2; p <= i; p += 2) Stamp(live.at() + p * part, part, 10 + i);
  }
  const auto check = [&](const char* when) {
    for (size_t i = 0; i < kCount; ++i) {
      if (views[i] == nullptr) continue;
      bool right = true;
      for (size_t p = 0; p < 8; ++p) {
        right = right && IsStamped(views[i]->at() + p * part, part, p < kCount ? seed(i, p) : 1);
      }
      Want(right, "%s: snapshot %zu shows its moment", when, i);
    }
  };
  check("all are there");
  for (const size_t drop : {2, 0, 4, 1, 3}) {
    views[drop].reset();
    snapshots[drop].reset();
    Stamp(live.at() + drop * part, part, 100 + drop);
    check("one has gone");
  }
  Want(Eventually([&] { return IsNative(live.at()); }), "after the last one nothing is tracked");
}

HOSTMM_CASE(SnapshotsAgainAndAgain) {
  constexpr uint64_t kRounds = 40;
  Live live;
  for (uint64_t round = 1; round <= kRounds; ++round) {
    Stamp(live.at(), live.bytes() / 4, round);
    const Snapshot snapshot(live.at());
    Stamp(live.at(), live.bytes() / 8, round + 1000);
    const View view(snapshot);
    const bool right = IsStamped(view.at(), live.bytes() / 4, round) &&
                       IsStamped(live.at(), live.bytes() / 8, round + 1000);
    if (!right || round == kRounds) Want(right, "round %d", static_cast<int>(round));
    if (!right) return;
  }
}

HOSTMM_CASE(PrivateWritableView) {
  Live live;
  const size_t quarter = live.bytes() / 4;
  Stamp(live.at(), 3 * quarter, 1);  // and a hole
  const Snapshot snapshot(live.at());
  const View mine(snapshot, kReadWrite);
  const View other(snapshot, kReadWrite);
  const View reader(snapshot);
  // Written unread, written after it was read, written after the live page was, and in a hole.
  Want(IsStamped(mine.at() + quarter, quarter, 1), "read");
  Stamp(live.at() + 2 * quarter, quarter, 2);
  Stamp(mine.at(), live.bytes(), 9);
  Want(IsStamped(mine.at(), live.bytes(), 9), "the view has what was written to it");
  Want(IsStamped(other.at(), 3 * quarter, 1) && IsZero(other.at() + 3 * quarter, quarter),
       "another private view does not");
  Want(IsStamped(reader.at(), 3 * quarter, 1) && IsZero(reader.at() + 3 * quarter, quarter),
       "a reader does not");
  Want(IsStamped(live.at(), 2 * quarter, 1) && IsStamped(live.at() + 2 * quarter, quarter, 2),
       "nor has the live region");
  Stamp(live.at(), live.bytes(), 3);
  Want(IsStamped(mine.at(), live.bytes(), 9) && IsStamped(reader.at(), 3 * quarter, 1),
       "when all of it has been written");
  Want(TryWrite(reader.at()) == "SIGSEGV/ACCERR", "a reader cannot write");
}

// The rest of a page that is written in a private view is the snapshot's.
HOSTMM_CASE(PartOfAPageOfAPrivateView) {
  Live live;
  Fill(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const View view(snapshot, kReadWrite);
  Fill(live.at(), live.bytes() / 2, 2);
  for (size_t i = 0; i < view.bytes(); i += Unit()) view.at()[i] ^= 1;
  for (size_t i = 0; i < view.bytes(); i += Unit()) view.at()[i] ^= 1;
  Want(Holds(view.at(), view.bytes(), 1), "but for what was written, it is as it was");
}

HOSTMM_CASE(PartOfASnapshot) {
  Live live;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const size_t offset = OnHugetlb() ? kBlock : kBlock + 3 * kPage;
  const size_t bytes = OnHugetlb() ? 4 * kBlock : 2 * kBlock + 5 * kPage;
  const View view(snapshot, PROT_READ, offset, bytes);
  const View all(snapshot);
  Want(memcmp(view.at(), live.at() + offset, bytes) == 0, "a part is the same part");
  // A hole in the view; the rest is served.
  MUST(hostmm_munmap(view.at() + Unit(), Unit()) == 0);
  Stamp(live.at(), live.bytes(), 2);
  Want(memcmp(view.at(), all.at() + offset, Unit()) == 0, "before what was unmapped");
  const size_t rest = 2 * Unit();
  Want(memcmp(view.at() + rest, all.at() + offset + rest, bytes - rest) == 0, "behind it");
  Want(TryRead(view.at() + Unit()) == "SIGSEGV/MAPERR", "there is nothing there");
}

HOSTMM_CASE(ViewAtAnAddress) {
  Live live;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  char* room = static_cast<char*>(
      mmap(nullptr, 2 * live.bytes() + kBlock, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  MUST(room != MAP_FAILED);
  const uintptr_t aligned = (reinterpret_cast<uintptr_t>(room) + kBlock - 1) & ~(kBlock - 1);
  // Not equal to the offset modulo 2 MiB, which only costs.
  char* at = reinterpret_cast<char*>(aligned) + (OnHugetlb() ? 0 : 7 * kPage);
  MUST(munmap(room, 2 * live.bytes() + kBlock) == 0);
  void* got = hostmm_snapshot_map(snapshot.handle(), at, live.bytes(), PROT_READ, 0);
  Want(got == at, "it is mapped exactly there: %s", got == MAP_FAILED ? hostmm_error() : "ok");
  if (got != at) return;
  Want(memcmp(at, live.at(), live.bytes() / 2) == 0, "read");
  const View other(snapshot);
  Stamp(live.at(), live.bytes(), 2);
  Want(IsStamped(other.at(), live.bytes(), 1) && memcmp(at, other.at(), live.bytes()) == 0,
       "and after writes");
  MUST(hostmm_munmap(at, live.bytes()) == 0);
}

HOSTMM_CASE(ManyViews) {
  constexpr size_t kViews = 8;
  Live live;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  std::array<std::unique_ptr<View>, kViews> views;
  for (auto& view : views) view = std::make_unique<View>(snapshot);
  Want(snapshot.Info().views == kViews, "the pager knows of %zu views", snapshot.Info().views);
  bool before = true;
  for (const auto& view : views) before = before && IsStamped(view->at(), live.bytes(), 1);
  Want(before, "all show it");
  Stamp(live.at(), live.bytes(), 2);
  bool after = true;
  for (const auto& view : views) after = after && IsStamped(view->at(), live.bytes(), 1);
  Want(after, "all show it after it was written");
}

HOSTMM_CASE(ViewOutlivesItsHandle) {
  Live live;
  Stamp(live.at(), live.bytes(), 1);
  auto snapshot = std::make_unique<Snapshot>(live.at());
  View view(*snapshot);
  Want(IsStamped(view.at(), live.bytes() / 2, 1), "mapped");
  snapshot.reset();
  Stamp(live.at(), live.bytes(), 2);
  Want(IsStamped(view.at(), live.bytes(), 1), "without a handle");
  view.Drop();
  Want(Eventually([&] { return IsNative(live.at()); }), "then nothing is tracked");
}

HOSTMM_CASE(ViewsInOtherProcesses) {
  Live live;
  Partner stranger;  // gets the handle over a socket
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  Partner child;  // inherits it
  const int given = stranger.Give(snapshot.handle());
  const size_t bytes = live.bytes();
  const auto map = [](int handle, size_t length) {
    void* at = hostmm_snapshot_map(handle, nullptr, length, PROT_READ, 0);
    return reinterpret_cast<int64_t>(at);
  };
  const int inherited = snapshot.handle();
  auto* theirs =
      reinterpret_cast<char*>(stranger.Do([given, bytes, map] { return map(given, bytes); }));
  auto* childs =
      reinterpret_cast<char*>(child.Do([inherited, bytes, map] { return map(inherited, bytes); }));
  if (!Want(theirs != MAP_FAILED && childs != MAP_FAILED, "both have mapped it")) return;
  Want(stranger.Do([theirs, bytes] { return IsStamped(theirs, bytes / 2, 1); }) == 1, "one reads");
  Stamp(live.at(), live.bytes(), 2);
  Want(stranger.Do([theirs, bytes] { return IsStamped(theirs, bytes, 1); }) == 1, "one sees it");
  Want(child.Do([childs, bytes] { return IsStamped(childs, bytes, 1); }) == 1, "so does the other");
  Want(snapshot.Info().views == 2, "two views");
  // A third one has no mapping: views are not inherited.
  const View mine(snapshot);
  Want(InChild([&] { return TryRead(mine.at()) == "SIGSEGV/MAPERR" ? 0 : 1; }) == 0,
       "a forked child has no view");
}

// The snapshot goes with its last holder, wherever that is and however it ends.
HOSTMM_CASE(LastHolderIsAnotherProcess) {
  Live live;
  Stamp(live.at(), live.bytes(), 1);
  auto snapshot = std::make_unique<Snapshot>(live.at());
  Partner reader;
  const int handle = snapshot->handle();
  auto* view = reinterpret_cast<char*>(reader.Do([handle, bytes = live.bytes()] {
    void* at = hostmm_snapshot_map(handle, nullptr, bytes, PROT_READ, 0);
    close(handle);
    return reinterpret_cast<int64_t>(at);
  }));
  snapshot.reset();
  Stamp(live.at(), live.bytes(), 2);
  Want(reader.Do([view, bytes = live.bytes()] { return IsStamped(view, bytes, 1); }) == 1,
       "its view lives");
  Want(IsTracked(live.at()), "the region is frozen as long");
  reader.Kill();
  Want(Eventually([&] { return IsNative(live.at()); }), "and no longer");
  Want(IsStamped(live.at(), live.bytes(), 2), "the region has lost nothing");
}

// What is mapped natively after the last snapshot, with one entry for 2 MiB again.
HOSTMM_CASE(AfterwardsMemoryIsHuge) {
  if (!OnHuge()) return Skip("needs huge frames");
  Live live;
  Stamp(live.at(), live.bytes(), 1);
  const int64_t before = HugeMappedKib(live.at());
  Want(before > 0, "%lld KiB huge before", static_cast<long long>(before));
  {
    const Snapshot snapshot(live.at());
    const View view(snapshot);
    Stamp(live.at(), live.bytes() / 2, 2);
    Want(IsStamped(view.at(), live.bytes(), 1), "the snapshot");
    Want(HugeMappedKib(live.at()) < before, "4 KiB pages meanwhile");
  }
  const bool huge = Eventually([&] {
    (void)IsStamped(live.at() + live.bytes() / 2, live.bytes() / 2, 1);
    Stamp(live.at(), live.bytes() / 2, 3);
    return HugeMappedKib(live.at()) >= before;
  });
  Want(huge, "%lld KiB huge afterwards", static_cast<long long>(HugeMappedKib(live.at())));
  Want(IsNative(live.at()), "nothing is tracked");
  Want(IsStamped(live.at(), live.bytes() / 2, 3), "the data");
}

HOSTMM_CASE(NumbersOfASnapshot) {
  Live live;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const SnapshotInfo fresh = snapshot.Info();
  Want(fresh.length == live.bytes(), "length %zu", fresh.length);
  Want(fresh.unit == Unit(), "unit %zu", fresh.unit);
  Want(fresh.copied_bytes == 0 && fresh.pages_copied == 0 && fresh.views == 0, "nothing yet");
  for (size_t i = 0; i < 3; ++i) Stamp(live.at() + 2 * i * Unit(), Unit(), 2);
  const SnapshotInfo written = snapshot.Info();
  Want(written.copied_bytes == 3 * Unit(), "copied %zu bytes", written.copied_bytes);
  Want(written.pages_copied == 3 * Unit() / kPage, "copied %zu pages", written.pages_copied);
  // A second snapshot shares what has been copied for the first, and what is copied from now on.
  const Snapshot second(live.at());
  Stamp(live.at() + 7 * Unit(), Unit(), 2);
  const size_t bytes = second.Info().copied_bytes;
  Want(bytes == 4 * Unit(), "one copy for both: %zu bytes", bytes);
  Want(second.Info().pages_copied == Unit() / kPage, "the second one differs in one unit");
  Want(snapshot.Info().pages_copied == 4 * Unit() / kPage, "the first one in four");
}

}  // namespace
}  // namespace hostmm::test
