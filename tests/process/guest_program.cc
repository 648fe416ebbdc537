#include "tests/process/guest_program.h"

#include <dirent.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <thread>

#include "tests/testing/smaps.h"

namespace hostmm::test {
namespace {

// For every wait inside a program; the test's own deadline is longer, so that the line that names
// the condition comes first.
constexpr auto kPatience = std::chrono::seconds(50);

struct NamedCase {
  const char* name;
  void (*body)();
};
struct NamedPeer {
  const char* name;
  int (*body)(const std::vector<std::string>&);
};

// Functions, because cases register before main in any order of files.
std::vector<NamedCase>& Cases() {
  static std::vector<NamedCase> cases;
  return cases;
}
std::vector<NamedPeer>& Peers() {
  static std::vector<NamedPeer> peers;
  return peers;
}

thread_local sigjmp_buf g_escape;
thread_local volatile sig_atomic_t g_armed = 0;
thread_local volatile int g_signal = 0;
thread_local volatile int g_code = 0;

void OnFault(int number, siginfo_t* info, void*) {
  if (g_armed == 0) {
    signal(number, SIG_DFL);
    return;
  }
  g_signal = number;
  g_code = info->si_code;
  siglongjmp(g_escape, 1);
}

std::string CaughtName() {
  const std::string code = g_signal == SIGSEGV && g_code == SEGV_ACCERR   ? "ACCERR"
                           : g_signal == SIGSEGV && g_code == SEGV_MAPERR ? "MAPERR"
                           : g_signal == SIGBUS && g_code == BUS_ADRERR   ? "ADRERR"
                                                                          : std::to_string(g_code);
  return std::string(g_signal == SIGSEGV ? "SIGSEGV/" : "SIGBUS/") + code;
}

void CatchFaults() {
  struct sigaction action = {};
  action.sa_sigaction = OnFault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
}

template <class Access>
std::string Try(Access access) {
  CatchFaults();
  if (sigsetjmp(g_escape, 1) != 0) {
    g_armed = 0;
    return CaughtName();
  }
  g_armed = 1;
  access();
  g_armed = 0;
  return "ok";
}

uint64_t Word(uint64_t seed, size_t index) {
  // A multiplicative hash (Knuth's 64-bit constant): neighbouring words and seeds differ.
  return (seed * 1'000'003 + index + 1) * 6364136223846793005u;
}

template <class Visit>
void ForEachEntry(const char* folder, Visit visit) {
  DIR* dir = opendir(folder);
  if (dir == nullptr) return;
  while (const dirent* entry = readdir(dir)) {
    if (entry->d_name[0] != '.') visit(entry->d_name);
  }
  closedir(dir);
}

}  // namespace

GuestCase::GuestCase(const char* name, void (*body)()) { Cases().push_back({name, body}); }

GuestPeer::GuestPeer(const char* name, int (*body)(const std::vector<std::string>&)) {
  Peers().push_back({name, body});
}

void Say(const char* format, ...) {
  char line[512];
  va_list arguments;
  va_start(arguments, format);
  int used = vsnprintf(line, sizeof(line) - 1, format, arguments);
  va_end(arguments);
  if (used > static_cast<int>(sizeof(line)) - 2) used = sizeof(line) - 2;
  line[used++] = '\n';
  if (write(STDOUT_FILENO, line, static_cast<size_t>(used)) != used) _exit(99);
}

void GiveUp(const char* file, int line, const char* condition) {
  Say("#BAD %s:%d: %s is false (%s)", file, line, condition, ErrnoName(errno));
  _exit(98);
}

const char* ErrnoName(int error) { return error == 0 ? "ok" : strerrorname_np(error); }

const char* Outcome(long result) { return result == -1 ? ErrnoName(errno) : "ok"; }

char* MapShared(size_t bytes, int more_flags, void* addr, int prot) {
  return static_cast<char*>(
      mmap(addr, bytes, prot, MAP_SHARED | MAP_ANONYMOUS | more_flags, -1, 0));
}

char* MustMapShared(size_t bytes) {
  char* at = MapShared(bytes);
  MUST(at != MAP_FAILED);
  return at;
}

std::string TryRead(const void* at) {
  return Try([at] { (void)*static_cast<const volatile char*>(at); });
}

std::string TryWrite(void* at, char value) {
  return Try([at, value] { *static_cast<volatile char*>(at) = value; });
}

std::string TryExecute(void* at) {
  return Try([at] { reinterpret_cast<void (*)()>(at)(); });
}

void Fill(char* at, size_t bytes, uint64_t seed) {
  uint64_t* words = reinterpret_cast<uint64_t*>(at);
  for (size_t i = 0; i < bytes / sizeof(uint64_t); ++i) words[i] = Word(seed, i);
}

uint64_t Checksum(const char* at, size_t bytes) {
  const uint64_t* words = reinterpret_cast<const uint64_t*>(at);
  // FNV-1a over words.
  uint64_t sum = 14695981039346656037u;
  for (size_t i = 0; i < bytes / sizeof(uint64_t); ++i) sum = (sum ^ words[i]) * 1099511628211u;
  return sum;
}

bool Holds(const char* at, size_t bytes, uint64_t seed) {
  const uint64_t* words = reinterpret_cast<const uint64_t*>(at);
  for (size_t i = 0; i < bytes / sizeof(uint64_t); ++i) {
    if (words[i] != Word(seed, i)) return false;
  }
  return true;
}

bool UnderHostmm() { return getenv("HOSTMM_SOCKET") != nullptr; }

bool HasAgent() {
  bool found = false;
  ForEachEntry("/proc/self/task", [&found](const char* task) {
    std::ifstream file(std::string("/proc/self/task/") + task + "/comm");
    std::string name;
    found = found || (std::getline(file, name) && name == "hostmm-agent");
  });
  return found;
}

size_t ThreadCount() {
  size_t count = 0;
  ForEachEntry("/proc/self/task", [&count](const char*) { ++count; });
  return count;
}

size_t DescriptorCount() {
  size_t count = 0;
  ForEachEntry("/proc/self/fd", [&count](const char*) { ++count; });
  return count;
}

bool IsRegistered(const void* at) {
  const auto vma = ReadVma(0, at);
  return vma.has_value() && vma->HasFlag("um");
}

int64_t HugeMappedKib(const void* at) { return PmdMappedKib(at); }

void Expect(bool condition, const char* what) {
  if (UnderHostmm()) Say("#%s %s", condition ? "ok" : "BAD", what);
}

void ExpectManaged(const void* at) {
  if (!UnderHostmm()) return;
  // The agent names itself as its first act, which may come after mmap has returned.
  Expect(Eventually(HasAgent), "an agent runs here");
  Expect(IsRegistered(at), "the mapping is registered");
}

void ExpectAttached() {
  if (UnderHostmm()) Expect(Eventually(HasAgent), "an agent runs here");
}

void ExpectUnmanaged() { Expect(!HasAgent(), "no agent runs here"); }

int InChild(const std::function<int()>& body) {
  const pid_t pid = fork();
  MUST(pid >= 0);
  if (pid == 0) _exit(body());
  return WaitFor(pid);
}

int WaitFor(pid_t pid) {
  int status = 0;
  const bool ended = Eventually([&] { return waitpid(pid, &status, WNOHANG) == pid; });
  if (!ended) {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
    return -1;
  }
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

bool Eventually(const std::function<bool()>& condition) {
  const auto until = std::chrono::steady_clock::now() + kPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > until) return condition();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

std::vector<std::string> PeerCommand(const char* name, const std::vector<std::string>& words) {
  std::vector<std::string> command = {"/proc/self/exe", "--peer", name};
  command.insert(command.end(), words.begin(), words.end());
  return command;
}

pid_t StartPeer(const char* name, const std::vector<std::string>& words, Preload preload) {
  const std::vector<std::string> command = PeerCommand(name, words);
  std::vector<char*> argv;
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  const pid_t pid = fork();
  MUST(pid >= 0);
  if (pid != 0) return pid;
  if (preload == Preload::kDrop) {
    unsetenv("LD_PRELOAD");
    unsetenv("HOSTMM_SOCKET");
  }
  execv(argv[0], argv.data());
  _exit(97);
}

Turns::Turns() { MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends_) == 0); }

void Turns::IAmFirst() {
  mine_ = ends_[0];
  close(ends_[1]);
}

void Turns::IAmSecond() {
  mine_ = ends_[1];
  close(ends_[0]);
}

void Turns::Pass() const { MUST(write(mine_, "", 1) == 1); }

void Turns::Await() const {
  pollfd wait = {mine_, POLLIN, 0};
  const int patience = std::chrono::duration_cast<std::chrono::milliseconds>(kPatience).count();
  MUST(poll(&wait, 1, patience) == 1);
  char byte;
  MUST(read(mine_, &byte, 1) == 1);
}

namespace {

int Main(const std::vector<std::string>& words) {
  if (words.size() == 1 && words[0] == "--list") {
    for (const NamedCase& one : Cases()) puts(one.name);
    return 0;
  }
  if (words.size() >= 2 && words[0] == "--peer") {
    for (const NamedPeer& peer : Peers()) {
      if (words[1] == peer.name) return peer.body({words.begin() + 2, words.end()});
    }
  }
  for (const NamedCase& one : Cases()) {
    if (words.size() != 1 || words[0] != one.name) continue;
    one.body();
    return 0;
  }
  fprintf(stderr, "usage: --list | CASE | --peer NAME WORD...\n");
  return 64;
}

}  // namespace
}  // namespace hostmm::test

int main(int argc, char** argv) { return hostmm::test::Main({argv + 1, argv + argc}); }
