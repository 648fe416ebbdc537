#include "tests/oracle/operation.h"

#include <cinttypes>
#include <csignal>
#include <cstdio>
#include <cstring>

namespace hostmm::oracle {
namespace {

std::string Happened(const Observation& seen) {
  switch (seen.outcome) {
    case Outcome::kOk:
      return "ok";
    case Outcome::kErrno:
      return strerrorname_np(seen.number) != nullptr ? strerrorname_np(seen.number)
                                                     : std::to_string(seen.number);
    case Outcome::kSignal:
      return std::string("SIG") + sigabbrev_np(seen.number) + " code " + std::to_string(seen.code);
    case Outcome::kSkipped:
      return "skipped";
    case Outcome::kDied:
      return "the process died";
    case Outcome::kHung:
      return "the process hangs";
  }
  return "?";
}

std::string Stamped(const Observation& seen) {
  switch (seen.stamp) {
    case StampState::kNone:
      return "";
    case StampState::kZero:
      return ", a page of zeros";
    case StampState::kGood:
      return ", written by " + std::to_string(seen.writer) + " as operation " +
             std::to_string(seen.sequence);
    case StampState::kOther:
      return ", no whole stamp";
  }
  return "?";
}

}  // namespace

std::string ToText(const Observation& seen) {
  char numbers[80];
  snprintf(numbers, sizeof(numbers), ", place %" PRId64 ", value %016" PRIx64, seen.place,
           seen.value);
  return Happened(seen) + Stamped(seen) + numbers;
}

}  // namespace hostmm::oracle
