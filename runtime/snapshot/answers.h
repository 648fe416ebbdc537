// Answers to questions about snapshots.
#ifndef HOSTMM_RUNTIME_SNAPSHOT_ANSWERS_H_
#define HOSTMM_RUNTIME_SNAPSHOT_ANSWERS_H_

#include <cstring>
#include <string>
#include <string_view>

#include "runtime/packet.h"

namespace hostmm {

// `reply` may be -1: nobody waits.
inline void SayRefused(int reply, int error, std::string_view why) {
  if (reply < 0) return;
  protocol::Message answer = NewPacket(protocol::Kind::kReply);
  answer.status = protocol::Status::kFailed;
  answer.value[1] = static_cast<uint64_t>(error);
  why.copy(answer.text, sizeof(answer.text) - 1);
  SendPacket(reply, answer);
}

inline void Refuse(const Packet& packet, int error, std::string_view why) {
  SayRefused(packet.fds[0].get(), error, why);
}

inline void SayDone(const Packet& packet) {
  if (packet.fds[0].ok()) SendPacket(packet.fds[0].get(), NewPacket(protocol::Kind::kReply));
}

inline std::string TextOf(const protocol::Message& message) {
  return std::string(message.text, strnlen(message.text, sizeof(message.text)));
}

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_SNAPSHOT_ANSWERS_H_
