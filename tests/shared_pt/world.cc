#include "tests/shared_pt/world.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string_view>

namespace hostmm::test {
namespace {

const char* FileOf(const Where& where) {
  const std::string_view path = where.file_name();
  const size_t slash = path.rfind('/');
  return where.file_name() + (slash == std::string_view::npos ? 0 : slash + 1);
}

// The partners see that this process has gone.
[[noreturn]] void SkipTheCase(const char* why) {
  Say("skipped: %s", why);
  _exit(0);
}

}  // namespace

void Want(const std::string& got, const std::string& wanted, Where where) {
  if (got == wanted) {
    Say("#ok %s:%u", FileOf(where), where.line());
  } else {
    Say("#BAD %s:%u: is %s, must be %s", FileOf(where), where.line(), got.c_str(), wanted.c_str());
  }
}

void Want(uint64_t got, uint64_t wanted, Where where) {
  Want(std::to_string(got), std::to_string(wanted), where);
}

void WantTrue(bool condition, const char* what, Where where) {
  Say("#%s %s:%u: %s", condition ? "ok" : "BAD", FileOf(where), where.line(), what);
}

// The descriptor, the kind, the length and the path of the object.
HOSTMM_PEER(Partner) {
  Attach();
  const Object object = Object::FromWords({words.begin() + 1, words.end()});
  Serve(object, std::stoi(words[0]));
}

World::World(MemoryKind kind, size_t bytes) : object_((Attach(), Object::Make(kind, bytes))) {
  guests_.emplace_back(&object_, getpid(), -1);
}

World::~World() {
  for (Guest& guest : guests_) {
    if (guest.pid() <= 0 || guest.pid() == getpid()) continue;
    kill(guest.pid(), SIGKILL);
    waitpid(guest.pid(), nullptr, 0);
  }
  object_.Remove();
}

bool World::IsHugetlb() const {
  const char* frames = getenv("HOSTMM_TEST_FRAMES");
  return object_.IsOwn() && frames != nullptr && std::string_view(frames) == "hugetlb";
}

Guest& World::AddPartner(pid_t pid, int socket) {
  return guests_.emplace_back(&object_, pid, socket);
}

Guest& World::Fork() {
  int ends[2];
  MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
  const pid_t pid = fork();
  MUST(pid >= 0);
  if (pid == 0) {
    close(ends[0]);
    Serve(object_, ends[1]);
  }
  close(ends[1]);
  MUST(fcntl(ends[0], F_SETFD, FD_CLOEXEC) == 0);
  return AddPartner(pid, ends[0]);
}

Guest& World::Start() {
  MUST(!IsAnonymous());
  int ends[2];
  MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
  MUST(fcntl(ends[0], F_SETFD, FD_CLOEXEC) == 0);
  std::vector<std::string> words = {std::to_string(ends[1])};
  for (const std::string& word : object_.Words()) words.push_back(word);
  const pid_t pid = StartPeer("Partner", words);
  close(ends[1]);
  return AddPartner(pid, ends[0]);
}

char* World::Map() {
  char* at = self().Map();
  sharers_.push_back({&self(), at});
  return at;
}

Sharer World::Newcomer(const Window& window) {
  if (IsAnonymous()) {
    MUST(!sharers_.empty());
    sharers_.push_back({&Fork(), sharers_.front().at});
  } else {
    Guest& guest = Start();
    sharers_.push_back({&guest, guest.Map(window)});
  }
  return sharers_.back();
}

void World::WantReads(size_t offset, const std::string& wanted, Where where) {
  for (const Sharer& one : sharers_) Want(one.guest->Read(one.at + offset), wanted, where);
}

void World::WantWrites(size_t offset, const std::string& wanted, Where where) {
  for (const Sharer& one : sharers_) Want(one.guest->Write(one.at + offset), wanted, where);
}

void World::WantHolds(Where where) {
  for (const Sharer& one : sharers_) {
    WantTrue(one.guest->Holds(one.at, bytes()), "the content is intact", where);
  }
}

void World::WantFilledFor(Guest& guest, char* at, size_t size, Where where) {
  // Of hugetlb memory mincore tells what a process has in its page tables, and nothing tells more.
  if (IsHugetlb()) return;
  Want(guest.PagesInMemory(at, size), size / kPage, where);
}

void World::KeepSmall() {
  const MemoryKind kind = object_.kind();
  if (kind != MemoryKind::kMemfd && kind != MemoryKind::kDevShm) return;
  Want(self().Advise(sharers_.front().at, bytes(), MADV_NOHUGEPAGE), "ok");
}

void World::Settle() {
  if (object_.IsOwn() && !IsHugetlb() && PagerSocket() != nullptr) {
    const char* why_not = getenv("HOSTMM_TEST_WHY_NOT_HUGE");
    if (why_not != nullptr && *why_not != 0) SkipTheCase(why_not);
    char* at = sharers_.front().at;
    MUST(Eventually([this, at] {
      self().Touch(at, bytes());
      return HugeMappedKib(at) >= static_cast<int64_t>(bytes() / kKib);
    }));
  }
  TouchAll();
}

void World::TouchAll() {
  for (const Sharer& one : sharers_) one.guest->Touch(one.at, bytes());
}

}  // namespace hostmm::test
