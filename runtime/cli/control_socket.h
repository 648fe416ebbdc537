// The pager's unix socket as the command line sees it: bind it, find out who has it, connect to it.
//
// Kind:      SOCK_SEQPACKET, named by a path. A path is "taken" while a process listens there,
//            "stale" when its process has gone without removing it (connect is refused, or ends at
//            once); a stale one is replaced.
// Processes: two pagers that start for one path at once are ordered by a flock on the directory,
//            which leaves no file.
// Errors:    kNoSuchDirectory, kSocketTaken, kNoPermission, kNoPager, kPathTooLong; kInternal for
//            what is left.
#ifndef HOSTMM_RUNTIME_CLI_CONTROL_SOCKET_H_
#define HOSTMM_RUNTIME_CLI_CONTROL_SOCKET_H_

#include <sys/types.h>

#include <string>

#include "runtime/cli/failure.h"
#include "runtime/unique_fd.h"

namespace hostmm {

struct ListeningSocket {
  UniqueFd fd;
  std::string path;
  // Which file we made, so that RemoveSocket never removes that of a successor.
  dev_t device = 0;
  ino_t inode = 0;
};

// Binds `path` with permission bits `mode` (no moment with wider ones) and listens. Single-threaded
// callers only: it sets the umask for a moment.
OrFailure<ListeningSocket> ListenAt(const std::string& path, mode_t mode);

// Unlinks the path if it is still the file that ListenAt made.
void RemoveSocket(const ListeningSocket& socket);

// Connects to the pager at `path`, without waiting.
OrFailure<UniqueFd> ConnectToPager(const std::string& path);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_CONTROL_SOCKET_H_
