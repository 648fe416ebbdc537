#include "tests/races/storm.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "tests/process/guest_program.h"

namespace hostmm::test {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kReadWriteProt = PROT_READ | PROT_WRITE;

// Only the library has them, and the program must run without it, too.
template <class Function>
Function* Find(const char* name) {
  auto* found = reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
  MUST(found != nullptr);
  return found;
}
using ShmOpen = int(const char* name, int oflag, mode_t mode, size_t length);
using ShmUnlink = int(const char* name);

// A prober's mappings of the file: several, of different length, at different addresses.
struct Window {
  size_t offset;
  size_t bytes;
  char* at;
};
constexpr size_t kWindows = 3;

class Prober {
 public:
  Prober(Scene* scene, const SharedFile* file, const StormOptions& options, uint64_t seed)
      : scene_(scene),
        file_(file),
        options_(options),
        random_(seed * 2654435761u + 88172645463325252u) {
    Place(&windows_[0], 0, kFileBytes);
    if (file->IsAnonymous()) return;
    Place(&windows_[1], 2 * kBlockBytes, 4 * kBlockBytes);
    Place(&windows_[2], 0, 3 * kBlockBytes);
  }

  // Until it is told to stop, or for so many rounds.
  void Live(uint64_t rounds) {
    for (uint64_t round = 0; round < rounds && scene_->stop == 0; ++round) {
      for (uint32_t i = 0; i < options_.calm && scene_->stop == 0; ++i) {
        AwaitNews();
        TouchOne();
      }
      ChangeSomething();
    }
  }

 private:
  // Touches that come in great numbers between two calls prove nothing that the first did not, and
  // take the processor from those who call.
  void AwaitNews() {
    const uint64_t calls = scene_->tally.calls;
    if (calls != calls_seen_) touches_since_ = 0;
    calls_seen_ = calls;
    // Arbitrary.
    constexpr uint32_t kTouchesPerCall = 24;
    if (++touches_since_ > kTouchesPerCall) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }

  void Place(Window* window, size_t offset, size_t bytes) {
    *window = {offset, bytes, file_->Map(offset, bytes)};
    ++scene_->tally.maps;
  }

  void TouchOne() {
    const size_t part = Roll(&random_, kPartCount);
    const size_t byte = kParts[part].offset + Roll(&random_, kParts[part].bytes);
    const auto touch = static_cast<Touch>(Roll(&random_, static_cast<uint32_t>(Touch::kTouches)));
    const Window& window = windows_[Roll(&random_, kWindows)];
    if (window.at == nullptr || byte < window.offset || byte >= window.offset + window.bytes)
      return;
    Judge(scene_, part, touch, window.at + (byte - window.offset));
  }

  void ChangeSomething() {
    switch (Roll(&random_, 16)) {
      case 0:
      case 1:
      case 2:
        return MapAnew(&windows_[Roll(&random_, kWindows)]);
      case 3:
        return Move(&windows_[Roll(&random_, kWindows)]);
      case 4:
        return Fork();
      default:
        return;
    }
  }

  // A late mapper: it must find the protection that others have set.
  void MapAnew(Window* window) {
    if (window->at == nullptr || file_->IsAnonymous()) return;
    MUST(munmap(window->at, window->bytes) == 0);
    Place(window, window->offset, window->bytes);
  }

  void Move(Window* window) {
    // A range of several protections is several mappings, which Linux does not move at once.
    if (window->at == nullptr) return;
    void* moved = mremap(window->at, window->bytes, window->bytes, MREMAP_MAYMOVE);
    if (moved != MAP_FAILED) window->at = static_cast<char*>(moved);
  }

  // One child at a time: what a killed prober leaves is bounded by the rounds of a child.
  void Fork() {
    if (child_ > 0 && waitpid(child_, nullptr, WNOHANG) == 0) return;
    ++scene_->tally.forks;
    child_ = fork();
    MUST(child_ >= 0);
    if (child_ != 0) return;
    random_ += static_cast<uint64_t>(getpid()) << 20;
    // Arbitrary: long enough to see some calls, short enough that many come and go.
    Live(10);
    _exit(0);
  }

  Scene* const scene_;
  const SharedFile* const file_;
  const StormOptions options_;
  uint64_t random_;
  uint64_t calls_seen_ = 0;
  uint32_t touches_since_ = 0;
  pid_t child_ = 0;
  Window windows_[kWindows] = {};
};

// Changes the parts whose number is its own modulo `controllers`.
void Control(Scene* scene, const SharedFile& file, uint32_t self, uint32_t controllers) {
  char* base = file.Map(0, kFileBytes);
  uint64_t random = self * 7919 + 362436069;
  while (scene->stop == 0) {
    const size_t part =
        self + controllers * Roll(&random, (kPartCount - self + controllers - 1) / controllers);
    const auto rule = static_cast<Rule>(1 + Roll(&random, 3));
    if (const int error = Change(scene, part, rule, base); error != 0) {
      Say("mprotect: %s", ErrnoName(error));
    }
    // So that touches fall between the calls, too.
    std::this_thread::sleep_for(std::chrono::microseconds(Roll(&random, 300)));
  }
}

// When a storm has seen what it is for.
class Goal {
 public:
  Goal(const Scene& scene, const StormOptions& options) : scene_(scene), options_(options) {}

  bool IsReached() {
    if (options_.until == StormOptions::Until::kTouches) {
      return scene_.judged() >= options_.touches;
    }
    if (scene_.tally.violations == 0) return false;
    end_ = std::min(end_, Clock::now() + std::chrono::seconds(1));
    return Clock::now() >= end_;
  }

 private:
  const Scene& scene_;
  const StormOptions& options_;
  Clock::time_point end_ = Clock::time_point::max();
};

void EndChildren(std::vector<pid_t>* children) {
  for (const pid_t child : *children) {
    if (const int status = WaitFor(child); status != 0 && status != 128 + SIGKILL) {
      Say("#BAD a process ended with %d", status);
    }
  }
  children->clear();
}

}  // namespace

SharedFile::SharedFile(Source source) {
  if (source == Source::kAnonymous) {
    inherited_ = static_cast<char*>(mmap(nullptr, kFileBytes, kReadWriteProt,
                                         MAP_SHARED | MAP_ANONYMOUS | MAP_SHARED_PT, -1, 0));
    MUST(inherited_ != MAP_FAILED);
  } else if (source == Source::kMemfd) {
    fd_ = memfd_create("storm", MFD_CLOEXEC);
    MUST(fd_ >= 0 && ftruncate(fd_, kFileBytes) == 0);
  } else {
    name_ = "storm-" + std::to_string(getpid());
    const auto shm_open_by_hostmm = Find<ShmOpen>("hostmm_shm_open");
    fd_ = shm_open_by_hostmm(name_.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600, kFileBytes);
    MUST(fd_ >= 0);
  }
}

SharedFile::~SharedFile() {
  if (fd_ >= 0) close(fd_);
  if (inherited_ != nullptr) munmap(inherited_, kFileBytes);
  if (!name_.empty()) Find<ShmUnlink>("hostmm_shm_unlink")(name_.c_str());
}

char* SharedFile::Map(size_t offset, size_t bytes) const {
  if (inherited_ != nullptr) return inherited_ + offset;
  void* at = mmap(nullptr, bytes, kReadWriteProt, MAP_SHARED | MAP_SHARED_PT, fd_,
                  static_cast<off_t>(offset));
  MUST(at != MAP_FAILED);
  return static_cast<char*>(at);
}

pid_t StartChild(const std::function<void()>& body) {
  const pid_t parent = getpid();
  const pid_t child = fork();
  MUST(child >= 0);
  if (child != 0) return child;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);
  body();
  _exit(0);
}

Scene* RunStorm(const StormOptions& options) {
  Scene* scene = MakeScene(options.wrong);
  InitTouches();
  MUST(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
  const SharedFile file(options.source);
  constexpr uint32_t kControllers = 2;
  uint64_t seed = options.seed * 1000;
  const auto prober = [&] {
    const uint64_t mine = ++seed;
    return StartChild([&, mine] { Prober(scene, &file, options, mine).Live(~uint64_t{0}); });
  };
  std::vector<pid_t> controllers;
  std::vector<pid_t> probers;
  for (uint32_t i = 0; i < kControllers; ++i) {
    controllers.push_back(StartChild([&, i] { Control(scene, file, i, kControllers); }));
  }
  for (uint32_t i = 0; i < options.probers; ++i) probers.push_back(prober());
  const auto until = Clock::now() + std::chrono::seconds(options.seconds);
  uint64_t random = options.seed + 5;
  for (Goal goal(*scene, options); !goal.IsReached() && Clock::now() < until;) {
    // Also how often somebody is killed: seldom enough that the others get something done.
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    if (options.kill == StormOptions::Kill::kNobody) continue;
    pid_t& victim = probers[Roll(&random, options.probers)];
    kill(victim, SIGKILL);
    waitpid(victim, nullptr, 0);
    ++scene->tally.kills;
    victim = prober();
  }
  scene->stop = 1;
  EndChildren(&controllers);
  EndChildren(&probers);
  // What probers have forked comes here when they are gone.
  const bool alone = Eventually([] {
    pid_t ended;
    do {
      ended = waitpid(-1, nullptr, WNOHANG);
    } while (ended > 0);
    return ended < 0 && errno == ECHILD;
  });
  if (!alone) Say("#BAD a forked process does not end");
  return scene;
}

std::string ToText(const Scene& scene) {
  const Tally& tally = scene.tally;
  char text[400];
  snprintf(
      text, sizeof(text),
      "%llu violations in %llu touches (%llu done, %llu refused; %llu more fell into a change);"
      " %llu calls, %llu of them failed; %llu mappings, %llu forks, %llu kills",
      static_cast<unsigned long long>(tally.violations.load()),
      static_cast<unsigned long long>(scene.judged()),
      static_cast<unsigned long long>(tally.allowed.load()),
      static_cast<unsigned long long>(tally.refused.load()),
      static_cast<unsigned long long>(tally.undecided.load()),
      static_cast<unsigned long long>(tally.calls.load()),
      static_cast<unsigned long long>(tally.failed_calls.load()),
      static_cast<unsigned long long>(tally.maps.load()),
      static_cast<unsigned long long>(tally.forks.load()),
      static_cast<unsigned long long>(tally.kills.load()));
  return text;
}

}  // namespace hostmm::test
