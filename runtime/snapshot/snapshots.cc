// Taking snapshots, who holds them, and their end. What guests ask otherwise: snapshot_guests.cc.
#include "runtime/snapshot/snapshots.h"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/file_quota.h"
#include "runtime/image/image_writer.h"
#include "runtime/snapshot/answers.h"
#include "runtime/snapshot/region_source.h"
#include "runtime/uapi_compat.h"

namespace hostmm {

using protocol::Message;

namespace {

// Snapshots of one file that wait for a freeze to end. Arbitrary; bounds the descriptors that
// guests can have us hold.
constexpr size_t kMaxRequests = 64;
constexpr char kTooMany[] = "too many snapshots of it are being taken";

// Images that are written at a time: each has buffers of 8 MiB, and threads are few.
constexpr uint32_t kMaxExports = 16;

}  // namespace

Snapshots::Snapshots(const Parts& parts, const Terms& terms)
    : tables_(parts.tables),
      files_(parts.files),
      guests_(parts.guests),
      pool_(parts.pool),
      loop_(parts.loop),
      terms_(terms),
      cow_(parts.tables),
      orders_(parts.guests, parts.orders),
      freezer_(parts.tables, parts.guests, &live_, terms.normal_modes),
      views_(parts.tables, parts.guests, &live_, &orders_, parts.pool),
      first_writes_(parts.tables, parts.guests, &live_, &views_, parts.pool,
                    [this](MmId source, const std::string& why, std::function<void()> then) {
                      Lose(source, why, std::move(then));
                    }),
      set_(
          parts.loop,
          [this](TakenSnapshot* snapshot, Packet packet) {
            OnHandlePacket(snapshot, std::move(packet));
          },
          [this](TakenSnapshot* snapshot) { OnDropped(snapshot); }) {
  views_.SetHooks(
      [this](MmId source, FilePage first, PageCount count, std::function<void()> then) {
        first_writes_.Privatize(source, first, count, std::move(then));
      },
      [this](MmId source, const std::string& why) { LoseFor(source, why); });
  tables_->SetFrameSink([this](MmId source, FrameNumber first, PageCount count) {
    if (LiveFile* file = live_.Find(source); file != nullptr) file->store->Drop(first, count);
  });
  files_->SetOnReleased([this](MmId mm) { OnReleased(mm); });
  freezer_.SetEnded([this](MmId mm) { RunRequests(mm); });
  freezer_.SetSoon([this](std::function<void()> then) { loop_->Soon(std::move(then)); });
}

Snapshots::Terms::Uffd Snapshots::UffdWith(uint64_t features) {
  // UFFDIO_CONTINUE_MODE_WP has no bit of its own; it came with Linux 6.4, as WP_UNPOPULATED did.
  constexpr uint64_t kNeeded =
      UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED;
  return (features & kNeeded) == kNeeded ? Terms::Uffd::kHere : Terms::Uffd::kTooOld;
}

// What loop and workers still hold of an image would look for its snapshot when they go.
Snapshots::~Snapshots() {
  for (const std::weak_ptr<ImageWriter>& image : exports_) {
    if (const std::shared_ptr<ImageWriter> writer = image.lock(); writer != nullptr) {
      writer->Abandon();
    }
  }
}

std::string Snapshots::WhyNot(MmId source) {
  if (terms_.uffd == Terms::Uffd::kNone) return "native mode has no snapshots";
  if (terms_.uffd == Terms::Uffd::kTooOld) return "snapshots need Linux 6.4 (hostmm doctor)";
  if (files_->Find(source) == nullptr) return "the file is not one of the pager's";
  const auto unwatched = unwatched_.find(KeyOf(source));
  if (unwatched != unwatched_.end()) {
    std::erase_if(unwatched->second, [](const Unwatched& process) {
      pollfd ended{process.pidfd.get(), POLLIN, 0};
      return process.pidfd.ok() && poll(&ended, 1, 0) == 1;
    });
    if (!unwatched->second.empty()) return "a process that left hostmm still maps it";
    unwatched_.erase(unwatched);
  }
  return freezer_.WhyNot(source);
}

void Snapshots::Take(Guest& guest, Packet& packet) {
  const std::optional<Region> region = tables_->FindRegion(guest.id, GuestAddr(packet.message.va));
  if (!region.has_value()) return Refuse(packet, ENOMEM, "nothing managed is mapped there");
  if ((region->flags & kView) != 0) return Refuse(packet, ENOTSUP, "a view is no live memory");
  auto asker = std::make_shared<Asker>();
  asker->reply = std::move(packet.fds[0]);
  asker->uid = guest.uid;
  TakeOf(region->mm, std::move(asker));
}

void Snapshots::TakeOf(MmId source, std::shared_ptr<Asker> asker) {
  const LiveFile* open = live_.Find(source);
  if (open != nullptr && open->state == LiveFile::State::kFreezing) {
    return WaitForFreeze(source, *asker, [this, source, asker] { TakeOf(source, asker); });
  }
  if (const std::string why = WhyNot(source); !why.empty()) {
    return SayRefused(asker->reply.get(), ENOTSUP, why);
  }
  const absl::StatusOr<LiveFile*> file =
      live_.FindOrMake(source, files_->Find(source), terms_.memory_limit);
  if (!file.ok()) return SayRefused(asker->reply.get(), ENOSPC, "no descriptors or memory for it");
  freezer_.Freeze(*file, [this, source, asker](int error) { OnFrozen(source, asker, error); });
}

// One freeze of a file at a time; the others wait for its end, and are asked anew then: a process
// may have left.
void Snapshots::WaitForFreeze(MmId source, const Asker& asker, std::function<void()> request) {
  std::deque<std::function<void()>>& waiting = requests_[KeyOf(source)];
  if (waiting.size() >= kMaxRequests) return SayRefused(asker.reply.get(), EAGAIN, kTooMany);
  waiting.push_back(std::move(request));
}

// At the end of a freeze, when the faults that waited have been served.
void Snapshots::RunRequests(MmId source) {
  for (;;) {
    const LiveFile* file = live_.Find(source);
    if (file != nullptr && file->state == LiveFile::State::kFreezing) return;
    const auto it = requests_.find(KeyOf(source));
    if (it == requests_.end()) break;
    const std::function<void()> next = std::move(it->second.front());
    it->second.pop_front();
    if (it->second.empty()) requests_.erase(it);
    next();
  }
  ThawIfLast(source);
}

void Snapshots::OnFrozen(MmId source, const std::shared_ptr<Asker>& asker, int error) {
  TakenSnapshot* taken = error == 0 ? Record(source, asker->uid) : nullptr;
  if (taken != nullptr) {
    AnswerHandle(asker->reply.get(), taken);
    // Whoever asked may have gone.
    set_.Unhold(taken);
  } else {
    SayRefused(asker->reply.get(),
               error == ETIMEDOUT ? EAGAIN
               : error != 0       ? error
                                  : ENOSPC,
               WhyNotFrozen(error));
  }
}

const char* Snapshots::WhyNotFrozen(int error) {
  switch (error) {
    case 0:
      return "the pager's tables are full, or this user's share of them";
    case EAGAIN:
      return "a process left hostmm, or removed memory, meanwhile";
    case ETIMEDOUT:
      return "a process that was just forked does not go on";
    default:
      return "a process could not be frozen";
  }
}

// Enters a snapshot into the tables. With one hold, which is the caller's. nullptr: they are full,
// or the user has his share of them.
TakenSnapshot* Snapshots::Record(MmId source, uid_t uid) {
  LiveFile* file = live_.Find(source);
  MmId made;
  if (!HasRoomForFile(*tables_, uid)) return nullptr;
  if (cow_.Take(source, terms_.policy, &made, uid) != TableStatus::kOk) return nullptr;
  tables_->PinMm(made);
  ++file->snapshots;
  TakenSnapshot snapshot;
  snapshot.mm = made;
  snapshot.source = source;
  const MmInfo info = tables_->Info(source);
  snapshot.image = {{file->random[0], file->random[1]}, ++file->sequence};
  snapshot.taken_ns = static_cast<uint64_t>(absl::ToUnixNanos(absl::Now()));
  snapshot.name.assign(info.name, strnlen(info.name, sizeof(info.name)));
  snapshot.length = BytesOf(info.length);
  snapshot.unit = file->backing->kind() == FrameKind::kHugetlb ? kBlockSize : kPageSize;
  snapshot.uid = uid;
  TakenSnapshot* const added = set_.Add(snapshot);
  set_.Hold(added);
  return added;
}

void Snapshots::AnswerHandle(int reply, TakenSnapshot* snapshot) {
  const absl::StatusOr<UniqueFd> handle = set_.NewHandle(snapshot);
  if (!handle.ok()) return SayRefused(reply, EMFILE, "no descriptor for a handle");
  Message answer = NewPacket(protocol::Kind::kReply);
  answer.length = snapshot->length;
  answer.value[0] = snapshot->unit;
  if (reply >= 0) SendPacket(reply, answer, handle->get());
}

void Snapshots::OnHandlePacket(TakenSnapshot* snapshot, Packet packet) {
  switch (packet.message.kind) {
    case protocol::Kind::kSnapshotInfo:
      return SayInfo(*snapshot, packet);
    case protocol::Kind::kKeep:
      return Keep(snapshot, packet);
    case protocol::Kind::kExport:
      return Export(snapshot, packet);
    default:
      return Refuse(packet, EINVAL, "a handle does not answer that");
  }
}

void Snapshots::Export(TakenSnapshot* snapshot, Packet& packet) {
  if (!snapshot->lost.empty()) return Refuse(packet, EIO, snapshot->lost);
  const LiveFile* file = live_.Find(snapshot->source);
  if (!packet.fds[0].ok() || !packet.fds[1].ok() || file == nullptr) {
    return Refuse(packet, EBADF, "no descriptor for the image");
  }
  // By their number, because the progress pipe may be missing.
  TakenSnapshot* earlier = nullptr;
  for (size_t i = 2; i < packet.fds.size(); ++i) {
    if (TakenSnapshot* found = set_.FindHandle(packet.fds[i].get()); found != nullptr) {
      earlier = found;
      packet.fds[i].reset();
    }
  }
  if (packet.fds[3].ok()) return Refuse(packet, EINVAL, "the base is no handle of a snapshot");
  if (earlier != nullptr && (!earlier->lost.empty() || !(earlier->source == snapshot->source) ||
                             earlier->number >= snapshot->number)) {
    return Refuse(packet, EINVAL, "the base is not an earlier snapshot of the same region");
  }
  std::erase_if(exports_, [](const std::weak_ptr<ImageWriter>& image) { return image.expired(); });
  if (exports_.size() >= kMaxExports)
    return Refuse(packet, EAGAIN, "too many images are being written");
  ImageWriter::Job job;
  job.spec.id = snapshot->image;
  if (earlier != nullptr) job.spec.base = earlier->image;
  job.spec.unit = static_cast<uint32_t>(snapshot->unit);
  job.spec.taken_ns = snapshot->taken_ns;
  job.spec.name = snapshot->name;
  job.source = std::make_unique<RegionSource>(cow_, &set_, *file, pool_, snapshot, earlier);
  job.image = std::move(packet.fds[1]);
  job.progress = std::move(packet.fds[2]);
  job.start = packet.message.offset;
  job.resume_bytes = packet.message.value[0];
  auto reply = std::make_shared<UniqueFd>(std::move(packet.fds[0]));
  job.client = reply->get();
  job.done = [reply](const ImageResult& result) {
    if (result.error != 0) return SayRefused(reply->get(), result.error, result.why);
    Message answer = NewPacket(protocol::Kind::kReply);
    answer.length = result.bytes;
    answer.value[0] = result.data_pages;
    SendPacket(reply->get(), answer);
  };
  exports_.push_back(ImageWriter::Start(loop_, pool_, std::move(job)));
}

void Snapshots::SayInfo(const TakenSnapshot& snapshot, const Packet& packet) const {
  if (!snapshot.lost.empty()) return Refuse(packet, EIO, snapshot.lost);
  const LiveFile* file = live_.Find(snapshot.source);
  const MmInfo info = tables_->Info(snapshot.mm);
  Message answer = NewPacket(protocol::Kind::kReply);
  answer.length = snapshot.length;
  answer.offset = file != nullptr ? file->store->used_bytes() : 0;
  answer.mm = {snapshot.mm.slot, snapshot.mm.generation};
  answer.va = snapshot.unit;
  answer.value[0] = info.pages_copied;
  answer.value[1] = info.regions;
  if (packet.fds[0].ok()) SendPacket(packet.fds[0].get(), answer);
}

void Snapshots::Keep(TakenSnapshot* snapshot, const Packet& packet) {
  const std::string name = TextOf(packet.message);
  if (name.empty() || name.find('/') != std::string::npos) {
    return Refuse(packet, EINVAL, "a name is 1 to 63 bytes without '/'");
  }
  if (!snapshot->lost.empty()) return Refuse(packet, EIO, snapshot->lost);
  if (set_.FindKept(name) != nullptr) return Refuse(packet, EEXIST, "a snapshot has that name");
  if (snapshot->kept.empty()) set_.Hold(snapshot);
  snapshot->kept = name;
  SayDone(packet);
}

void Snapshots::OnTool(const Peer& peer, Packet& packet, const ResolveName& resolve) {
  const std::string name = TextOf(packet.message);
  const bool drops = packet.message.kind == protocol::Kind::kDropKept;
  if (drops || name.starts_with('@')) {
    TakenSnapshot* kept = set_.FindKept(drops ? name : name.substr(1));
    if (kept == nullptr) return Refuse(packet, ENOENT, "no snapshot of that name is kept");
    if (peer.uid != 0 && peer.uid != kept->uid) return Refuse(packet, EACCES, "not yours");
    if (!drops) return AnswerHandle(packet.fds[0].get(), kept);
    kept->kept.clear();
    set_.Unhold(kept);
    return SayDone(packet);
  }
  MmId mm;
  uint32_t slot = 0;
  if (name.starts_with('#') && absl::SimpleAtoi(name.substr(1), &slot)) {
    uid_t owner = 0;
    tables_->ForEachMm([&](const MmInfo& info) {
      if (info.id.slot != slot || info.frames == FrameKind::kSnapshot) return;
      mm = info.id;
      owner = info.owner_uid;
    });
    if (!mm.valid()) return Refuse(packet, ENOENT, "no such file");
    if (peer.uid != 0 && peer.uid != owner) return Refuse(packet, EACCES, "not yours");
  } else if (const int error = resolve(peer, name, &mm); error != 0) {
    return Refuse(packet, error, error == ENOENT ? "no region has that name" : "not yours");
  }
  auto asker = std::make_shared<Asker>();
  asker->reply = std::move(packet.fds[0]);
  asker->uid = peer.uid;
  TakeOf(mm, std::move(asker));
}

// Its views may still be mapped; then the mm goes with the last one.
void Snapshots::OnDropped(TakenSnapshot* snapshot) { Unpin(snapshot->mm); }

void Snapshots::Unpin(MmId mm) {
  ReleasedMms released;
  tables_->UnpinMm(mm, &released);
  files_->Release(released);
}

void Snapshots::OnReleased(MmId mm) {
  unwatched_.erase(KeyOf(mm));
  views_.OnReleased(mm);
  for (const MmId source : live_.all()) {
    CountSnapshots(source);
    GiveBack(source);
  }
}

// What snapshots that are gone have left; if there are others. With the last one goes the store.
void Snapshots::GiveBack(MmId source) {
  if (const LiveFile* file = live_.Find(source); file != nullptr) {
    PreimageStore::GiveBack(file->store, pool_);
  }
}

void Snapshots::CountSnapshots(MmId source) {
  LiveFile* file = live_.Find(source);
  if (file == nullptr) return;
  const auto left = static_cast<uint32_t>(cow_.SnapshotsOf(source).size());
  if (left == file->snapshots) return;
  file->snapshots = left;
  ThawIfLast(source);
}

void Snapshots::ThawIfLast(MmId source) {
  LiveFile* file = live_.Find(source);
  if (file == nullptr || file->snapshots != 0 || file->state == LiveFile::State::kFreezing) return;
  if (requests_.contains(KeyOf(source))) return;
  freezer_.Thaw(file);
  const std::vector<std::function<void()>> waiting = file->store->TakeWaiting();
  PreimageStore::Retire(std::move(file->store), pool_);
  // And with it the last write end of the life pipe that is ours.
  live_.Erase(source);
  for (const std::function<void()>& then : waiting) then();
}

// All of the file, for all who have them, before anybody may write what they share.
void Snapshots::Lose(MmId source, const std::string& why, std::function<void()> then) {
  for (TakenSnapshot* snapshot : set_.OfSource(source)) snapshot->lost = why;
  std::vector<MmId> lost;
  {
    Losing& losing = losing_[KeyOf(source)];
    losing.then.push_back(std::move(then));
    for (const MmId mm : cow_.SnapshotsOf(source)) {
      if (std::ranges::find(losing.open, mm) == losing.open.end()) lost.push_back(mm);
    }
    losing.open.insert(losing.open.end(), lost.begin(), lost.end());
  }
  // Each may call back at once, and the last one end it all.
  for (const MmId mm : lost) {
    views_.Lose(mm, [this, source, mm] { OnViewsLost(source, mm); });
  }
  EndLosing(source);
}

void Snapshots::OnViewsLost(MmId source, MmId snapshot) {
  ReleasedMms released;
  cow_.Lose(snapshot, &released);
  files_->Release(released);
  CountSnapshots(source);
  GiveBack(source);
  if (const auto it = losing_.find(KeyOf(source)); it != losing_.end()) {
    std::erase(it->second.open, snapshot);
  }
  EndLosing(source);
}

void Snapshots::EndLosing(MmId source) {
  const auto it = losing_.find(KeyOf(source));
  if (it == losing_.end() || !it->second.open.empty()) return;
  const Losing ended = std::move(it->second);
  losing_.erase(it);
  for (const std::function<void()>& then : ended.then) then();
}

void Snapshots::Tick() {
  freezer_.Tick();
  orders_.Tick();
}

}  // namespace hostmm
