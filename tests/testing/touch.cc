#include "tests/testing/touch.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "tests/testing/scoped_mapping.h"
#include "tests/testing/smaps.h"

namespace hostmm::test {
namespace {

std::function<void()> Access(char* at, Touch::Kind kind) {
  if (kind == Touch::Kind::kRead) return [at] { ReadByte(at); };
  return [at] { WriteByte(at, 1); };
}

}  // namespace

Touch::Touch(TestUffd* uffd, char* at, Kind kind, std::chrono::milliseconds patience)
    : Touch(uffd, Access(at, kind), patience) {}

Touch::Touch(TestUffd* uffd, std::function<void()> work, std::chrono::milliseconds patience)
    : uffd_(uffd), patience_(patience) {
  thread_ = std::thread([this, work = std::move(work)] {
    const int64_t before = MinorFaultsOfThisThread();
    work();
    minor_faults_ = MinorFaultsOfThisThread() - before;
    done_.store(true, std::memory_order_release);
  });
}

Touch::~Touch() {
  if (StillWaiting() && !Finished(patience_)) {
    uffd_->Close();
    if (!Finished()) {
      fprintf(stderr, "a touch is asleep even though its userfaultfd is closed: giving up\n");
      abort();
    }
  }
  thread_.join();
}

bool Touch::Finished(std::chrono::milliseconds within) const {
  return PollUntil(Deadline(within), [this] { return !StillWaiting(); });
}

}  // namespace hostmm::test
