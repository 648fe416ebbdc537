#include "tests/pager/pager_child.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <thread>
#include <utility>

#include "runtime/mapping.h"
#include "runtime/pager.h"
#include "tests/pager/raw_guest.h"
#include "tests/testing/deadline.h"
#include "tests/testing/scoped_fd.h"
#include "vmm/invariants.h"

namespace hostmm::test {
namespace {

ScopedFd Listen(const std::string& path) {
  // Arbitrary: longer than any burst of connections in these tests.
  constexpr int kBacklog = 512;
  ScopedFd listener(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  const auto* plain = reinterpret_cast<const sockaddr*>(&address);
  const bool bound = bind(listener.get(), plain, sizeof(address)) == 0 &&
                     listen(listener.get(), kBacklog) == 0 && chmod(path.c_str(), 0666) == 0;
  return bound ? std::move(listener) : ScopedFd();
}

std::string ReadLine(int fd) {
  const Deadline deadline(kStepDeadline);
  std::string line;
  char byte;
  pollfd waiting = {fd, POLLIN, 0};
  while (poll(&waiting, 1, deadline.remaining_ms()) > 0 && read(fd, &byte, 1) == 1) {
    if (byte == '\n') return line;
    line += byte;
  }
  return "no ready line";
}

}  // namespace

PagerChild::PagerChild(const Setup& setup) {
  char directory[] = "/tmp/hostmm-pager-XXXXXX";
  if (mkdtemp(directory) == nullptr) {
    ready_ = "mkdtemp failed";
    return;
  }
  directory_ = directory;
  chmod(directory, 0755);
  socket_path_ = directory_ + "/s";
  ScopedFd listener = Listen(socket_path_);
  int ends[2];
  if (!listener.valid() || pipe2(ends, O_CLOEXEC) != 0) {
    ready_ = "no socket";
    return;
  }
  const ScopedFd ready(ends[0]);
  ScopedFd says(ends[1]);
  PagerOptions options;
  options.socket_path = socket_path_;
  options.listen_fd = listener.get();
  options.frames = setup.frames;
  options.pt_budget_bytes = setup.pt_budget_bytes;
  options.lifetime = setup.lifetime;
  options.life_fd = setup.life_fd;
  options.report_fd = setup.report_fd;
  options.ready_fd = says.get();
  child_ = std::make_unique<Child>(setup.identity, [&](Channel&) {
    // A test that is killed must not leave a pager behind.
    CHILD_CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
    if (setup.max_fds != 0) {
      const rlimit limit = {static_cast<rlim_t>(setup.max_fds), static_cast<rlim_t>(setup.max_fds)};
      CHILD_CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    }
    return RunPager(options);
  });
  says.Close();
  ready_ = ReadLine(ready.get());
}

PagerChild::~PagerChild() {
  if (child_ != nullptr && child_->pid() > 0) Terminate();
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

int PagerChild::Terminate() {
  kill(child_->pid(), SIGTERM);
  return child_->Wait();
}

int PagerChild::OpenDescriptors() const {
  std::error_code failed;
  const std::filesystem::directory_iterator fds("/proc/" + std::to_string(pid()) + "/fd", failed);
  return failed ? -1 : static_cast<int>(std::distance(begin(fds), end(fds)));
}

std::optional<Census> PagerChild::Take() const {
  RawGuest tool(socket_path_);
  ScopedFd segment;
  const auto answer = tool.Ask(NewPacket(protocol::Kind::kInspect), {}, &segment);
  struct stat info;
  if (!answer.has_value() || fstat(segment.get(), &info) != 0) return std::nullopt;
  const auto bytes = static_cast<size_t>(info.st_size);
  const Mapping memory(mmap(nullptr, bytes, PROT_READ, MAP_SHARED, segment.get(), 0), bytes);
  TableReader reader;
  if (TableReader::Attach(memory.bytes(), &reader) != AttachStatus::kOk) return std::nullopt;
  Census census;
  // Arbitrary: a pager that is busy all the time is told apart from a broken one by the problems.
  constexpr int kAttempts = 1000;
  if (CheckLive(reader, kAttempts, &census.problems) == ReadStatus::kBusy) {
    census.problems.push_back("busy");
  }
  const PoolUse pools = reader.Pools();
  census.guests = pools.guests;
  census.mms = pools.mms;
  census.regions = pools.regions;
  census.in_flight = reader.view().header().in_flight_entries.Load();
  census.faults = reader.Stats().Of(FaultCounter::kEvents);
  return census;
}

bool PagerChild::BecomesEmpty(int descriptors) const {
  // Several times the pager's own patience with guests that do not attach, which is 10 s of ticks.
  const Deadline deadline(std::chrono::seconds(40));
  const auto is_empty = [&] {
    const std::optional<Census> census = Take();
    return census.has_value() && census->empty() && census->problems.empty() &&
           OpenDescriptors() <= descriptors;
  };
  while (!is_empty()) {
    if (deadline.expired()) return is_empty();
    // A look is work for the pager, which must get on meanwhile.
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return true;
}

}  // namespace hostmm::test
