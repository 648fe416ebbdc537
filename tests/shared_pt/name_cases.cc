// Named regions: who may open what. The users are those of other processes, made before this one
// has anything to do with the pager.
#include <fcntl.h>
#include <grp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "tests/shared_pt/world.h"

namespace hostmm::test {
namespace {

constexpr uid_t kNobody = 65534;
constexpr uid_t kSomebody = 65533;

std::string Name(const char* what) { return what + std::string("-") + std::to_string(getpid()); }

std::string Open(const std::string& name, int oflag, mode_t mode = 0, size_t length = 0) {
  const int fd = TheLibrary().shm_open(name.c_str(), oflag, mode, length);
  if (fd < 0) return ErrnoName(errno);
  close(fd);
  return "ok";
}

std::string Unlink(const std::string& name) {
  return Outcome(TheLibrary().shm_unlink(name.c_str()));
}

// The pager knows a process as whom it was when it came.
bool BecomeAndAttach(uid_t user, gid_t group) {
  if (user != 0 && (setgroups(0, nullptr) != 0 || setgid(group) != 0 || setuid(user) != 0)) {
    return false;
  }
  Attach();
  return true;
}

}  // namespace

HOSTMM_CASE(NamesOpenAndClose) {
  Attach();
  MUST(TheLibrary().shm_open != nullptr);
  const std::string name = Name("life");
  Want(Open(name, O_RDWR), "ENOENT");
  Want(Open(name, O_RDWR | O_CREAT, 0600, 0), "EINVAL");
  // The length is rounded up to the granule.
  const int fd = TheLibrary().shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600, kBlock + 1);
  MUST(fd >= 0);
  struct stat info = {};
  MUST(fstat(fd, &info) == 0);
  Want(static_cast<uint64_t>(info.st_size), 2 * kBlock);
  WantTrue((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0, "closed by exec");
  Want(Open(name, O_RDWR | O_CREAT | O_EXCL, 0600, kBlock), "EEXIST");
  Want(Open(name, O_RDWR | O_CREAT, 0600, kBlock), "ok");
  Want(Open(name, O_RDONLY), "ok");
  const std::string long_name(64, 'n');
  for (const std::string& bad : {std::string(), std::string("a/b"), long_name}) {
    Want(Open(bad, O_RDWR | O_CREAT, 0600, kBlock), "EINVAL");
  }
  const std::string longest(63, 'n');
  Want(Open(longest, O_RDWR | O_CREAT | O_EXCL, 0600, kBlock), "ok");
  Want(Unlink(longest), "ok");
  Want(Unlink(longest), "ENOENT");
  // The name goes, what is mapped stays.
  char* at = static_cast<char*>(TheCalls().map(nullptr, 2 * kBlock, kReadWrite, kOptIn, fd, 0));
  MUST(at != MAP_FAILED);
  Fill(at, 2 * kBlock, 1);
  Want(Unlink(name), "ok");
  Want(Open(name, O_RDWR), "ENOENT");
  WantTrue(Holds(at, 2 * kBlock, 1), "the content is intact");
  Want(Outcome(TheCalls().protect(at, kBlock, PROT_READ)), "ok");
  Want(TryWrite(at), "SIGSEGV/ACCERR");
  // A new one of that name is another one.
  const int other = TheLibrary().shm_open(name.c_str(), O_RDWR | O_CREAT, 0600, kBlock);
  MUST(other >= 0);
  char* fresh = static_cast<char*>(TheCalls().map(nullptr, kBlock, kReadWrite, kOptIn, other, 0));
  MUST(fresh != MAP_FAILED);
  Want(static_cast<uint64_t>(fresh[0]), 0);
  Want(TryWrite(fresh), "ok");
  Want(Unlink(name), "ok");
}

HOSTMM_CASE(NamesReadOnly) {
  Attach();
  MUST(TheLibrary().shm_open != nullptr);
  const std::string name = Name("read-only");
  const int fd = TheLibrary().shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600, kBlock);
  const int read_only = TheLibrary().shm_open(name.c_str(), O_RDONLY, 0, 0);
  MUST(fd >= 0 && read_only >= 0);
  const auto map = [](int file, int prot) {
    return static_cast<char*>(TheCalls().map(nullptr, kBlock, prot, kOptIn, file, 0));
  };
  WantTrue(map(read_only, kReadWrite) == MAP_FAILED && errno == EACCES, "no writable mapping");
  char* writer = map(fd, kReadWrite);
  char* reader = map(read_only, PROT_READ);
  MUST(writer != MAP_FAILED && reader != MAP_FAILED);
  writer[9] = 9;
  Want(static_cast<uint64_t>(reader[9]), 9);
  Want(TryWrite(reader), "SIGSEGV/ACCERR");
  Want(Outcome(TheCalls().protect(reader, kBlock, kReadWrite)), "EACCES");
  // Nor by way of the descriptor.
  Want(Outcome(write(read_only, "x", 1)), "EBADF");
  Want(Outcome(ftruncate(read_only, 0)), "EINVAL");
  Want(TryWrite(writer), "ok");
  Want(Unlink(name), "ok");
}

// Each user in a process of its own; `mode` as for files.
HOSTMM_CASE(NamesAndPermissions) {
  if (geteuid() != 0) {
    Say("skipped: only root can be somebody else");
    return;
  }
  MUST(TheLibrary().shm_open != nullptr);
  const std::string prefix = Name("mode");
  const auto name = [&prefix](const char* mode) { return prefix + mode; };
  // The first process makes them, as an ordinary user.
  Want(static_cast<uint64_t>(InChild([&] {
         if (!BecomeAndAttach(kNobody, kNobody)) return 1;
         for (const char* mode : {"600", "640", "660", "644", "666"}) {
           const auto bits = static_cast<mode_t>(strtol(mode, nullptr, 8));
           if (Open(name(mode), O_RDWR | O_CREAT | O_EXCL, bits, kBlock) != "ok") return 2;
         }
         return 0;
       })),
       0);
  struct Try {
    const char* mode;
    const char* read;
    const char* write;
  };
  const auto as = [&name](uid_t user, gid_t group, const std::vector<Try>& tries) {
    return static_cast<uint64_t>(InChild([&] {
      if (!BecomeAndAttach(user, group)) return 100;
      int wrong = 0;
      for (const Try& one : tries) {
        const std::string read = Open(name(one.mode), O_RDONLY);
        const std::string write = Open(name(one.mode), O_RDWR);
        if (read == one.read && write == one.write) continue;
        Say("#BAD user %u, mode %s: %s %s", user, one.mode, read.c_str(), write.c_str());
        ++wrong;
      }
      return wrong;
    }));
  };
  Want(as(kNobody, kNobody, {{"600", "ok", "ok"}, {"640", "ok", "ok"}, {"644", "ok", "ok"}}), 0);
  Want(as(kSomebody, kNobody,
          {{"600", "EACCES", "EACCES"}, {"640", "ok", "EACCES"}, {"660", "ok", "ok"}}),
       0);
  Want(as(kSomebody, kSomebody,
          {{"600", "EACCES", "EACCES"},
           {"640", "EACCES", "EACCES"},
           {"644", "ok", "EACCES"},
           {"666", "ok", "ok"}}),
       0);
  Want(as(0, 0, {{"600", "ok", "ok"}, {"640", "ok", "ok"}}), 0);
  // Only the owner and root may take the name away.
  Want(static_cast<uint64_t>(InChild([&] {
         if (!BecomeAndAttach(kSomebody, kNobody)) return 1;
         return Unlink(name("666")) == "EACCES" && Unlink(name("600")) == "EACCES" ? 0 : 2;
       })),
       0);
  Want(static_cast<uint64_t>(InChild([&] {
         if (!BecomeAndAttach(kNobody, kSomebody)) return 1;
         return Unlink(name("600")) == "ok" && Unlink(name("640")) == "ok" ? 0 : 2;
       })),
       0);
  Attach();
  for (const char* mode : {"660", "644", "666"}) Want(Unlink(name(mode)), "ok");
}

}  // namespace hostmm::test
