// benchmarks/bare_fault_loop.cc
//
// The floor under a fault that another process resolves: poll, read one event, UFFDIO_CONTINUE one
// page, and nothing else. The server fills a memfd; a child maps it, registers the mapping for
// minor faults, sends its userfaultfd to the server and touches every page, timed by the same code
// as the program that runs under the pager.
//
//   --pages=N
//   --cpu=N     the processor that the touching process runs on

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>

#include "benchmarks/driver_steps.h"
#include "benchmarks/touch_timer.h"

namespace hostmm::benchmarks {
namespace {

constexpr uint64_t kPageBytes = 4096;

uint8_t* MapFile(int memfd, uint64_t bytes) {
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
  if (mapped == MAP_FAILED) Fail("mmap of the memfd");
  return static_cast<uint8_t*>(mapped);
}

int OpenUserfaultfd() {
  int uffd = -1;
  const int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (device >= 0) {
    uffd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    close(device);
  } else {
    uffd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  }
  if (uffd < 0) Fail("userfaultfd");
  uffdio_api api = {};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_MINOR_SHMEM;
  if (ioctl(uffd, UFFDIO_API, &api) != 0) Fail("UFFDIO_API with MINOR_SHMEM");
  return uffd;
}

void SendDescriptor(int socket, int fd) {
  char byte = 'u';
  iovec data = {&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  if (sendmsg(socket, &message, 0) != 1) Fail("sendmsg");
}

int ReceiveDescriptor(int socket) {
  char byte;
  iovec data = {&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  if (recvmsg(socket, &message, 0) != 1) Fail("recvmsg");
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header == nullptr || header->cmsg_type != SCM_RIGHTS) {
    errno = EPROTO;
    Fail("no descriptor came");
  }
  int fd;
  memcpy(&fd, CMSG_DATA(header), sizeof(fd));
  return fd;
}

int RunGuest(int socket, int memfd, uint64_t pages, uint64_t cpu) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (!PinToProcessor(cpu)) Fail("sched_setaffinity");
  uint8_t* region = MapFile(memfd, pages * kPageBytes);
  const int uffd = OpenUserfaultfd();
  uffdio_register registration = {};
  registration.range.start = reinterpret_cast<uint64_t>(region);
  registration.range.len = pages * kPageBytes;
  registration.mode = UFFDIO_REGISTER_MODE_MINOR;
  if (ioctl(uffd, UFFDIO_REGISTER, &registration) != 0) Fail("UFFDIO_REGISTER for minor faults");
  SendDescriptor(socket, uffd);
  Report(ToJson(TimeTouches(region, pages)));
  return 0;
}

// Serves until the guest closes its end of `socket`.
void Serve(int socket, int uffd) {
  pollfd waits[2] = {{uffd, POLLIN, 0}, {socket, POLLIN, 0}};
  while (true) {
    if (poll(waits, 2, -1) < 0) Fail("poll");
    if (waits[0].revents & POLLIN) {
      uffd_msg event;
      if (read(uffd, &event, sizeof(event)) != sizeof(event)) continue;
      uffdio_continue resolve = {};
      resolve.range.start = event.arg.pagefault.address & ~(kPageBytes - 1);
      resolve.range.len = kPageBytes;
      if (ioctl(uffd, UFFDIO_CONTINUE, &resolve) != 0 && errno != EEXIST) Fail("UFFDIO_CONTINUE");
    } else if (waits[1].revents != 0) {
      return;
    }
  }
}

int Main(int argc, char** argv) {
  const uint64_t pages = NumberOption(argc, argv, "pages", 16384);
  const uint64_t cpu = NumberOption(argc, argv, "cpu", 0);
  const int memfd = memfd_create("bare_fault_loop", MFD_CLOEXEC);
  if (memfd < 0 || ftruncate(memfd, static_cast<off_t>(pages * kPageBytes)) != 0) Fail("memfd");
  uint8_t* filled = MapFile(memfd, pages * kPageBytes);
  for (uint64_t i = 0; i < pages; ++i) filled[i * kPageBytes] = 2;

  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) != 0) Fail("socketpair");
  const pid_t child = fork();
  if (child < 0) Fail("fork");
  if (child == 0) {
    close(sockets[0]);
    _exit(RunGuest(sockets[1], memfd, pages, cpu));
  }
  close(sockets[1]);
  Serve(sockets[0], ReceiveDescriptor(sockets[0]));
  int status = 0;
  if (waitpid(child, &status, 0) != child) Fail("waitpid");
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

}  // namespace
}  // namespace hostmm::benchmarks

int main(int argc, char** argv) { return hostmm::benchmarks::Main(argc, argv); }
