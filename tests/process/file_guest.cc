// Shared files and segments between programs that have nothing else in common, and I/O into
// regions.
#include <fcntl.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>

#include "tests/process/guest_program.h"

namespace hostmm::test {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kBlock = 2 * kMib;
constexpr size_t kBytes = 2 * kManagedBytes;

// A file in /dev/shm that is gone at the end of the case, however it ends.
class DevShmFile {
 public:
  explicit DevShmFile(size_t bytes) {
    fd_ = mkstemp(path_);
    MUST(fd_ >= 0 && ftruncate(fd_, static_cast<off_t>(bytes)) == 0);
  }
  ~DevShmFile() {
    unlink(path_);
    close(fd_);
  }
  int fd() const { return fd_; }
  const char* path() const { return path_; }

 private:
  char path_[64] = "/dev/shm/hostmm-test.XXXXXX";
  int fd_ = -1;
};

char* MapFile(int fd, size_t bytes, int prot = 3, off_t offset = 0) {
  void* at = mmap(nullptr, bytes, prot, MAP_SHARED, fd, offset);
  MUST(at != MAP_FAILED);
  return static_cast<char*>(at);
}

std::string Number(uint64_t value) { return std::to_string(value); }

// Waits until `step` processes before us have done their part.
std::atomic<uint32_t>& StepOf(char* at) { return *reinterpret_cast<std::atomic<uint32_t>*>(at); }
bool AwaitStep(char* at, uint32_t step) {
  return Eventually([=] { return StepOf(at).load() == step; });
}

// When full, an adopted file becomes huge, in every process that maps it.
void ExpectHuge(char* at, size_t bytes) {
  if (!UnderHostmm()) return;
  const auto wanted = static_cast<int64_t>(bytes / kKib);
  Expect(Eventually([=] {
           // The kernel maps it huge again when it is touched.
           for (size_t block = 0; block < bytes; block += kBlock) (void)TryRead(at + block);
           return HugeMappedKib(at) >= wanted;
         }),
         "the full file is mapped huge");
}

// A descriptor over a socket.
void SendFd(int socket, int fd) {
  char byte = 0;
  iovec iov = {&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr header = {nullptr, 0, &iov, 1, control, sizeof(control), 0};
  cmsghdr* cmsg = CMSG_FIRSTHDR(&header);
  cmsg->cmsg_level = SOL_SOCKET;
  cmsg->cmsg_type = SCM_RIGHTS;
  cmsg->cmsg_len = CMSG_LEN(sizeof(int));
  __builtin_memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
  MUST(sendmsg(socket, &header, 0) == 1);
}

int ReceiveFd(int socket) {
  char byte = 0;
  iovec iov = {&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr header = {nullptr, 0, &iov, 1, control, sizeof(control), 0};
  MUST(recvmsg(socket, &header, 0) == 1);
  int fd = -1;
  __builtin_memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof(fd));
  return fd;
}

}  // namespace

// Maps the file and takes its turn: checks what the others wrote, writes its own block.
HOSTMM_PEER(MapsTheFile) {
  const uint32_t turn = static_cast<uint32_t>(std::stoul(words[1]));
  const int fd = open(words[0].c_str(), O_RDWR);
  if (fd < 0) return 10;
  char* at = MapFile(fd, kBytes);
  close(fd);
  if (!AwaitStep(at, turn)) return 11;
  for (uint32_t before = 0; before < turn; ++before) {
    if (!Holds(at + (before + 1) * kBlock, kBlock, before)) return 12;
  }
  if (UnderHostmm() && !Eventually(HasAgent)) return 13;
  Fill(at + (turn + 1) * kBlock, kBlock, turn);
  StepOf(at) = turn + 1;
  // Stays until all have been here, so that they share the file while it changes its frames.
  if (!Eventually([at] { return StepOf(at).load() >= 4; })) return 14;
  for (uint32_t all = 0; all < 4; ++all) {
    if (!Holds(at + (all + 1) * kBlock, kBlock, all)) return 15;
  }
  return 0;
}

HOSTMM_CASE(UnrelatedProgramsShareAFile) {
  const DevShmFile file(kBytes);
  // Two managed programs, one that is not, and this one.
  const pid_t first = StartPeer("MapsTheFile", {file.path(), "0"});
  const pid_t second = StartPeer("MapsTheFile", {file.path(), "1"});
  const pid_t unmanaged = StartPeer("MapsTheFile", {file.path(), "2"}, Preload::kDrop);
  char* at = MapFile(file.fd(), kBytes);
  ExpectAttached();
  Say("came %d", AwaitStep(at, 3));
  Fill(at + 5 * kBlock, kBytes - 5 * kBlock, 9);
  Fill(at + 4 * kBlock, kBlock, 3);
  StepOf(at) = 4;
  Say("ended %d", WaitFor(first));
  Say("ended %d", WaitFor(second));
  Say("ended %d", WaitFor(unmanaged));
  for (size_t page = kPage; page < kBlock; page += kPage) at[page] = 1;
  ExpectHuge(at, kBytes);
  Say("tail %d", Holds(at + 5 * kBlock, kBytes - 5 * kBlock, 9));
}

HOSTMM_PEER(ReceivesAMemfd) {
  const int fd = ReceiveFd(std::stoi(words[0]));
  char* at = MapFile(fd, kBytes);
  if (!Holds(at, kBytes / 2, 1)) return 1;
  Fill(at + kBytes / 2, kBytes / 2, 2);
  return UnderHostmm() && !Eventually(HasAgent) ? 2 : 0;
}

HOSTMM_CASE(MemfdPassedToAnotherProgram) {
  int ends[2];
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  const pid_t peer = StartPeer("ReceivesAMemfd", {Number(static_cast<uint64_t>(ends[1]))});
  const int fd = memfd_create("passed", MFD_ALLOW_SEALING);
  MUST(fd >= 0 && ftruncate(fd, kBytes) == 0);
  char* at = MapFile(fd, kBytes);
  ExpectAttached();
  Fill(at, kBytes / 2, 1);
  SendFd(ends[0], fd);
  Say("peer %d", WaitFor(peer));
  Say("holds %d %d", Holds(at, kBytes / 2, 1), Holds(at + kBytes / 2, kBytes / 2, 2));
  ExpectHuge(at, kBytes);
  // Through the file and through the mapping it is one content.
  char bytes[8];
  MUST(pread(fd, bytes, 8, kBytes / 2) == 8);
  Say("read %d", __builtin_memcmp(bytes, at + kBytes / 2, 8) == 0);
  MUST(pwrite(fd, "written!", 8, kMib) == 8);
  Say("written %.8s", at + kMib);
  Say("seal against writing %s", Outcome(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE)));
}

HOSTMM_CASE(FileForms) {
  const DevShmFile file(kBytes);
  const int read_only = open(file.path(), O_RDONLY);
  const auto map = [](int fd, int prot, int flags, off_t offset, size_t bytes = kManagedBytes) {
    void* at = mmap(nullptr, bytes, prot, flags, fd, offset);
    return at == MAP_FAILED ? ErrnoName(errno) : "mapped";
  };
  Say("read only file, writable: %s", map(read_only, 3, MAP_SHARED, 0));
  Say("read only: %s", map(read_only, 1, MAP_SHARED, 0));
  Say("private: %s", map(read_only, 3, MAP_PRIVATE, 0));
  Say("validate: %s", map(file.fd(), 3, MAP_SHARED_VALIDATE, 0));
  Say("validate an unknown bit: %s", map(file.fd(), 3, MAP_SHARED_VALIDATE | 0x200000, 0));
  Say("sync: %s", map(file.fd(), 3, MAP_SHARED_VALIDATE | 0x80000, 0));
  Say("unknown bit: %s", map(file.fd(), 3, MAP_SHARED | 0x200000, 0));
  Say("odd window: %s", map(file.fd(), 3, MAP_SHARED, 3 * kPage));
  Say("unaligned: %s", map(file.fd(), 3, MAP_SHARED, 5));
  Say("beyond the end: %s", map(file.fd(), 3, MAP_SHARED, 4 * kBytes));
  Say("locked, populated: %s", map(file.fd(), 3, MAP_SHARED | MAP_LOCKED | MAP_POPULATE, 0));
  char* all = MapFile(file.fd(), kBytes);
  char* window = MapFile(file.fd(), kManagedBytes, 3, 5 * kPage + kMib);
  window[7] = 77;
  Say("windows of one file: %d", all[kMib + 5 * kPage + 7]);
  void* over = mmap(all + kBlock, kManagedBytes, 3, MAP_SHARED | MAP_FIXED, file.fd(), 0);
  Say("over a part: %d", over == all + kBlock);
  all[9] = 99;
  Say("sees %d", all[kBlock + 9]);
  const int tree = open("/proc/self/exe", O_RDONLY);
  Say("a file of another file system: %s", map(tree, 1, MAP_SHARED, 0));
  ExpectAttached();
}

HOSTMM_CASE(TruncatedFile) {
  const DevShmFile file(kBytes);
  char* at = MapFile(file.fd(), kBytes);
  ExpectAttached();
  Fill(at, kBytes, 1);
  ExpectHuge(at, kBytes);
  MUST(ftruncate(file.fd(), kManagedBytes) == 0);
  Say("%s %s", TryRead(at + kManagedBytes - 1).c_str(), TryRead(at + kManagedBytes).c_str());
  Say("%lx", Checksum(at, kManagedBytes));
  MUST(ftruncate(file.fd(), kBytes) == 0);
  Say("grown: %s, reads %d", TryRead(at + kManagedBytes).c_str(), at[kBytes - 1]);
  Fill(at, kBytes, 2);
  MUST(ftruncate(file.fd(), 0) == 0);
  Say("empty: %s", TryWrite(at).c_str());
  MUST(ftruncate(file.fd(), kBytes) == 0);
  Say("back: %d", at[kMib]);
  Say("hole punched: %s", Outcome(madvise(at, kBlock, MADV_REMOVE)));
  Fill(at, kBytes, 3);
  Say("%lx", Checksum(at, kBytes));
}

// A pool that grows: what was not there at the first mapping becomes huge too.
HOSTMM_CASE(GrownMemfd) {
  // More new blocks than one order of the pager holds (64), which may reach behind the old end.
  constexpr size_t kGrown = kBytes + 72 * kBlock;
  const int fd = memfd_create("grows", MFD_CLOEXEC);
  MUST(fd >= 0 && ftruncate(fd, kBytes) == 0);
  char* first = MapFile(fd, kBytes);
  ExpectAttached();
  Fill(first, kBytes, 1);
  ExpectHuge(first, kBytes);
  MUST(ftruncate(fd, kGrown) == 0);
  char* all = MapFile(fd, kGrown);
  Say("holds %d", Holds(all, kBytes, 1));
  Fill(all + kBytes, kGrown - kBytes, 2);
  ExpectHuge(all, kGrown);
  Say("holds %d %d", Holds(first, kBytes, 1), Holds(all + kBytes, kGrown - kBytes, 2));
}

// Maps the file, says so in its first page and stays until it is told.
HOSTMM_PEER(MapsAndStays) {
  const int fd = open(words[0].c_str(), O_RDWR);
  if (fd < 0) return 10;
  char* at = MapFile(fd, kBytes);
  close(fd);
  if (UnderHostmm() && !Eventually(HasAgent)) return 11;
  ++StepOf(at);
  if (!Eventually([at] { return StepOf(at).load() == 10; })) return 12;
  return Holds(at + kBlock, kBytes - kBlock, 6) ? 0 : 13;
}

// Whoever is stopped answers no order. Stopped programs map the file before and after this one, so
// that it is not the first to be asked, whatever the order is.
HOSTMM_CASE(StoppedMappersHoldUpNobody) {
  const DevShmFile file(kBytes);
  char* look = MapFile(file.fd(), kPage);  // too small to be hostmm's
  const auto stop = [&](uint32_t number) {
    const pid_t peer = StartPeer("MapsAndStays", {file.path()});
    MUST(AwaitStep(look, number));
    int status = 0;
    MUST(kill(peer, SIGSTOP) == 0 && waitpid(peer, &status, WUNTRACED) == peer);
    MUST(WIFSTOPPED(status));
    return peer;
  };
  const pid_t before = stop(1);
  char* at = MapFile(file.fd(), kBytes);
  ExpectAttached();
  const pid_t after = stop(2);
  for (size_t page = kPage; page < kBlock; page += kPage) at[page] = 1;
  Fill(at + kBlock, kBytes - kBlock, 6);
  ExpectHuge(at, kBytes);
  StepOf(at) = 10;
  MUST(kill(before, SIGCONT) == 0 && kill(after, SIGCONT) == 0);
  Say("ended %d %d", WaitFor(before), WaitFor(after));
  Say("holds %d", Holds(at + kBlock, kBytes - kBlock, 6));
}

HOSTMM_CASE(FileAcrossForks) {
  const DevShmFile file(kBytes);
  char* at = MapFile(file.fd(), kBytes);
  ExpectAttached();
  Say("child %d", InChild([at] {
        Fill(at, kBytes, 5);
        return UnderHostmm() && !Eventually(HasAgent) ? 1 : 0;
      }));
  Say("holds %d", Holds(at, kBytes, 5));
  ExpectHuge(at, kBytes);
  Say("grandchild %d", InChild([at] { return InChild([at] { return Holds(at, kBytes, 5); }); }));
}

namespace {

// A segment that is gone at the end of the case.
class Segment {
 public:
  explicit Segment(size_t bytes, key_t key = IPC_PRIVATE)
      : id_(shmget(key, bytes, IPC_CREAT | IPC_EXCL | 0600)) {
    MUST(id_ >= 0);
  }
  ~Segment() { shmctl(id_, IPC_RMID, nullptr); }
  int id() const { return id_; }
  int Attached() const {
    shmid_ds info = {};
    return shmctl(id_, IPC_STAT, &info) == 0 ? static_cast<int>(info.shm_nattch) : -1;
  }

 private:
  const int id_;
};

char* Attach(int id, int flags = 0, void* at = nullptr) {
  return static_cast<char*>(shmat(id, at, flags));
}

bool IsBad(const char* at) { return at == reinterpret_cast<const char*>(-1); }

// Unlikely to be anybody else's: a process id below a constant of ours.
key_t FreshKey() { return static_cast<key_t>(0x68000000 | (getpid() & 0xffffff)); }

}  // namespace

HOSTMM_PEER(AttachesByKey) {
  const int id = shmget(std::stoi(words[0]), kBytes, 0);
  if (id < 0) return 1;
  char* at = Attach(id);
  if (IsBad(at)) return 2;
  if (!Holds(at, kBytes / 2, 1)) return 3;
  Fill(at + kBytes / 2, kBytes / 2, 2);
  if (UnderHostmm() && !Eventually(HasAgent)) return 4;
  return words.size() > 1 || shmdt(at) == 0 ? 0 : 5;
}

HOSTMM_CASE(SysVBetweenPrograms) {
  const key_t key = FreshKey();
  const Segment segment(kBytes, key);
  char* at = Attach(segment.id());
  MUST(!IsBad(at));
  ExpectAttached();
  Fill(at, kBytes / 2, 1);
  Say("attached %d", segment.Attached());
  Say("peer %d", WaitFor(StartPeer("AttachesByKey", {std::to_string(key)})));
  Say("attached %d", segment.Attached());
  Say("peer that exits attached %d",
      WaitFor(StartPeer("AttachesByKey", {std::to_string(key), "x"})));
  Say("unmanaged %d", WaitFor(StartPeer("AttachesByKey", {std::to_string(key)}, Preload::kDrop)));
  Say("attached %d", segment.Attached());
  Say("holds %d %d", Holds(at, kBytes / 2, 1), Holds(at + kBytes / 2, kBytes / 2, 2));
  ExpectHuge(at, kBytes);
  Say("in a child %d", InChild([&] { return segment.Attached(); }));
  Say("removed %s", Outcome(shmctl(segment.id(), IPC_RMID, nullptr)));
  Say("by key %s", Outcome(shmget(key, kBytes, 0)));
  at[5] = 5;
  Say("still there %d, attached %d", at[5], segment.Attached());
  Say("detach %s, again %s", Outcome(shmdt(at)), Outcome(shmdt(at)));
  Say("gone %d", segment.Attached());
}

HOSTMM_CASE(SysVForms) {
  const Segment segment(kBytes + kPage);
  char* at = Attach(segment.id());
  char* second = Attach(segment.id());
  char* read_only = Attach(segment.id(), SHM_RDONLY);
  MUST(!IsBad(at) && !IsBad(second) && !IsBad(read_only));
  ExpectAttached();
  at[kMib] = 11;
  Say("%d %d, write %s", second[kMib], read_only[kMib], TryWrite(read_only).c_str());
  Say("last page %s", TryWrite(at + kBytes).c_str());
  Say("attached %d", segment.Attached());
  Say("detach %s", Outcome(shmdt(second)));
  Say("%s, attached %d", TryRead(second).c_str(), segment.Attached());
  const auto say = [](const char* what, char* got) {
    Say("%s: %s", what, IsBad(got) ? ErrnoName(errno) : "attached");
  };
  char* fixed = Attach(segment.id(), 0, second);
  Say("where the second was %d", fixed == second);
  say("onto something", Attach(segment.id(), 0, at));
  say("remap without address", Attach(segment.id(), SHM_REMAP));
  char* over = Attach(segment.id(), SHM_REMAP, at);
  Say("remap onto the first %d, holds %d", over == at, at[kMib]);
  say("unaligned", Attach(segment.id(), 0, second + 5));
  MUST(shmdt(fixed) == 0);
  Say("rounded down %d", Attach(segment.id(), SHM_RND, second + 5) == second);
  say("no such segment", Attach(-1));
  say("executable", Attach(segment.id(), SHM_EXEC));
  Say("detach inside %s, of nothing %s", Outcome(shmdt(at + kPage)), Outcome(shmdt(nullptr)));
  Say("attached %d", segment.Attached());
  Say("detach %s", Outcome(shmdt(at)));
  Say("%s, attached %d", TryRead(at).c_str(), segment.Attached());
}

HOSTMM_CASE(SysVSmallCostsNothing) {
  const Segment segment(kManagedBytes - kPage);
  char* at = Attach(segment.id());
  MUST(!IsBad(at));
  at[0] = 1;
  Say("threads %zu descriptors %zu", ThreadCount(), DescriptorCount());
  ExpectUnmanaged();
}

HOSTMM_CASE(SysVPartsAreUnmapped) {
  const Segment segment(kBytes);
  char* at = Attach(segment.id());
  MUST(!IsBad(at));
  ExpectAttached();
  Fill(at, kBytes, 1);
  Say("unmap the middle %s", Outcome(munmap(at + 4 * kMib, kBlock)));
  Say("attached %d, %s", segment.Attached(), TryRead(at + 4 * kMib).c_str());
  Say("protect %s", Outcome(mprotect(at, kBlock, PROT_READ)));
  Say("%s", TryWrite(at).c_str());
  Say("detach %s", Outcome(shmdt(at)));
  Say("attached %d, %s %s", segment.Attached(), TryRead(at).c_str(),
      TryRead(at + 7 * kMib).c_str());
}

HOSTMM_CASE(ReadsIntoHoles) {
  char* at = MustMapShared(kBytes);
  ExpectManaged(at);
  const int fd = memfd_create("source", 0);
  std::vector<char> source(6 * kMib);
  Fill(source.data(), source.size(), 3);
  MUST(pwrite(fd, source.data(), source.size(), 0) == static_cast<ssize_t>(source.size()));
  Say("pread %zd", pread(fd, at + kMib + 8, source.size(), 0));
  Say("holds %d", __builtin_memcmp(at + kMib + 8, source.data(), source.size()) == 0);
  const iovec parts[] = {{at + 8 * kMib, kMib}, {at + 12 * kMib + 512, kMib}};
  Say("preadv %zd", preadv(fd, parts, 2, 0));
  Say("holds %d", __builtin_memcmp(at + 12 * kMib + 512, source.data() + kMib, kMib) == 0);
  Say("pwrite of holes %zd", pwrite(fd, at + 10 * kMib, kMib, 0));
  char byte = 1;
  MUST(pread(fd, &byte, 1, 5000) == 1);
  Say("zero %d", byte);
}

HOSTMM_CASE(PipesAndSockets) {
  char* at = MustMapShared(kBytes);
  ExpectManaged(at);
  int ends[2];
  MUST(pipe(ends) == 0);
  MUST(write(ends[1], "through a pipe", 14) == 14);
  Say("read %zd: %.14s", read(ends[0], at + 3 * kMib, 14), at + 3 * kMib);
  // Pages of the region, filled and not yet, lent to the pipe.
  Fill(at + 5 * kMib, kPage, 4);
  const iovec lent[] = {{at + 5 * kMib, kPage}, {at + 9 * kMib, kPage}};
  Say("vmsplice %zd", vmsplice(ends[1], lent, 2, 0));
  std::vector<char> got(2 * kPage);
  MUST(read(ends[0], got.data(), got.size()) == static_cast<ssize_t>(got.size()));
  Say("holds %d, zero %d", Holds(got.data(), kPage, 4), got[kPage]);
  // A page that the pipe still holds while the region loses it.
  MUST(vmsplice(ends[1], lent, 1, 0) == static_cast<ssize_t>(kPage));
  MUST(madvise(at + 4 * kMib, kBlock, MADV_REMOVE) == 0);
  MUST(read(ends[0], got.data(), kPage) == static_cast<ssize_t>(kPage));
  Say("held %d, removed %d", Holds(got.data(), kPage, 4), at[5 * kMib]);
  int sockets[2];
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
  MUST(send(sockets[0], at + 11 * kMib, 100, 0) == 100);
  Say("recv %zd", recv(sockets[1], at + 13 * kMib, 100, MSG_WAITALL));
}

// Into a file of the test's own folder: whether O_DIRECT is to be had there, the plain run tells.
HOSTMM_CASE(DirectIo) {
  const char* folder = getenv("TEST_TMPDIR");
  std::string path = std::string(folder == nullptr ? "/var/tmp" : folder) + "/direct.XXXXXX";
  const int plain = mkstemp(path.data());
  MUST(plain >= 0);
  std::vector<char> source(4 * kMib);
  Fill(source.data(), source.size(), 6);
  MUST(write(plain, source.data(), source.size()) == static_cast<ssize_t>(source.size()));
  MUST(fsync(plain) == 0);
  const int fd = open(path.c_str(), O_RDWR | O_DIRECT);
  unlink(path.c_str());
  char* at = MustMapShared(kBytes);
  ExpectManaged(at);
  if (fd < 0) {
    Say("skipped: O_DIRECT is refused where TEST_TMPDIR lies: %s", ErrnoName(errno));
    return;
  }
  Say("read into holes %zd", pread(fd, at + kMib, source.size(), 0));
  Say("holds %d", Holds(at + kMib, source.size(), 6));
  Fill(at + 8 * kMib, 2 * kMib, 7);
  Say("write %zd", pwrite(fd, at + 8 * kMib, 2 * kMib, 0));
  Say("write of holes %zd", pwrite(fd, at + 12 * kMib, kMib, 2 * kMib));
  Say("read back %zd", pread(fd, at + 14 * kMib, kMib, 0));
  Say("same %d", __builtin_memcmp(at + 14 * kMib, at + 8 * kMib, kMib) == 0);
}

}  // namespace hostmm::test
