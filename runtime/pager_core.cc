#include "runtime/pager_core.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/sys_error.h"
#include "runtime/uapi_compat.h"

namespace hostmm {
namespace {

// Two: one block is being made while another one is asked for. More only compete for the memory
// bandwidth of clearing.
constexpr int kWorkers = 2;

constexpr absl::Duration kTick = absl::Milliseconds(250);
// Page tables of all guests are read every so many ticks: 2 s.
constexpr uint64_t kTicksPerSample = 8;

// Connections per turn of the listener, so that a flood of them does not keep the loop. Arbitrary.
constexpr int kAcceptsPerTurn = 64;

// Connections that have not said yet what they are; one more, and the oldest goes. An honest guest
// says it at once. Arbitrary.
constexpr size_t kMaxNewcomers = 256;
// And how long they may take: 5 s. Arbitrary.
constexpr uint64_t kNewcomerTicks = 20;
// A guest that has not attached by then is not coming: 10 s, as long as a guest waits for an
// answer. A forked child that is stopped for longer goes on without us.
constexpr uint64_t kAttachTicks = 40;
// Nor is anybody who has not come by then to a pager that was started for the caller: 10 s.
constexpr uint64_t kLonelyTicks = 40;

// What one user may take of the guest directory, so that the others find room: three quarters.
constexpr uint32_t kGuestsPerUser = SegmentConfig{}.max_guests / 4 * 3;

// Packets per turn of one guest. Arbitrary: bounds what one guest can keep the loop from.
constexpr int kPacketsPerTurn = 64;

uint64_t MemoryBytes() {
  struct sysinfo info;
  if (sysinfo(&info) != 0) return ~uint64_t{0};
  return (static_cast<uint64_t>(info.totalram) + info.totalswap) * info.mem_unit;
}

Session::Terms TermsOf(const PagerOptions& options, const Rung& rung) {
  Session::Terms terms;
  terms.max_file_bytes = MemoryBytes();
  if (rung.uffd.source == UffdAccess::Source::kNone) return terms;
  terms.mode = protocol::Mode::kUffd;
  terms.features = UFFD_FEATURE_MISSING_SHMEM;
  terms.register_modes = UFFDIO_REGISTER_MODE_MISSING;
  if (rung.store.kind() == FrameKind::kHugetlb) terms.features |= UFFD_FEATURE_MISSING_HUGETLBFS;
  if (options.pt_budget_bytes != 0 && rung.store.kind() == FrameKind::kBase) {
    terms.features |= UFFD_FEATURE_MINOR_SHMEM;
    terms.register_modes |= UFFDIO_REGISTER_MODE_MINOR;
    terms.region_flags = kTracked;
  }
  terms.features &= rung.uffd.features;
  return terms;
}

Snapshots::Terms SnapshotTermsOf(const PagerOptions& options, const Rung& rung) {
  Snapshots::Terms terms;
  terms.normal_modes = TermsOf(options, rung).register_modes;
  terms.memory_limit = options.snapshot_memory_bytes;
  if (rung.uffd.source != UffdAccess::Source::kNone) {
    terms.uffd = Snapshots::UffdWith(rung.uffd.features);
  }
  return terms;
}

UniqueFd TerminationSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  return UniqueFd(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

std::string Mebibytes(uint64_t bytes) {
  return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / (1 << 20));
}

}  // namespace

absl::StatusOr<std::unique_ptr<PagerCore>> PagerCore::Create(const PagerOptions& options,
                                                             Rung rung) {
  const HostTables::Config config;
  absl::StatusOr<SharedSegment> segment = SharedSegment::Create(HostTables::SegmentBytes(config));
  if (!segment.ok()) {
    return absl::Status(segment.status().code(),
                        absl::StrCat(segment.status().message(),
                                     "; remedy: raise ulimit -v and ulimit -f, or free memory"));
  }
  HostTables tables = HostTables::Format(segment->memory.bytes(), config);
  absl::StatusOr<std::unique_ptr<EventLoop>> loop = EventLoop::Create();
  if (!loop.ok()) return loop.status();
  absl::StatusOr<UniqueFd> event_fd = WorkerPool::NewEventFd();
  if (!event_fd.ok()) return event_fd.status();
  try {
    return std::unique_ptr<PagerCore>(new PagerCore(options, std::move(rung), *std::move(segment),
                                                    tables, *std::move(loop),
                                                    *std::move(event_fd)));
  } catch (const std::system_error& no_thread) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no thread: ", no_thread.what(), "; remedy: raise ulimit -u"));
  }
}

PagerCore::PagerCore(const PagerOptions& options, Rung rung, SharedSegment segment,
                     HostTables tables, std::unique_ptr<EventLoop> loop, UniqueFd event_fd)
    : options_(options),
      rung_(std::move(rung)),
      segment_(std::move(segment)),
      tables_(tables),
      loop_(std::move(loop)),
      listener_(options.listen_fd),
      life_(options.life_fd),
      signals_(TerminationSignals()),  // before the workers: they inherit the mask
      pool_(std::move(event_fd), kWorkers),
      files_(&pool_),
      adopter_(&tables_, &guests_, &orders_),
      collapse_retry_(&tables_, &files_, &pool_),
      resolver_(&tables_, &files_, &guests_, &pool_, &collapse_retry_),
      opt_in_(&tables_, &guests_, SegmentConfig{}.max_guests, kRegionsPerGuest),
      filler_(&tables_, &files_, &pool_),
      snapshots_({.tables = &tables_,
                  .files = &files_,
                  .guests = &guests_,
                  .orders = &orders_,
                  .pool = &pool_,
                  .loop = loop_.get()},
                 SnapshotTermsOf(options, rung_)),
      session_(TermsOf(options, rung_),
               {.tables = &tables_,
                .files = &files_,
                .adopter = &adopter_,
                .orders = &orders_,
                .opt_in = &opt_in_,
                .filler = &filler_,
                .snapshots = &snapshots_,
                .uffd = &rung_.uffd,
                .store = &rung_.store,
                .second = rung_.second.has_value() ? &*rung_.second : nullptr,
                .host = this}) {}

absl::Status PagerCore::Run() {
  if (options_.pt_budget_bytes != 0 && rung_.store.kind() == FrameKind::kBase) {
    budget_.emplace(options_.pt_budget_bytes, &guests_, &orders_);
    resolver_.SetBudget(&*budget_);
  }
  resolver_.SetSnapshots(&snapshots_);
  fcntl(listener_.get(), F_SETFL, O_NONBLOCK);
  if (life_.ok()) fcntl(life_.get(), F_SETFL, O_NONBLOCK);
  loop_->Watch(listener_.get(), [this] { return Accept(); });
  loop_->Watch(pool_.event_fd(), [this] {
    pool_.RunDone();
    return EventLoop::Progress::kDrained;
  });
  loop_->Watch(signals_.get(), [this] {
    signalfd_siginfo signal;
    if (read(signals_.get(), &signal, sizeof(signal)) > 0) loop_->Stop();
    return EventLoop::Progress::kDrained;
  });
  if (life_.ok()) loop_->Watch(life_.get(), [this] { return OnTreeGone(); });
  loop_->SetTick(kTick, [this] { Tick(); });
  return loop_->Run();
}

EventLoop::Progress PagerCore::Accept() {
  for (int turn = 0; turn < kAcceptsPerTurn; ++turn) {
    UniqueFd connection(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!connection.ok()) return EventLoop::Progress::kDrained;
    WantCredentials(connection.get());
    if (newcomers_.size() >= kMaxNewcomers) DropOldestNewcomer();
    const uint64_t number = next_newcomer_++;
    Newcomer newcomer;
    newcomer.since = ticks_;
    newcomer.channel.watch =
        loop_->Watch(connection.get(), [this, number] { return OnNewcomer(number); });
    newcomer.channel.fd = std::move(connection);
    newcomers_[number] = std::move(newcomer);
  }
  return EventLoop::Progress::kMore;
}

void PagerCore::DropOldestNewcomer() {
  const auto oldest = newcomers_.begin();
  loop_->Unwatch(&oldest->second.channel.watch);
  newcomers_.erase(oldest);
}

SessionHost::Room PagerCore::RoomForGuest(uid_t uid) const {
  return guests_.CountOf(uid) < kGuestsPerUser ? Room::kFree : Room::kFull;
}

EventLoop::Progress PagerCore::OnNewcomer(uint64_t number) {
  const auto it = newcomers_.find(number);
  if (it == newcomers_.end()) return EventLoop::Progress::kDrained;
  Packet packet;
  const ReceiveResult received = ReceivePacket(it->second.channel.fd.get(), &packet);
  if (received == ReceiveResult::kNothing) return EventLoop::Progress::kDrained;
  Newcomer newcomer = std::move(it->second);
  newcomers_.erase(it);
  loop_->Unwatch(&newcomer.channel.watch);
  if (received != ReceiveResult::kPacket) return EventLoop::Progress::kDrained;
  if (packet.message.kind == protocol::Kind::kHello) {
    Introduce(std::move(newcomer), std::move(packet));
  } else if (packet.message.kind == protocol::Kind::kInspect) {
    ShowSegment(packet);
  } else {
    AnswerTool(newcomer.channel.fd.get(), packet);
  }
  return EventLoop::Progress::kDrained;
}

void PagerCore::ShowSegment(const Packet& ask) const {
  protocol::Message answer = NewPacket(protocol::Kind::kReply);
  const bool same = ask.message.version == protocol::kVersion;
  answer.status = same ? protocol::Status::kOk : protocol::Status::kVersion;
  const OptIn::Counts counts = opt_in_.counts();
  answer.va = counts.operations.operations;
  answer.length = counts.operations.woken;
  answer.offset = counts.operations.timed_out;
  answer.value[0] = counts.votes;
  SendPacket(ask.fds[0].get(), answer, same ? segment_.fd.get() : -1);
}

void PagerCore::AnswerTool(int connection, Packet& ask) {
  const protocol::Kind kind = ask.message.kind;
  const absl::StatusOr<Peer> peer = PeerOf(connection);
  const bool known = kind == protocol::Kind::kSnapshotOf || kind == protocol::Kind::kDropKept;
  if (!known || !peer.ok()) return;
  if (ask.message.version != protocol::kVersion) {
    protocol::Message answer = NewPacket(protocol::Kind::kReply);
    answer.status = protocol::Status::kVersion;
    SendPacket(ask.fds[0].get(), answer);
    return;
  }
  snapshots_.OnTool(*peer, ask, [this](const Peer& who, const std::string& name, MmId* mm) {
    return session_.FindName(who, name, mm);
  });
}

void PagerCore::Introduce(Newcomer newcomer, Packet hello) {
  const absl::StatusOr<Peer> peer = PeerOf(newcomer.channel.fd.get());
  if (!peer.ok() || RoomForGuest(peer->uid) == Room::kFull) return;
  if (hello.message.version == protocol::kVersion) {
    auto guest = std::make_unique<Guest>();
    if (tables_.AddGuest(peer->pid, peer->uid, &guest->id) != TableStatus::kOk) return;
    guest->uid = peer->uid;
    guest->gid = peer->gid;
    guest->packets = 1;  // this one
    guest->program = hello.message.text;
    guest->channel = std::move(newcomer.channel);
    WatchChannel(*guests_.Add(std::move(guest)));
    if (!life_.ok()) tree_ = Tree::kGone;
  }
  session_.Welcome(hello);
}

void PagerCore::WatchChannel(Guest& guest) {
  guest.channel.watch =
      loop_->Watch(guest.channel.fd.get(), [this, id = guest.id] { return OnChannel(id); });
  guest.born = ticks_;
  most_guests_ = std::max(most_guests_, guests_.size());
}

Guest& PagerCore::AddChild(Guest& parent, GuestId child, UniqueFd channel) {
  WantCredentials(channel.get());
  auto guest = std::make_unique<Guest>();
  guest->id = child;
  guest->uid = parent.uid;
  guest->gid = parent.gid;
  guest->program = parent.program;
  guest->channel.fd = std::move(channel);
  Guest* const added = guests_.Add(std::move(guest));
  WatchChannel(*added);
  return *added;
}

void PagerCore::WatchGuest(Guest& guest, UniqueFd uffd, pid_t pid) {
  guest.pid = pid;
  tables_.SetGuestPid(guest.id, pid);
  guest.pidfd.fd.reset(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (guest.pidfd.fd.ok()) {
    guest.pidfd.watch = loop_->Watch(guest.pidfd.fd.get(), [this, id = guest.id] {
      // What it said before it died comes first: it may have announced a child that lives on.
      if (OnChannel(id) == EventLoop::Progress::kMore) return EventLoop::Progress::kMore;
      EndGuest(id);
      return EventLoop::Progress::kDrained;
    });
  }
  if (!uffd.ok()) return;
  guest.uffd.fd = std::move(uffd);
  guest.uffd.watch = loop_->Watch(guest.uffd.fd.get(), [this, id = guest.id] {
    Guest* found = guests_.Find(id);
    return found == nullptr ? EventLoop::Progress::kDrained : resolver_.Drain(*found);
  });
}

EventLoop::Progress PagerCore::OnChannel(GuestId id) {
  for (int turn = 0; turn < kPacketsPerTurn; ++turn) {
    Guest* guest = guests_.Find(id);
    if (guest == nullptr) return EventLoop::Progress::kDrained;
    Packet packet;
    const ReceiveResult received = ReceivePacket(guest->channel.fd.get(), &packet);
    if (received == ReceiveResult::kNothing) return EventLoop::Progress::kDrained;
    const bool keep = received == ReceiveResult::kPacket &&
                      packet.message.version == protocol::kVersion &&
                      session_.OnPacket(*guest, std::move(packet)) == Session::Verdict::kKeep;
    if (!keep) EndGuest(id);
  }
  return EventLoop::Progress::kMore;
}

void PagerCore::EndGuest(GuestId id) {
  Guest* guest = guests_.Find(id);
  if (guest == nullptr) return;
  snapshots_.OnLeaving(*guest);
  guest->channel.Close(loop_.get());
  guest->uffd.Close(loop_.get());
  guest->pidfd.Close(loop_.get());
  orders_.OnGuestGone(id);
  if (budget_.has_value()) budget_->OnGuestGone(id);
  session_.Forget(*guest);
  snapshots_.OnGone(*guest);
  guests_.Erase(id);
  EndIfOver();
}

EventLoop::Progress PagerCore::OnTreeGone() {
  char byte;
  // The tree writes nothing; whoever does is read and ignored, or the end would never be seen.
  const ssize_t got = read(life_.get(), &byte, sizeof(byte));
  if (got != 0) return got > 0 ? EventLoop::Progress::kMore : EventLoop::Progress::kDrained;
  tree_ = Tree::kGone;
  EndIfOver();
  return EventLoop::Progress::kDrained;
}

void PagerCore::EndIfOver() {
  if (options_.lifetime != PagerOptions::Lifetime::kUntilLastGuest) return;
  // Somebody who is connecting just now still finds us.
  if (tree_ == Tree::kGone && guests_.size() == 0 && newcomers_.empty()) loop_->Stop();
}

// Who connects and never speaks, and who is announced and never comes: their descriptors may be
// kept open by anybody, so no event may ever tell.
void PagerCore::DropTheSilent() {
  while (!newcomers_.empty() && ticks_ - newcomers_.begin()->second.since > kNewcomerTicks) {
    DropOldestNewcomer();
  }
  std::vector<GuestId> silent;
  guests_.ForEach([&](const Guest& guest) {
    if (guest.pid == 0 && ticks_ - guest.born > kAttachTicks) silent.push_back(guest.id);
  });
  for (const GuestId id : silent) {
    snapshots_.OnSilent(*guests_.Find(id));
    EndGuest(id);
  }
}

void PagerCore::Tick() {
  ++ticks_;
  adopter_.Tick();
  collapse_retry_.Tick();
  opt_in_.Tick();
  orders_.Tick(guests_);
  snapshots_.Tick();
  DropTheSilent();
  const MemoryClimate memory = climate_.Now();
  resolver_.SetMemory(memory);
  filler_.SetMemory(memory);
  // Connections that came while descriptors were short raised their edge then.
  Accept();
  if (!life_.ok() && ticks_ > kLonelyTicks) tree_ = Tree::kGone;
  EndIfOver();
  if (guests_.size() == 0 || ticks_ % kTicksPerSample != 0) return;
  auto now = std::make_shared<Savings>(Survey(tables_, files_, guests_));
  if (now->plain_bytes <= best_.plain_bytes) return;
  pool_.Submit([now] { now->page_table_bytes = SumPageTables(now->guests); },
               [this, now] { best_ = *now; });
}

std::vector<std::string> PagerCore::Report() const {
  const Session::Ledger& ledger = session_.ledger();
  const FaultStats stats = tables_.Stats();
  std::vector<std::string> lines;
  if (ledger.regions + ledger.adopted == 0) {
    lines.push_back("managed nothing: no process mapped 8 MiB or more of shared memory");
  } else {
    std::string line = absl::StrFormat(
        "managed %d regions (%d adopted), %s, up to %d processes, %d faults",
        ledger.regions + ledger.adopted, ledger.adopted, Mebibytes(ledger.region_bytes),
        most_guests_, stats.Of(FaultCounter::kEvents));
    if (!best_.guests.empty()) {
      absl::StrAppend(&line, "; page tables of ", best_.guests.size(), " processes ",
                      Mebibytes(best_.page_table_bytes), ", 4 KiB pages would need up to ",
                      Mebibytes(best_.plain_bytes), " for the shared regions alone");
    }
    lines.push_back(line);
  }
  if (!session_.why_weaker().empty())
    lines.push_back(absl::StrCat("weaker frames: ", session_.why_weaker()));
  if (ledger.refused > 0)
    lines.push_back(absl::StrCat(ledger.refused, " requests were refused and left to the kernel"));
  return lines;
}

}  // namespace hostmm
