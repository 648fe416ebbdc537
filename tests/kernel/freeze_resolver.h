// tests/kernel/freeze_resolver.h
//
// The pager's part while a mapping is frozen, in a thread: reads are continued write-protected, the
// first write of a unit saves the unit as it was and then lets the writer go on.
//
// Units:    a unit is 4 KiB, on hugetlb 2 MiB; its index counts from the start of the region.
// Threads:  one of its own, from the constructor to Stop. The results are for after Stop.
// Owner:    borrows the userfaultfd and both mappings; nobody else may read events meanwhile.
// Errors:   the first event that it cannot answer ends it, and error() says which; who waits then
//           waits until the userfaultfd is closed.

#ifndef HOSTMM_TESTS_KERNEL_FREEZE_RESOLVER_H_
#define HOSTMM_TESTS_KERNEL_FREEZE_RESOLVER_H_

#include <cstddef>
#include <map>
#include <string>
#include <thread>

#include "tests/testing/scoped_fd.h"
#include "tests/testing/test_uffd.h"

namespace hostmm::test {

class FreezeResolver {
 public:
  struct Region {
    char* guest;
    const char* pager;  // another mapping of the same frames, not registered
    size_t bytes;
    size_t unit;
  };

  FreezeResolver(const TestUffd* uffd, const Region& region);
  ~FreezeResolver() { Stop(); }
  FreezeResolver(const FreezeResolver&) = delete;
  FreezeResolver& operator=(const FreezeResolver&) = delete;

  void Stop();

  // Unit index -> what it held before its first write.
  const std::map<size_t, std::string>& preimages() const { return preimages_; }
  size_t read_events() const { return read_events_; }
  size_t write_events() const { return write_events_; }
  const std::string& error() const { return error_; }

 private:
  void Run();
  int Answer(const SeenFault& fault);

  const TestUffd* uffd_;
  const Region region_;
  std::map<size_t, std::string> preimages_;
  size_t read_events_ = 0;
  size_t write_events_ = 0;
  std::string error_;
  ScopedFd stop_;  // eventfd
  std::thread thread_;
};

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_KERNEL_FREEZE_RESOLVER_H_
