// tests/shared_pt/guest.h
//
// One of the processes of a case: the case's own, or a partner that carries out what the case asks
// of it, one command at a time over a socket. So a case reads as a list of who does what.
//
// Flow:     partner: Serve; case: a member function of Guest sends the command and waits.
// Results:  "ok", the name of an errno, or a signal ("SIGSEGV/ACCERR"). Addresses are of the guest
//           that was asked.
// Threads:  the case's one. Errors: MUST when a partner does not answer.
#ifndef HOSTMM_TESTS_SHARED_PT_GUEST_H_
#define HOSTMM_TESTS_SHARED_PT_GUEST_H_

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "tests/shared_pt/calls.h"
#include "tests/shared_pt/object.h"

namespace hostmm::test {

inline constexpr int kReadWrite = PROT_READ | PROT_WRITE;
inline constexpr int kOptIn = MAP_SHARED | kMapSharedPt;

struct Window {
  size_t offset = 0;
  size_t bytes = 0;  // 0: to the end of the object
  int prot = kReadWrite;
  int flags = kOptIn;
  int access = O_RDWR;  // of the descriptor
  char* addr = nullptr;
};

struct Remapping {
  size_t old_bytes;
  size_t new_bytes;
  int flags = MREMAP_MAYMOVE;
  char* to = nullptr;
};

enum class Op : uint64_t;

struct Command {
  Op op;
  uint64_t words[6];
};
struct Answer {
  uint64_t value;
  char text[56];
};

class Guest {
 public:
  // `socket`: of a partner; -1: this process. `object` outlives it.
  Guest(const Object* object, pid_t pid, int socket)
      : object_(object), pid_(pid), socket_(socket) {}

  pid_t pid() const { return pid_; }

  // Maps a window of the object; MUST succeed. The other one says how it went.
  char* Map(const Window& window = {});
  std::string TryMap(const Window& window);
  std::string Unmap(char* at, size_t bytes);
  // MUST succeed.
  char* Remap(char* at, const Remapping& remapping);
  // The call under test; libc's mprotect (which the library replaces); hostmm_mprotect.
  std::string Protect(char* at, size_t bytes, int prot);
  std::string PlainProtect(char* at, size_t bytes, int prot);
  std::string ProtectForAll(char* at, size_t bytes, int prot);
  std::string Advise(char* at, size_t bytes, int advice);
  std::string Lock(char* at, size_t bytes);

  std::string Read(char* at);
  // Writes what is there.
  std::string Write(char* at);
  // Calls what is there: must be a function that only returns.
  std::string Execute(char* at);
  // read(2) into, write(2) from there.
  std::string SystemCallWrites(char* at);
  std::string SystemCallReads(char* at);

  int Byte(char* at);
  void Put(char* at, int value);
  // A pattern over a range.
  void Fill(char* at, size_t bytes);
  bool Holds(char* at, size_t bytes);
  // Reads each page.
  void Touch(char* at, size_t bytes);

  size_t PresentPages(char* at, size_t bytes);
  size_t PagesInMemory(char* at, size_t bytes);
  std::string Permissions(char* at);
  bool HasVmFlag(char* at, const char* flag);
  // hostmm_is_shared: "1", "0", or an errno.
  std::string IsShared(char* at);

  // Toggles between reading only and writing, `count` times, and does not wait: Finish does, and
  // says the first thing that was not "ok".
  void StartToggling(char* at, size_t bytes, int count);
  std::string Finish();

  // The partner ends: exit, SIGKILL, exec of a program that maps nothing. Returns when it is gone,
  // or is that program.
  enum class Ending { kExit, kKill, kExec };
  void End(Ending ending);

 private:
  Answer Ask(Op op, uint64_t a = 0, uint64_t b = 0, uint64_t c = 0, uint64_t d = 0, uint64_t e = 0,
             uint64_t f = 0);
  std::string Text(const Answer& answer) const;
  void Send(const Command& command) const;
  Answer Receive() const;

  const Object* object_;
  pid_t pid_;
  int socket_;
};

// A partner's life: until the case ends it or goes itself.
[[noreturn]] void Serve(const Object& object, int socket);

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_SHARED_PT_GUEST_H_
