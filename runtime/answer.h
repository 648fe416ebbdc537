// Answers to what a guest asks (protocol.h).
#ifndef HOSTMM_RUNTIME_ANSWER_H_
#define HOSTMM_RUNTIME_ANSWER_H_

#include <cstring>

#include "runtime/packet.h"
#include "vmm/host_tables.h"

namespace hostmm {

inline protocol::Message Answer(protocol::Status status, const char* why = "") {
  protocol::Message answer = NewPacket(protocol::Kind::kReply);
  answer.status = status;
  strncpy(answer.text, why, sizeof(answer.text) - 1);
  return answer;
}

inline protocol::Message Answer(TableStatus status) {
  switch (status) {
    case TableStatus::kOk:
      return Answer(protocol::Status::kOk);
    case TableStatus::kNoSpace:
      return Answer(protocol::Status::kFull,
                    "the pager's tables are full; start it anew with fewer guests");
    default:
      return Answer(protocol::Status::kRefused, "the pager refused the range");
  }
}

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_ANSWER_H_
