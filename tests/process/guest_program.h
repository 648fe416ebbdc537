// tests/process/guest_program.h
//
// What the small programs of the process tests are made of. Each program is a set of named cases; a
// case prints what it sees (results, errnos, signals, checksums) and the test runs it plain and
// under hostmm: both transcripts must be the same.
//
// Flow:     program --list prints the cases; program CASE runs one and exits 0.
// Output:   Say() makes the transcript. Lines of ExpectManaged and ExpectUnmanaged begin with '#'
//           and are written under hostmm only; the test wants at least one, and no '#BAD'.
// Threads:  any. Every call writes one line with one write(2), so lines of several processes never
//           mix; a case orders them itself by waiting.
// Errors:   MUST ends the process with a line when something that is not under test fails.
#ifndef HOSTMM_TESTS_PROCESS_GUEST_PROGRAM_H_
#define HOSTMM_TESTS_PROCESS_GUEST_PROGRAM_H_

#include <sys/types.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#define MUST(condition) \
  ((condition) ? void() : ::hostmm::test::GiveUp(__FILE__, __LINE__, #condition))

namespace hostmm::test {

inline constexpr size_t kKib = 1024;
inline constexpr size_t kMib = 1024 * kKib;
// The shortest mapping that hostmm manages.
inline constexpr size_t kManagedBytes = 8 * kMib;

struct GuestCase {
  GuestCase(const char* name, void (*body)());
};

// A case that the test runs and compares.
#define HOSTMM_CASE(name)                                                \
  void name##Case();                                                     \
  const ::hostmm::test::GuestCase name##Registration(#name, name##Case); \
  void name##Case()

// A program that a case starts with exec: runs with `words`, and is not listed.
struct GuestPeer {
  GuestPeer(const char* name, int (*body)(const std::vector<std::string>& words));
};

#define HOSTMM_PEER(name)                                                \
  int name##Peer(const std::vector<std::string>& words);                 \
  const ::hostmm::test::GuestPeer name##Registration(#name, name##Peer); \
  int name##Peer([[maybe_unused]] const std::vector<std::string>& words)

void Say(const char* format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] void GiveUp(const char* file, int line, const char* condition);

// The name of an errno, "ok" for 0.
const char* ErrnoName(int error);
// "ok" or the name of errno, for a call that returns -1 on failure.
const char* Outcome(long result);

// Anonymous shared memory; MAP_FAILED as in mmap.
char* MapShared(size_t bytes, int more_flags = 0, void* addr = nullptr, int prot = 3);
// The same, ends the program on failure.
char* MustMapShared(size_t bytes);

// One access, whose signal (if any) is caught: "ok", "SIGSEGV/ACCERR", "SIGBUS/ADRERR", ...
std::string TryRead(const void* at);
std::string TryWrite(void* at, char value = 1);
// Calls the function there, which must only return.
std::string TryExecute(void* at);

// Writes a pattern that depends on `seed` and the position, in 8-byte words.
void Fill(char* at, size_t bytes, uint64_t seed);
uint64_t Checksum(const char* at, size_t bytes);
// What Checksum is after Fill.
bool Holds(const char* at, size_t bytes, uint64_t seed);

bool UnderHostmm();
bool HasAgent();
size_t ThreadCount();
size_t DescriptorCount();
// Whether the mapping at `at` sends its faults to a userfaultfd.
bool IsRegistered(const void* at);
// KiB mapped with one entry per 2 MiB in the mapping at `at`.
int64_t HugeMappedKib(const void* at);

// `at` lies in a region with frames of hostmm's own, and this process has an agent.
void ExpectManaged(const void* at);
// The process has an agent (adopted files are not registered).
void ExpectAttached();
// Nothing of hostmm is active in this process: no thread.
void ExpectUnmanaged();
// Under hostmm: '#ok' or '#BAD' with `what`.
void Expect(bool condition, const char* what);

// Runs `body` in a forked child and returns how it ended: exit code, or 128 + signal.
int InChild(const std::function<int()>& body);
// Waits for `pid`: exit code, or 128 + signal; -1 at the deadline, when it is killed.
int WaitFor(pid_t pid);
// Whether `condition` came to hold before the deadline of all waits here.
bool Eventually(const std::function<bool()>& condition);

// Starts this program anew as a peer, with the preload library or without.
enum class Preload { kKeep, kDrop };
pid_t StartPeer(const char* name, const std::vector<std::string>& words,
                Preload preload = Preload::kKeep);
// The words that exec needs for that.
std::vector<std::string> PeerCommand(const char* name, const std::vector<std::string>& words);

// Two ends over which processes of a case take turns.
class Turns {
 public:
  Turns();
  // Call once in each of the two processes.
  void IAmFirst();
  void IAmSecond();
  void Pass() const;
  void Await() const;

 private:
  int ends_[2];
  int mine_ = -1;
};

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_PROCESS_GUEST_PROGRAM_H_
