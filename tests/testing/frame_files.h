// tests/testing/frame_files.h
//
// The files whose pages serve as frames: a file on a detached huge=within_size tmpfs, a memfd, a
// hugetlb memfd.
//
// Units:    bytes; a file has the size asked for and no pages.
// Owner:    the caller owns the descriptor; the file has no name and dies with its last descriptor
//           or mapping.
// Errors:   an invalid ScopedFd with errno of the system call that refused.

#ifndef HOSTMM_TESTS_TESTING_FRAME_FILES_H_
#define HOSTMM_TESTS_TESTING_FRAME_FILES_H_

#include <cstddef>
#include <string>

#include "tests/testing/scoped_fd.h"

namespace hostmm::test {

// What is asked of a tmpfs; an empty string leaves the kernel's default.
struct TmpfsOptions {
  std::string huge = "within_size";
  std::string size = "0";       // "0": no limit
  std::string nr_inodes = "0";  // "0": no limit
};

// A tmpfs that is mounted nowhere: only the returned descriptor reaches it.
ScopedFd MountDetachedTmpfs(const TmpfsOptions& options);

// The same from an unprivileged process: a short-lived child with a user namespace of its own
// makes the mount; the descriptor arrives here because the child shares our descriptor table.
// RETURNS: invalid, with errno, if the kernel forbids user namespaces or one of the steps.
ScopedFd MountDetachedTmpfsInUserNamespace(const TmpfsOptions& options);

// An unnamed file of `bytes` on the tmpfs behind `mount_fd`.
ScopedFd UnnamedFileOn(int mount_fd, size_t bytes);

// An unnamed file on a fresh detached tmpfs with `options`, made with whatever privilege there is.
ScopedFd HugeTmpfsFile(size_t bytes, const TmpfsOptions& options = {});

ScopedFd MemfdFile(size_t bytes);

// 2 MiB hugetlb pages. Pages are taken from the pool at first touch, not here.
ScopedFd HugetlbFile(size_t bytes);

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_TESTING_FRAME_FILES_H_
