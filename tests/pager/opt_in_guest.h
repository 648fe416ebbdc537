// tests/pager/opt_in_guest.h
//
// A process that maps opt-in memory by hand: a RawGuest with an agent thread that does what stands
// on the board, as the preload library would, in plain C++.
//
// Processes: it belongs to the process that made it. Threads: Ask and Protect on the caller's; the
//            agent on its own, which ends when the channel does.
// Errors:    nothing or false; waits have deadlines.

#ifndef HOSTMM_TESTS_PAGER_OPT_IN_GUEST_H_
#define HOSTMM_TESTS_PAGER_OPT_IN_GUEST_H_

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "runtime/board.h"
#include "runtime/mapping.h"
#include "tests/pager/raw_guest.h"

namespace hostmm::test {

class OptInGuest {
 public:
  // How it behaves when it finds an order.
  enum class Manner { kHonest, kDeaf };

  OptInGuest(const std::string& socket_path, Manner manner);
  ~OptInGuest();
  OptInGuest(const OptInGuest&) = delete;
  OptInGuest& operator=(const OptInGuest&) = delete;

  bool ok() const { return ok_; }
  const RawGuest& raw() const { return guest_; }

  // Sends with a reply socket and waits; counts the packet.
  std::optional<protocol::Message> Ask(const protocol::Message& message,
                                       const std::vector<int>& fds = {},
                                       ScopedFd* received = nullptr);
  // Maps all of `file` opt-in. One region for each guest.
  bool Map(int file, size_t bytes, int prot);
  // mprotect for all, by offset. RETURNS an errno, or 0; -1: no answer.
  int Protect(uint64_t offset, uint64_t bytes, int prot);
  char* data() const { return reinterpret_cast<char*>(region_.data()); }
  uint64_t carried_out() const { return carried_out_; }
  // How often its agent was, by a packet or the bell.
  uint64_t woken() const { return woken_; }

 private:
  void Run();
  void Watch(int* fds, uint32_t slot);
  void Look();

  RawGuest guest_;
  const Manner manner_;
  bool ok_ = false;
  std::mutex lock_;  // the guest's lock: packets, the region, the board
  uint32_t packets_ = 0;
  Mapping region_;
  protocol::MmHandle mm_ = {};
  ScopedFd orders_;
  ScopedFd bell_;
  Mapping acks_;
  uint32_t slot_ = 0;
  uint64_t last_ = 0;
  std::atomic<uint64_t> carried_out_ = 0;
  std::atomic<uint64_t> woken_ = 0;
  ScopedFd epoll_;
  ScopedFd stop_;
  std::thread agent_;
};

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_PAGER_OPT_IN_GUEST_H_
