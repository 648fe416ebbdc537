// Carries out a program of the opt-in oracle under hostmm, one step at a time, each in a process of
// its own:
//   optin_guest PROGRAM_FILE SEEN_FILE
// Both are arrays of Step and of Seen; what the model skips is left out. Ends with 1 if a process
// did not answer.
#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <string>

#include "tests/oracle/optin/model.h"
#include "tests/oracle/optin/program.h"

namespace hostmm::oracle {
namespace {

constexpr int kMapSharedPt = 0x200000;
constexpr int kMapDedicated = 0x400000;
constexpr uint64_t kPage = 4096;
constexpr uint64_t kBlock = kPage * kBlockPages;
// Far below where the kernel looks for a place, so that holes stay holes; not a gibibyte's multiple
// apart, so that what is moved between slots loses no alignment by accident.
constexpr uint64_t kSlotBase = uint64_t{32} << 40;
constexpr uint64_t kSlotStride = uint64_t{1} << 30;
// For one step; the pager's patience with a process is 8 s, and nobody is stopped here.
constexpr int kPatienceMs = 20'000;

using ForAll = int(void* at, size_t bytes, int prot);
using ShmOpen = int(const char* name, int oflag, mode_t mode, size_t bytes);
using ShmUnlink = int(const char* name);

void Require(bool condition, const char* what) {
  if (condition) return;
  perror(what);
  _exit(70);
}

template <class Function>
Function* Find(const char* name) {
  void* found = dlsym(RTLD_DEFAULT, name);
  Require(found != nullptr, name);
  return reinterpret_cast<Function*>(found);
}

struct Stage {
  int files[kFiles];
  int read_only[kFiles];
  int ends[kActors][2];  // the coordinator's, the actor's
};

sigjmp_buf g_escape;
volatile sig_atomic_t g_code = 0;

void OnFault(int number, siginfo_t* info, void*) {
  g_code = number == SIGSEGV ? info->si_code : -number;
  siglongjmp(g_escape, 1);
}

template <class Access>
Seen Touch(Access access) {
  if (sigsetjmp(g_escape, 1) == 0) return {Seen::kOk, access()};
  if (g_code == SEGV_MAPERR) return {Seen::kMapErr, 0};
  if (g_code == SEGV_ACCERR) return {Seen::kAccErr, 0};
  return {Seen::kOther, static_cast<uint32_t>(g_code)};
}

Seen Result(long result) {
  if (result != -1) return {};
  return {Seen::kErrno, static_cast<uint32_t>(errno)};
}

char* At(uint32_t slot, uint32_t page) {
  return reinterpret_cast<char*>(kSlotBase + slot * kSlotStride + page * kPage);
}

class Actor {
 public:
  Actor(const Stage& stage, uint32_t number) : stage_(stage), number_(number) {}

  [[noreturn]] void Serve() {
    Step step;
    while (recv(stage_.ends[number_][1], &step, sizeof(step), 0) == sizeof(step)) {
      const Seen seen = Take(step);
      send(stage_.ends[number_][1], &seen, sizeof(seen), 0);
    }
    _exit(0);
  }

 private:
  Seen Take(const Step& step) {
    const PageRange range = RangeOf(step);
    char* at = At(step.slot, range.first);
    const size_t bytes = range.count * kPage;
    switch (step.what) {
      case Do::kMap:
        return Map(step);
      case Do::kUnmap:
        return Result(munmap(at, bytes));
      case Do::kProtect:
        return Result(mprotect(at, bytes, ProtOf(step.number)));
      case Do::kProtectForAll:
        return Result(Find<ForAll>("hostmm_mprotect")(at, bytes, ProtOf(step.number)));
      case Do::kAdvise:
        return Result(madvise(at, bytes, kAdvices[step.number % kAdviceCount]));
      case Do::kRead:
        return Touch([at] { return uint32_t{*reinterpret_cast<volatile uint8_t*>(at)}; });
      case Do::kWrite:
        return Touch([&] {
          *reinterpret_cast<volatile uint8_t*>(at) = static_cast<uint8_t>(step.number);
          return 0u;
        });
      case Do::kMove: {
        char* to = At((step.slot + 1) % kSlots, step.number % kSlotPages);
        const void* got = mremap(at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to);
        return Result(got == MAP_FAILED ? -1 : 0);
      }
      case Do::kFork:
        return Fork(step.number);
      case Do::kExit:
        _exit(0);
      case Do::kKill:
      case Do::kKinds:
        break;
    }
    return {Seen::kOther, 0};
  }

  Seen Map(const Step& step) const {
    const MapHow how = HowOf(step);
    const MapRange range = RangeOfMap(step);
    const uint32_t file = step.file % kFiles;
    const bool read_only = how == MapHow::kReadOnlyDescriptor;
    int flags = MAP_FIXED | (how == MapHow::kPrivateWritable ? MAP_PRIVATE : MAP_SHARED);
    if (how != MapHow::kPlain) flags |= kMapSharedPt;
    if (how == MapHow::kDedicated) flags |= kMapDedicated;
    int prot = ProtOf(step.number >> 8);
    if (how == MapHow::kPrivateWritable) prot |= PROT_WRITE;
    const uint64_t offset = range.file_block * kBlock + (how == MapHow::kCrooked ? kPage : 0);
    const void* got =
        mmap(At(step.slot, range.slot_block * kBlockPages), range.blocks * kBlock, prot, flags,
             read_only ? stage_.read_only[file] : stage_.files[file], static_cast<off_t>(offset));
    return Result(got == MAP_FAILED ? -1 : 0);
  }

  // The child is told its number, and answers for itself from then on.
  Seen Fork(uint32_t child_number) {
    const pid_t child = fork();
    if (child == 0) {
      number_ = child_number;
      Serve();
    }
    Seen seen = Result(child);
    if (child > 0) seen.number = static_cast<uint32_t>(child);
    return seen;
  }

  const Stage& stage_;
  uint32_t number_;
};

class Coordinator {
 public:
  Coordinator() {
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    for (uint32_t i = 0; i < kFiles; ++i) stage_.files[i] = MakeFile(i);
    for (uint32_t i = 0; i < kFiles; ++i) {
      const std::string path = "/proc/self/fd/" + std::to_string(stage_.files[i]);
      stage_.read_only[i] = open(path.c_str(), O_RDONLY | O_CLOEXEC);
      Require(stage_.read_only[i] >= 0, "a descriptor for reading");
    }
    for (auto& ends : stage_.ends) {
      Require(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
    }
    const pid_t first = fork();
    Require(first >= 0, "fork");
    if (first != 0) {
      Know(0, first);
      return;
    }
    signal(SIGCHLD, SIG_IGN);
    struct sigaction action = {};
    action.sa_sigaction = OnFault;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr);
    Actor(stage_, 0).Serve();
  }
  ~Coordinator() {
    for (uint32_t i = 0; i < kActors; ++i) End(i, SIGKILL);
    Find<ShmUnlink>("hostmm_shm_unlink")(kName);
  }
  Coordinator(const Coordinator&) = delete;
  Coordinator& operator=(const Coordinator&) = delete;

  // Nothing: an actor did not answer.
  std::optional<Seen> Take(Step step) {
    std::array<bool, kActors> alive;
    for (uint32_t i = 0; i < kActors; ++i) alive[i] = pids_[i] != 0;
    const uint32_t actor = *Choose(alive, step.actor);
    switch (step.what) {
      case Do::kFork:
        for (step.number = 0; step.number < kActors && alive[step.number];) ++step.number;
        Require(step.number < kActors, "a free actor");
        break;
      case Do::kExit:
        Send(actor, step);
        End(actor, 0);
        return Seen{};
      case Do::kKill:
        End(*Choose(alive, step.number), SIGKILL);
        return Seen{};
      default:
        break;
    }
    Send(actor, step);
    std::optional<Seen> seen = Receive(actor);
    if (seen.has_value() && step.what == Do::kFork && seen->kind == Seen::kOk) {
      Know(step.number, static_cast<pid_t>(seen->number));
      seen->number = 0;
    }
    return seen;
  }

 private:
  static constexpr const char* kName = "optin-oracle";

  static int MakeFile(uint32_t number) {
    constexpr size_t kBytes = kFileBlocks * kBlock;
    int file;
    if (number == kNamedFile) {
      Find<ShmUnlink>("hostmm_shm_unlink")(kName);
      file = Find<ShmOpen>("hostmm_shm_open")(kName, O_RDWR | O_CREAT | O_EXCL, 0600, kBytes);
    } else {
      file = memfd_create("optin", MFD_CLOEXEC);
      Require(ftruncate(file, kBytes) == 0, "ftruncate");
    }
    Require(file >= 0, "a file");
    return file;
  }

  void Know(uint32_t actor, pid_t pid) {
    pids_[actor] = pid;
    ends_[actor] = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
    Require(ends_[actor] >= 0, "pidfd_open");
  }

  // Waits until it runs no more: nothing of it may happen in the next step. The pager hears of it
  // when its socket closes, before what anybody says later.
  void End(uint32_t actor, int signal_number) {
    if (pids_[actor] == 0) return;
    if (signal_number != 0) kill(pids_[actor], signal_number);
    pollfd wait = {ends_[actor], POLLIN, 0};
    Require(poll(&wait, 1, kPatienceMs) == 1, "the end of an actor");
    waitpid(pids_[actor], nullptr, WNOHANG);
    close(ends_[actor]);
    pids_[actor] = 0;
  }

  void Send(uint32_t actor, const Step& step) const {
    Require(send(stage_.ends[actor][0], &step, sizeof(step), MSG_NOSIGNAL) == sizeof(step), "send");
  }
  std::optional<Seen> Receive(uint32_t actor) const {
    pollfd wait = {stage_.ends[actor][0], POLLIN, 0};
    Seen seen;
    if (poll(&wait, 1, kPatienceMs) != 1) return std::nullopt;
    if (recv(wait.fd, &seen, sizeof(seen), 0) != sizeof(seen)) return std::nullopt;
    return seen;
  }

  Stage stage_ = {};
  std::array<pid_t, kActors> pids_ = {};  // 0: there is no such actor
  std::array<int, kActors> ends_ = {};    // their pidfds
};

int Main(const char* program_path, const char* seen_path) {
  std::ifstream program(program_path, std::ios::binary);
  std::ofstream seen_file(seen_path, std::ios::binary | std::ios::trunc);
  Coordinator coordinator;
  for (Step step; program.read(reinterpret_cast<char*>(&step), sizeof(step));) {
    const std::optional<Seen> seen = coordinator.Take(step);
    if (!seen.has_value()) return 1;
    seen_file.write(reinterpret_cast<const char*>(&*seen), sizeof(*seen));
  }
  return 0;
}

}  // namespace
}  // namespace hostmm::oracle

int main(int argc, char** argv) {
  if (argc != 3) return 64;
  return hostmm::oracle::Main(argv[1], argv[2]);
}
