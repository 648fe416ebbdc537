#include "runtime/cli/control_socket.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include "runtime/cli/options.h"

namespace hostmm {
namespace {

// Guests of one tree may all connect at once; the kernel lowers it to net.core.somaxconn.
constexpr int kBacklog = 4096;

// A starting pager holds the directory for microseconds; whoever keeps it longer is no pager.
// Arbitrary.
constexpr auto kDirectoryLockDeadline = std::chrono::seconds(2);

enum class Occupant { kNobody, kLiveProcess, kOtherFile, kNotOurs };

sockaddr_un AddressOf(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

UniqueFd MakeSocket() {
  return UniqueFd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

// RETURNS 0 or the errno of connect.
int TryConnect(const UniqueFd& fd, const std::string& path) {
  const sockaddr_un address = AddressOf(path);
  return connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0
             ? 0
             : errno;
}

// Whether the process that listens at the other end of `probe` is dead: for some milliseconds after
// a pager was killed the kernel still takes its io_uring apart, whose polls keep its socket
// listening.
bool ListenerIsDead(const UniqueFd& probe) {
  ucred listener = {};
  socklen_t length = sizeof(listener);
  return getsockopt(probe.get(), SOL_SOCKET, SO_PEERCRED, &listener, &length) == 0 &&
         listener.pid > 0 && kill(listener.pid, 0) != 0 && errno == ESRCH;
}

Occupant WhoHas(const std::string& path) {
  struct stat info = {};
  if (lstat(path.c_str(), &info) != 0) return Occupant::kNobody;
  if (!S_ISSOCK(info.st_mode)) return Occupant::kOtherFile;
  const UniqueFd probe = MakeSocket();
  switch (TryConnect(probe, path)) {
    case ECONNREFUSED:
    case ENOENT:
      return Occupant::kNobody;
    case EACCES:
    case EPERM:
      return Occupant::kNotOurs;
    case 0:
      return ListenerIsDead(probe) ? Occupant::kNobody : Occupant::kLiveProcess;
    default:  // EAGAIN: its queue is full; EPROTOTYPE: a program that speaks another kind of
              // socket
      return Occupant::kLiveProcess;
  }
}

std::optional<Failure> RefuseOccupied(const std::string& path) {
  switch (WhoHas(path)) {
    case Occupant::kNobody:
      return std::nullopt;
    case Occupant::kLiveProcess:
      return MakeFailure(
          ExitStatus::kSocketTaken, path, "a running process serves this socket",
          "use that pager with 'hostmm run --pager', end it, or choose another path");
    case Occupant::kOtherFile:
      return MakeFailure(ExitStatus::kSocketTaken, path, "a file that is no socket is in its place",
                         "remove it or choose another path");
    case Occupant::kNotOurs:
      return MakeFailure(ExitStatus::kNoPermission, path, "another user's socket is in its place",
                         "choose another path");
  }
  return std::nullopt;
}

Failure BindFailure(const std::string& path, int error) {
  switch (error) {
    case EACCES:
    case EPERM:
    case EROFS:
      return MakeFailure(ExitStatus::kNoPermission, path,
                         "this user may not make a socket there: " + ErrnoText(error),
                         "choose a directory that you can write, or run as its owner");
    case ENOENT:
    case ENOTDIR:
      return MakeFailure(ExitStatus::kNoSuchDirectory, path,
                         "the directory does not exist: " + ErrnoText(error), "make it first");
    case EMFILE:
    case ENFILE:
      return MakeFailure(ExitStatus::kLimitTooLow, path,
                         "no descriptor is left: " + ErrnoText(error), "raise 'ulimit -n'");
    default:
      return MakeFailure(ExitStatus::kInternal, path, "bind: " + ErrnoText(error),
                         "choose another path");
  }
}

// RETURNS 0 or the errno of bind.
int BindWithMode(const UniqueFd& fd, const std::string& path, mode_t mode) {
  const sockaddr_un address = AddressOf(path);
  const mode_t old_mask = umask(0777 & ~mode);
  const int result = bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  const int error = result == 0 ? 0 : errno;
  umask(old_mask);
  return error;
}

std::string DirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

OrFailure<UniqueFd> LockDirectoryOf(const std::string& path) {
  UniqueFd directory(open(DirectoryOf(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.ok()) return BindFailure(path, errno);
  const auto deadline = std::chrono::steady_clock::now() + kDirectoryLockDeadline;
  while (flock(directory.get(), LOCK_EX | LOCK_NB) != 0) {
    if (std::chrono::steady_clock::now() > deadline) {
      return MakeFailure(ExitStatus::kSocketTaken, path,
                         "another process holds a lock on its directory",
                         "choose another directory");
    }
    // flock has no deadline of its own; between tries the other pager finishes.
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return directory;
}

}  // namespace

OrFailure<ListeningSocket> ListenAt(const std::string& path, mode_t mode) {
  if (auto failure = CheckSocketPathLength(path)) return *std::move(failure);
  OrFailure<UniqueFd> lock = LockDirectoryOf(path);
  if (const Failure* failure = FailureOf(lock)) return *failure;

  ListeningSocket listening{MakeSocket(), path};
  if (!listening.fd.ok()) return BindFailure(path, errno);
  int error = BindWithMode(listening.fd, path, mode);
  if (error == EADDRINUSE) {
    if (auto failure = RefuseOccupied(path)) return *std::move(failure);
    if (unlink(path.c_str()) != 0 && errno != ENOENT) return BindFailure(path, errno);
    error = BindWithMode(listening.fd, path, mode);
  }
  if (error != 0) return BindFailure(path, error);
  struct stat info = {};
  if (listen(listening.fd.get(), kBacklog) != 0 || stat(path.c_str(), &info) != 0) {
    return BindFailure(path, errno);
  }
  listening.device = info.st_dev;
  listening.inode = info.st_ino;
  return listening;
}

void RemoveSocket(const ListeningSocket& socket) {
  struct stat info = {};
  if (lstat(socket.path.c_str(), &info) != 0) return;
  if (info.st_dev != socket.device || info.st_ino != socket.inode) return;
  unlink(socket.path.c_str());
}

OrFailure<UniqueFd> ConnectToPager(const std::string& path) {
  if (auto failure = CheckSocketPathLength(path)) return *std::move(failure);
  UniqueFd fd = MakeSocket();
  if (!fd.ok()) {
    return MakeFailure(ExitStatus::kInternal, path, "socket: " + ErrnoText(errno), "");
  }
  const int error = TryConnect(fd, path);
  switch (error) {
    case 0:
      return fd;
    case EACCES:
    case EPERM:
      return MakeFailure(ExitStatus::kNoPermission, path, "this user may not use that pager",
                         "ask its owner to start it with a wider --mode, or run as that user");
    case EPROTOTYPE:
      return MakeFailure(ExitStatus::kNoPager, path, "that socket belongs to another program",
                         "give the socket of a 'hostmm pager'");
    case EAGAIN:
      return MakeFailure(ExitStatus::kNoPager, path, "the pager does not answer: its queue is full",
                         "try again; if it stays so, restart the pager");
    default:
      return MakeFailure(ExitStatus::kNoPager, path, "no pager serves there: " + ErrnoText(error),
                         "start one: hostmm pager --socket " + path);
  }
}

}  // namespace hostmm
