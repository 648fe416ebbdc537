// tests/snapshots/world.h
//
// What the cases of snapshots are made of: a live region, snapshots and views of it, and other
// processes that carry out what a case asks of them.
//
// Terms:    HOSTMM_TEST_SOCKET, HOSTMM_TEST_PAGER (its pid), HOSTMM_TEST_FRAMES and
//           HOSTMM_TEST_KIND of the environment: the pager, what its frames are, and how the region
//           is mapped.
// Unit:     what is copied at once: 4 KiB, or 2 MiB on hugetlb frames.
// Output:   Want writes '#ok' or '#BAD' lines; the test wants at least one and no '#BAD'. After an
//           '#again' line it runs the case once more.
// Threads:  the case's one, unless a function says otherwise.
#ifndef HOSTMM_TESTS_SNAPSHOTS_WORLD_H_
#define HOSTMM_TESTS_SNAPSHOTS_WORLD_H_

#include <sys/mman.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "runtime/hostmm_c.h"
#include "tests/process/guest_program.h"

namespace hostmm::test {

inline constexpr size_t kPage = 4 * kKib;
inline constexpr size_t kBlock = 2 * kMib;
inline constexpr size_t kLiveBytes = 16 * kMib;
inline constexpr int kReadWrite = PROT_READ | PROT_WRITE;

// The function of that name hides it.
using SnapshotInfo = struct hostmm_snapshot_info;

// How the region of a case is mapped.
enum class Kind {
  kOptIn,  // anonymous, MAP_SHARED_PT
  kNamed,  // hostmm_shm_open, MAP_SHARED_PT
  kPlain,  // anonymous, as a program maps it that knows nothing of hostmm
};
Kind TheKind();
bool OnHugetlb();
bool OnHuge();
size_t Unit();
pid_t PagerPid();

// '#ok' or '#BAD' with what was wanted. RETURNS `condition`.
bool Want(bool condition, const char* format, ...) __attribute__((format(printf, 2, 3)));
// `call` is to fail with `error`.
void WantErrno(long result, int error, const char* call);
void Skip(const char* why);
// The moment that the case is about was missed: it is to run once more, with a new pager.
void Again(const char* why);

// Memory that several processes count in, too small for hostmm to manage.
template <class T>
T* SharedCounters() {
  static_assert(sizeof(T) < kManagedBytes);
  void* at = mmap(nullptr, sizeof(T), kReadWrite, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  MUST(at != MAP_FAILED);
  return new (at) T();
}

// Attaches this process to the pager of the test. Once; forked children are attached.
void Attach();

// A region of the pager's, mapped in this process and in those that it forks from then on.
class Live {
 public:
  explicit Live(size_t bytes = kLiveBytes, int prot = kReadWrite);
  ~Live();
  Live(const Live&) = delete;
  Live& operator=(const Live&) = delete;

  char* at() const { return at_; }
  size_t bytes() const { return bytes_; }
  const char* name() const { return name_; }  // of a named one
  // mremap or munmap was done.
  void IsAt(char* at) { at_ = at; }
  // mprotect for this mapping: for all, if it is opt-in.
  void Protect(int prot) const;

 private:
  char* at_ = nullptr;
  size_t bytes_;
  char name_[48] = {};
};

// A handle, closed at the end.
class Snapshot {
 public:
  // Takes one; MUST succeed.
  explicit Snapshot(const void* at);
  // The same beside somebody who forks: a child that gets no processor for most of a second makes
  // it EAGAIN. That is counted in *refused, and asked again.
  Snapshot(const void* at, size_t* refused);
  ~Snapshot() { Drop(); }
  Snapshot(const Snapshot&) = delete;
  Snapshot& operator=(const Snapshot&) = delete;

  int handle() const { return handle_; }
  void Drop();
  SnapshotInfo Info() const;
  // "ok" or the name of the errno of hostmm_snapshot_info.
  std::string Condition() const;

 private:
  void MustBeThere() const;

  int handle_ = -1;
};

// A view, unmapped at the end.
class View {
 public:
  // MUST succeed. `bytes` 0: all of it.
  explicit View(const Snapshot& snapshot, int prot = PROT_READ, size_t offset = 0,
                size_t bytes = 0);
  explicit View(int handle, int prot = PROT_READ, size_t offset = 0, size_t bytes = 0);
  ~View() { Drop(); }
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  char* at() const { return at_; }
  size_t bytes() const { return bytes_; }
  void Drop();

 private:
  char* at_ = nullptr;
  size_t bytes_ = 0;
};

// Writes the first word of each unit of [at, at + bytes): what it is depends on `seed` and on where
// the unit lies in its block.
void Stamp(char* at, size_t bytes, uint64_t seed);
bool IsStamped(const char* at, size_t bytes, uint64_t seed);
// What Stamp writes to the unit at `at`.
uint64_t StampOf(const char* at, uint64_t seed);
// As TryRead; what was read goes to *word.
std::string TryReadWord(const char* at, uint64_t* word);
bool IsZero(const char* at, size_t bytes);
// Whether thawed memory is mapped natively again: nothing but holes comes to the pager.
bool IsNative(const void* at);
bool IsTracked(const void* at);

// Another process, forked when the object is made, that runs what it is given.
class Partner {
 public:
  // A child that has not begun may hold up a snapshot, or make it EAGAIN.
  enum class Begun { kYes, kMaybe };
  explicit Partner(Begun begun = Begun::kYes);
  // kill -9, and reaps.
  ~Partner() { Kill(); }
  Partner(const Partner&) = delete;
  Partner& operator=(const Partner&) = delete;

  pid_t pid() const { return pid_; }
  // Runs `task` there and RETURNS its result. The closure is copied as bytes: what it names by
  // address must have been there when the partner was forked.
  template <class Task>
  int64_t Do(Task task) {
    Start(task);
    return Await();
  }
  template <class Task>
  void Start(Task task) {
    static_assert(std::is_trivially_copyable_v<Task> && sizeof(Task) <= kMaxClosure);
    Job job = {};
    job.run = [](const std::byte* closure) {
      alignas(Task) std::byte copy[sizeof(Task)];
      memcpy(copy, closure, sizeof(Task));
      return static_cast<int64_t>((*reinterpret_cast<Task*>(copy))());
    };
    memcpy(job.closure, &task, sizeof(Task));
    Send(job);
  }
  int64_t Await() const;
  // Whether the result has come within that time.
  bool HasAnswered(int milliseconds) const;
  // RETURNS the number that the descriptor has there.
  int Give(int fd);

  void Stop() const;
  void Continue() const;
  void Kill();
  // "ok" or the signal of one access there.
  std::string Read(const void* at);
  std::string Write(void* at);

 private:
  static constexpr size_t kMaxClosure = 96;
  struct Job {
    int64_t (*run)(const std::byte* closure);
    alignas(16) std::byte closure[kMaxClosure];
  };

  void Send(const Job& job) const;
  [[noreturn]] static void Serve(int socket, Begun begun);
  static void Answer(int socket, int64_t result);

  pid_t pid_ = -1;
  int socket_ = -1;
};

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_SNAPSHOTS_WORLD_H_
