#include "runtime/snapshot/snapshot_set.h"

#include <fcntl.h>
#include <sys/socket.h>

#include "runtime/sys_error.h"

namespace hostmm {
namespace {

// Packets per turn of one handle. Arbitrary, as for guests.
constexpr int kPacketsPerTurn = 16;

// Of one snapshot. Arbitrary; bounds the descriptors that its holders can have us hold.
constexpr uint32_t kMaxHolds = 256;

// nullopt: no socket.
std::optional<uint64_t> CookieOf(int fd) {
  uint64_t cookie = 0;
  socklen_t length = sizeof(cookie);
  if (getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length) != 0) return std::nullopt;
  return cookie;
}

}  // namespace

TakenSnapshot* SnapshotSet::Add(const TakenSnapshot& snapshot) {
  auto added = std::make_unique<TakenSnapshot>(snapshot);
  added->number = next_++;
  TakenSnapshot* const made = added.get();
  snapshots_[made->number] = std::move(added);
  return made;
}

void SnapshotSet::Unhold(TakenSnapshot* snapshot) {
  if (--snapshot->holds != 0) return;
  const auto it = snapshots_.find(snapshot->number);
  const std::unique_ptr<TakenSnapshot> dropped = std::move(it->second);
  snapshots_.erase(it);
  on_dropped_(dropped.get());
}

void SnapshotSet::UnholdNumber(uint64_t number) {
  if (TakenSnapshot* held = Find(number); held != nullptr) Unhold(held);
}

absl::StatusOr<UniqueFd> SnapshotSet::NewHandle(TakenSnapshot* snapshot) {
  if (snapshot->holds >= kMaxHolds) return absl::ResourceExhaustedError("too many handles");
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
    return SysError("socketpair");
  }
  UniqueFd theirs(pair[0]);
  auto handle = std::make_unique<Handle>();
  handle->ours.fd.reset(pair[1]);
  handle->snapshot = snapshot->number;
  fcntl(pair[1], F_SETFL, O_NONBLOCK);
  const std::optional<uint64_t> cookie = CookieOf(theirs.get());
  if (!cookie.has_value()) return SysError("SO_COOKIE");
  handle->ours.watch = loop_->Watch(pair[1], [this, cookie = *cookie] { return OnHandle(cookie); });
  handles_[*cookie] = std::move(handle);
  Hold(snapshot);
  return theirs;
}

EventLoop::Progress SnapshotSet::OnHandle(uint64_t cookie) {
  for (int turn = 0; turn < kPacketsPerTurn; ++turn) {
    const auto it = handles_.find(cookie);
    if (it == handles_.end()) return EventLoop::Progress::kDrained;
    TakenSnapshot* const snapshot = Find(it->second->snapshot);
    Packet packet;
    const ReceiveResult received = ReceivePacket(it->second->ours.fd.get(), &packet);
    if (received == ReceiveResult::kNothing) return EventLoop::Progress::kDrained;
    if (received == ReceiveResult::kPacket && packet.message.version == protocol::kVersion) {
      on_packet_(snapshot, std::move(packet));
      continue;
    }
    // Closed, or nonsense.
    it->second->ours.Close(loop_);
    handles_.erase(it);
    Unhold(snapshot);
    return EventLoop::Progress::kDrained;
  }
  return EventLoop::Progress::kMore;
}

TakenSnapshot* SnapshotSet::Find(uint64_t number) const {
  const auto it = snapshots_.find(number);
  return it == snapshots_.end() ? nullptr : it->second.get();
}

TakenSnapshot* SnapshotSet::FindHandle(int fd) const {
  const std::optional<uint64_t> cookie = CookieOf(fd);
  if (!cookie.has_value()) return nullptr;
  const auto it = handles_.find(*cookie);
  return it == handles_.end() ? nullptr : Find(it->second->snapshot);
}

TakenSnapshot* SnapshotSet::FindMm(MmId mm) const {
  for (const auto& [number, snapshot] : snapshots_) {
    if (snapshot->mm == mm && snapshot->lost.empty()) return snapshot.get();
  }
  return nullptr;
}

TakenSnapshot* SnapshotSet::FindKept(const std::string& name) const {
  for (const auto& [number, snapshot] : snapshots_) {
    if (!name.empty() && snapshot->kept == name) return snapshot.get();
  }
  return nullptr;
}

std::vector<TakenSnapshot*> SnapshotSet::OfSource(MmId source) const {
  std::vector<TakenSnapshot*> found;
  for (const auto& [number, snapshot] : snapshots_) {
    if (snapshot->source == source && snapshot->lost.empty()) found.push_back(snapshot.get());
  }
  return found;
}

}  // namespace hostmm
