#include "runtime/cli/fake_pager.h"

#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/cli/exit_status.h"
#include "runtime/cli/options.h"
#include "runtime/mapping.h"
#include "runtime/packet.h"
#include "runtime/protocol.h"
#include "runtime/unique_fd.h"
#include "vmm/host_tables.h"

namespace hostmm {
namespace {

void WriteText(const UniqueFd& fd, std::string_view text) {
  if (fd.ok()) [[maybe_unused]]
    const ssize_t written = write(fd.get(), text.data(), text.size());
}

// One guest with one region of 16 MiB over one file.
UniqueFd MakeSegment() {
  HostTables::Config config;
  config.max_guests = 8;
  config.max_mms = 8;
  config.max_regions = 8;
  config.max_nodes = 64;
  const size_t bytes = HostTables::SegmentBytes(config);
  UniqueFd fd(memfd_create("fake-segment", MFD_CLOEXEC));
  if (!fd.ok() || ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) return UniqueFd();
  const Mapping mapping(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0),
                        bytes);
  if (!mapping.ok()) return UniqueFd();
  HostTables tables = HostTables::Format(mapping.bytes(), config);
  MmSpec spec;
  spec.length = PagesFloor(uint64_t{16} << 20);
  std::strncpy(spec.name, "fake file", sizeof(spec.name) - 1);
  MmId mm;
  GuestId guest;
  if (tables.CreateMm(spec, &mm) != TableStatus::kOk ||
      tables.AddGuest(getpid(), getuid(), &guest) != TableStatus::kOk) {
    return UniqueFd();
  }
  RegionSpec region;
  region.va = GuestAddr(uint64_t{1} << 40);
  region.length = spec.length;
  region.mm = mm;
  region.access = AccessSet::ReadWrite();
  if (tables.MapRegion(guest, region) != TableStatus::kOk) return UniqueFd();
  return fd;
}

// Accepts, answers and drops guests until the contract says that it is over. RETURNS how many
// guests there were.
int Serve(const UniqueFd& listener, const UniqueFd& life, const UniqueFd& stop) {
  const UniqueFd segment = MakeSegment();
  std::vector<UniqueFd> guests;
  int served = 0;
  // A service never asks; for a tree the end of the life pipe counts once no guest is left.
  bool tree_is_gone = false;
  while (!(tree_is_gone && guests.empty())) {
    std::vector<pollfd> waits = {{listener.get(), POLLIN, 0},
                                 {stop.get(), POLLIN, 0},
                                 {tree_is_gone ? -1 : life.get(), 0, 0}};
    for (const UniqueFd& guest : guests) waits.push_back({guest.get(), POLLIN, 0});
    if (poll(waits.data(), waits.size(), -1) < 0) continue;
    if (waits[1].revents != 0) break;
    if (waits[2].revents != 0) tree_is_gone = true;
    for (size_t i = waits.size(); i-- > 3;) {
      if (waits[i].revents == 0) continue;
      Packet packet;
      const ReceiveResult result = ReceivePacket(waits[i].fd, &packet);
      if (result == ReceiveResult::kClosed) {
        guests.erase(guests.begin() + static_cast<ptrdiff_t>(i - 3));
      } else if (result == ReceiveResult::kPacket &&
                 packet.message.kind == protocol::Kind::kInspect) {
        SendPacket(packet.fds[0].get(), NewPacket(protocol::Kind::kReply), segment.get());
      }
    }
    if (waits[0].revents != 0) {
      UniqueFd guest(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (guest.ok()) {
        guests.push_back(std::move(guest));
        ++served;
      }
    }
  }
  return served;
}

UniqueFd StopSignals(PagerOptions::Lifetime lifetime) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  if (lifetime == PagerOptions::Lifetime::kService) sigaddset(&set, SIGINT);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  return UniqueFd(signalfd(-1, &set, SFD_CLOEXEC));
}

}  // namespace

int RunFakePager(const PagerOptions& options) {
  const UniqueFd listener(options.listen_fd);
  const UniqueFd life(options.life_fd);
  UniqueFd ready(options.ready_fd);
  const UniqueFd report(options.report_fd);
  const UniqueFd stop = StopSignals(options.lifetime);
  const char* text = std::getenv("HOSTMM_FAKE_PAGER");
  const std::string_view behaviour = text == nullptr ? "" : text;
  if (behaviour == "die") return ToInt(ExitStatus::kInternal);
  if (behaviour == "mute") {
    for (;;) pause();
  }
  if (behaviour == "refuse") {
    WriteText(ready, "error=the fake kernel lacks everything; install a real one\n");
    return ToInt(options.strict ? ExitStatus::kStrictRefused : ExitStatus::kKernelLacks);
  }
  WriteText(ready, "mode=fake frames=" + std::string(FramesName(options.frames)) +
                       " why=this is a test\n");
  ready.reset();
  const int served = Serve(listener, life, stop);
  WriteText(report, "served " + std::to_string(served) + " guests\nsaved nothing\n");
  unlink(options.socket_path.c_str());
  return ToInt(ExitStatus::kOk);
}

}  // namespace hostmm
