#include "tests/shared_pt/guest.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "tests/process/guest_program.h"
#include "tests/shared_pt/calls.h"
#include "tests/shared_pt/view.h"

namespace hostmm::test {

enum class Op : uint64_t {
  kMap,
  kUnmap,
  kRemap,
  kProtect,
  kPlainProtect,
  kProtectForAll,
  kAdvise,
  kLock,
  kRead,
  kWrite,
  kExecute,
  kSystemCallWrites,
  kSystemCallReads,
  kByte,
  kPut,
  kFill,
  kHolds,
  kTouch,
  kPresentPages,
  kPagesInMemory,
  kPermissions,
  kHasVmFlag,
  kIsShared,
  kToggle,
  kExec,
};

namespace {

// Longer than any wait of a partner, shorter than the test's own deadline.
constexpr int kPatienceMs = 30'000;
constexpr uint64_t kSeed = 1;

uint64_t Number(const void* at) { return reinterpret_cast<uint64_t>(at); }
char* Pointer(uint64_t word) { return reinterpret_cast<char*>(word); }

Answer Reply(const std::string& text, uint64_t value = 0) {
  Answer answer = {};
  answer.value = value;
  text.copy(answer.text, sizeof(answer.text) - 1);
  return answer;
}

Answer ReplyMapped(void* at) {
  return at == MAP_FAILED ? Reply(ErrnoName(errno)) : Reply("ok", Number(at));
}

Answer DoMap(const Object& object, const uint64_t* words) {
  const auto flags = static_cast<int>(words[3]);
  const bool anonymous = object.kind() == MemoryKind::kAnonymous;
  const int fd = object.Open(static_cast<int>(words[4]));
  void* at =
      TheCalls().map(Pointer(words[5]), words[1], static_cast<int>(words[2]),
                     anonymous ? flags | MAP_ANONYMOUS : flags, fd, static_cast<off_t>(words[0]));
  const Answer answer = ReplyMapped(at);
  if (fd >= 0) close(fd);
  return answer;
}

Answer DoWrite(char* at) {
  const std::string read = TryRead(at);
  return Reply(read == "ok" ? TryWrite(at, *at) : read);
}

template <class Transfer>
Answer ThroughAPipe(Transfer transfer) {
  int ends[2];
  MUST(pipe(ends) == 0 && write(ends[1], "12345678", 8) == 8);
  const Answer answer = Reply(Outcome(transfer(ends)));
  close(ends[0]);
  close(ends[1]);
  return answer;
}

Answer DoIsShared(const char* at) {
  MUST(TheLibrary().is_shared != nullptr);
  const int shared = TheLibrary().is_shared(at);
  return Reply(shared < 0 ? ErrnoName(errno) : std::to_string(shared));
}

Answer DoToggle(char* at, size_t bytes, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    const int prot = i % 2 == 0 ? PROT_READ : kReadWrite;
    if (TheCalls().protect(at, bytes, prot) != 0) return Reply(ErrnoName(errno));
  }
  return Reply("ok");
}

void DoTouch(const char* at, size_t bytes) {
  for (size_t i = 0; i < bytes; i += kPage) (void)*static_cast<const volatile char*>(at + i);
}

// What is asked about a range, and of what is there.
Answer DoLook(const Command& command) {
  const uint64_t* words = command.words;
  char* at = Pointer(words[0]);
  switch (command.op) {
    case Op::kRead:
      return Reply(TryRead(at));
    case Op::kWrite:
      return DoWrite(at);
    case Op::kExecute:
      return Reply(TryExecute(at));
    case Op::kSystemCallWrites:
      return ThroughAPipe([at](const int* ends) { return read(ends[0], at, 4); });
    case Op::kSystemCallReads:
      return ThroughAPipe([at](const int* ends) { return write(ends[1], at, 4); });
    case Op::kByte:
      return Reply("ok", static_cast<unsigned char>(*at));
    case Op::kPut:
      *at = static_cast<char>(words[1]);
      return Reply("ok");
    case Op::kFill:
      Fill(at, words[1], kSeed);
      return Reply("ok");
    case Op::kHolds:
      return Reply("ok", Holds(at, words[1], kSeed) ? 1 : 0);
    case Op::kTouch:
      DoTouch(at, words[1]);
      return Reply("ok");
    case Op::kPresentPages:
      return Reply("ok", PresentPages(at, words[1]));
    case Op::kPagesInMemory:
      return Reply("ok", PagesInMemory(at, words[1]));
    case Op::kPermissions:
      return Reply(Permissions(at));
    case Op::kHasVmFlag: {
      const char flag[3] = {static_cast<char>(words[1]), static_cast<char>(words[2]), 0};
      return Reply("ok", HasVmFlag(at, flag) ? 1 : 0);
    }
    case Op::kIsShared:
      return DoIsShared(at);
    default:
      return Reply("unknown command");
  }
}

Answer Do(const Object& object, const Command& command) {
  const uint64_t* words = command.words;
  char* at = Pointer(words[0]);
  switch (command.op) {
    case Op::kMap:
      return DoMap(object, words);
    case Op::kUnmap:
      return Reply(Outcome(TheCalls().unmap(at, words[1])));
    case Op::kRemap:
      return ReplyMapped(
          TheCalls().remap(at, words[1], words[2], static_cast<int>(words[3]), Pointer(words[4])));
    case Op::kProtect:
      return Reply(Outcome(TheCalls().protect(at, words[1], static_cast<int>(words[2]))));
    case Op::kPlainProtect:
      return Reply(Outcome(mprotect(at, words[1], static_cast<int>(words[2]))));
    case Op::kProtectForAll:
      MUST(TheLibrary().protect_for_all != nullptr);
      return Reply(Outcome(TheLibrary().protect_for_all(at, words[1], static_cast<int>(words[2]))));
    case Op::kAdvise:
      return Reply(Outcome(TheCalls().advise(at, words[1], static_cast<int>(words[2]))));
    case Op::kLock:
      return Reply(Outcome(mlock(at, words[1])));
    case Op::kToggle:
      return DoToggle(at, words[1], words[2]);
    default:
      return DoLook(command);
  }
}

// Not managed, maps nothing; waits to be killed.
[[noreturn]] void BecomeAnotherProgram() {
  const std::vector<std::string> words = PeerCommand("MapsNothing", {});
  char* argv[] = {const_cast<char*>(words[0].c_str()), const_cast<char*>(words[1].c_str()),
                  const_cast<char*>(words[2].c_str()), nullptr};
  execv(argv[0], argv);
  _exit(97);
}

}  // namespace

HOSTMM_PEER(MapsNothing) {
  for (;;) pause();
}

Answer Guest::Ask(Op op, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f) {
  const Command command = {op, {a, b, c, d, e, f}};
  if (socket_ < 0) return Do(*object_, command);
  Send(command);
  return Receive();
}

void Guest::Send(const Command& command) const {
  MUST(send(socket_, &command, sizeof(command), MSG_NOSIGNAL) ==
       static_cast<ssize_t>(sizeof(command)));
}

Answer Guest::Receive() const {
  pollfd wait = {socket_, POLLIN, 0};
  MUST(poll(&wait, 1, kPatienceMs) == 1);
  Answer answer;
  MUST(recv(socket_, &answer, sizeof(answer), 0) == static_cast<ssize_t>(sizeof(answer)));
  return answer;
}

std::string Guest::Text(const Answer& answer) const { return answer.text; }

std::string Guest::TryMap(const Window& window) {
  const size_t bytes = window.bytes == 0 ? object_->bytes() - window.offset : window.bytes;
  return Text(Ask(Op::kMap, window.offset, bytes, static_cast<uint64_t>(window.prot),
                  static_cast<uint64_t>(window.flags), static_cast<uint64_t>(window.access),
                  Number(window.addr)));
}

char* Guest::Map(const Window& window) {
  const size_t bytes = window.bytes == 0 ? object_->bytes() - window.offset : window.bytes;
  const Answer answer = Ask(Op::kMap, window.offset, bytes, static_cast<uint64_t>(window.prot),
                            static_cast<uint64_t>(window.flags),
                            static_cast<uint64_t>(window.access), Number(window.addr));
  errno = 0;
  if (Text(answer) != "ok") Say("#BAD mmap: %s", answer.text);
  MUST(Text(answer) == "ok");
  return Pointer(answer.value);
}

std::string Guest::Unmap(char* at, size_t bytes) {
  return Text(Ask(Op::kUnmap, Number(at), bytes));
}

char* Guest::Remap(char* at, const Remapping& remapping) {
  const Answer answer = Ask(Op::kRemap, Number(at), remapping.old_bytes, remapping.new_bytes,
                            static_cast<uint64_t>(remapping.flags), Number(remapping.to));
  if (Text(answer) != "ok") Say("#BAD mremap: %s", answer.text);
  MUST(Text(answer) == "ok");
  return Pointer(answer.value);
}

std::string Guest::Protect(char* at, size_t bytes, int prot) {
  return Text(Ask(Op::kProtect, Number(at), bytes, static_cast<uint64_t>(prot)));
}
std::string Guest::PlainProtect(char* at, size_t bytes, int prot) {
  return Text(Ask(Op::kPlainProtect, Number(at), bytes, static_cast<uint64_t>(prot)));
}
std::string Guest::ProtectForAll(char* at, size_t bytes, int prot) {
  return Text(Ask(Op::kProtectForAll, Number(at), bytes, static_cast<uint64_t>(prot)));
}
std::string Guest::Advise(char* at, size_t bytes, int advice) {
  return Text(Ask(Op::kAdvise, Number(at), bytes, static_cast<uint64_t>(advice)));
}
std::string Guest::Lock(char* at, size_t bytes) { return Text(Ask(Op::kLock, Number(at), bytes)); }

std::string Guest::Read(char* at) { return Text(Ask(Op::kRead, Number(at))); }
std::string Guest::Write(char* at) { return Text(Ask(Op::kWrite, Number(at))); }
std::string Guest::Execute(char* at) { return Text(Ask(Op::kExecute, Number(at))); }
std::string Guest::SystemCallWrites(char* at) {
  return Text(Ask(Op::kSystemCallWrites, Number(at)));
}
std::string Guest::SystemCallReads(char* at) { return Text(Ask(Op::kSystemCallReads, Number(at))); }

int Guest::Byte(char* at) { return static_cast<int>(Ask(Op::kByte, Number(at)).value); }
void Guest::Put(char* at, int value) { Ask(Op::kPut, Number(at), static_cast<uint64_t>(value)); }
void Guest::Fill(char* at, size_t bytes) { Ask(Op::kFill, Number(at), bytes); }
bool Guest::Holds(char* at, size_t bytes) { return Ask(Op::kHolds, Number(at), bytes).value == 1; }
void Guest::Touch(char* at, size_t bytes) { Ask(Op::kTouch, Number(at), bytes); }

size_t Guest::PresentPages(char* at, size_t bytes) {
  return Ask(Op::kPresentPages, Number(at), bytes).value;
}
size_t Guest::PagesInMemory(char* at, size_t bytes) {
  return Ask(Op::kPagesInMemory, Number(at), bytes).value;
}
std::string Guest::Permissions(char* at) { return Text(Ask(Op::kPermissions, Number(at))); }
bool Guest::HasVmFlag(char* at, const char* flag) {
  return Ask(Op::kHasVmFlag, Number(at), static_cast<uint64_t>(flag[0]),
             static_cast<uint64_t>(flag[1]))
             .value == 1;
}
std::string Guest::IsShared(char* at) { return Text(Ask(Op::kIsShared, Number(at))); }

void Guest::StartToggling(char* at, size_t bytes, int count) {
  Send({Op::kToggle, {Number(at), bytes, static_cast<uint64_t>(count)}});
}
std::string Guest::Finish() { return Text(Receive()); }

void Guest::End(Ending ending) {
  if (ending == Ending::kExec) {
    Send({Op::kExec, {}});
    // The socket is closed by exec: its end says that the old program is gone.
    char byte;
    MUST(recv(socket_, &byte, 1, 0) == 0);
    return;
  }
  if (ending == Ending::kKill) kill(pid_, SIGKILL);
  close(socket_);
  MUST(WaitFor(pid_) >= 0);
  pid_ = -1;
}

void Serve(const Object& object, int socket) {
  // Whatever ends the case ends its partners.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  MUST(fcntl(socket, F_SETFD, FD_CLOEXEC) == 0);
  for (;;) {
    Command command;
    const ssize_t got = recv(socket, &command, sizeof(command), 0);
    if (got != static_cast<ssize_t>(sizeof(command))) _exit(0);
    if (command.op == Op::kExec) BecomeAnotherProgram();
    const Answer answer = Do(object, command);
    if (send(socket, &answer, sizeof(answer), MSG_NOSIGNAL) != sizeof(answer)) _exit(0);
  }
}

}  // namespace hostmm::test
