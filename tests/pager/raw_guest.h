// tests/pager/raw_guest.h
//
// A guest that speaks the protocol by hand, well or badly: what the preload library does, without
// its manners.
//
// Units:    bytes. Owner: its channel and its userfaultfd; the destructor closes both.
// Processes: it belongs to the process that made it (a userfaultfd does).
// Errors:   nothing, an invalid descriptor or false; every wait for the pager has a deadline.

#ifndef HOSTMM_TESTS_PAGER_RAW_GUEST_H_
#define HOSTMM_TESTS_PAGER_RAW_GUEST_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/packet.h"
#include "runtime/protocol.h"
#include "tests/testing/scoped_fd.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/test_uffd.h"

namespace hostmm::test {

class RawGuest {
 public:
  // Connects; says nothing.
  explicit RawGuest(const std::string& socket_path);
  // Takes over a channel (a forked child's).
  explicit RawGuest(ScopedFd channel) : channel_(std::move(channel)) {}

  int channel() const { return channel_.get(); }
  void Disconnect() { channel_.Close(); }
  const TestUffd& uffd() const { return uffd_; }
  TestUffd* mutable_uffd() { return &uffd_; }

  // Sends `bytes` with `fds`, which stay the caller's. False: not sent (the queue is full, the
  // pager is gone). Never waits.
  bool SendBytes(const void* bytes, size_t size, const std::vector<int>& fds) const;
  bool Send(const protocol::Message& message, const std::vector<int>& fds = {}) const {
    return SendBytes(&message, sizeof(message), fds);
  }
  // As Send, but waits (with a deadline) for room in the queue.
  bool SendPatiently(const protocol::Message& message, const std::vector<int>& fds = {}) const;
  // Sends with a reply socket before `fds`, and waits for the answer.
  std::optional<protocol::Message> Ask(const protocol::Message& message,
                                       const std::vector<int>& fds = {},
                                       ScopedFd* received = nullptr) const;

  // kHello; keeps the terms and the device.
  bool Hello();
  // A userfaultfd on the terms of the pager, or an invalid one.
  TestUffd NewUffd(uint64_t more_features = 0) const;
  // kAttach with `uffd` (invalid: none), which is kept as ours too.
  bool Attach(TestUffd uffd);
  bool Enter() { return Hello() && Attach(NewUffd()); }
  bool native() const { return !device_.valid(); }

  // kCreate, mmap, kMap: a region of the guest, at a multiple of 2 MiB.
  ScopedMapping NewRegion(size_t bytes) const;

  // The end of our channel was closed by the pager, within the deadline.
  bool IsEnded() const;

 private:
  ScopedFd channel_;
  ScopedFd device_;
  TestUffd uffd_;
  uint64_t features_ = 0;
};

// The life of an honest guest in a process of its own: a region, every page of it written and read
// by two threads, a forked child that does the same. True if all of it came out right in time.
bool HonestGuestIsServed(const std::string& socket_path);

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_PAGER_RAW_GUEST_H_
