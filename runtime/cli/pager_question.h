// One question to a running pager, and its answer, for the tools.
//
// Flow:    tool  question (+ reply socket, descriptors)  ->  pager, or the handle of a snapshot
//                kReply (+ descriptors)                  <-
// Errors:  kNoPager (silent, gone), kVersionMismatch, kLimitTooLow. What the pager refuses is an
//          answer: its status says so, ErrnoOf and TextOf why.
#ifndef HOSTMM_RUNTIME_CLI_PAGER_QUESTION_H_
#define HOSTMM_RUNTIME_CLI_PAGER_QUESTION_H_

#include <span>
#include <string>

#include "runtime/cli/failure.h"
#include "runtime/packet.h"
#include "runtime/protocol.h"
#include "runtime/unique_fd.h"

namespace hostmm {

// The pager answers from its loop at once; a machine that swaps gets this long.
inline constexpr int kReplyDeadlineMs = 10000;

// Sends `question` with `fds` behind the reply socket, which has room for kMaxFds - 1 of them.
// `pager` is for messages. RETURNS where the answer comes: a socket that ends if none will.
OrFailure<UniqueFd> SendQuestion(const UniqueFd& to, const std::string& pager,
                                 const protocol::Message& question, std::span<const int> fds = {});
// Reads the answer that is there, or the end.
OrFailure<Packet> ReadAnswer(const UniqueFd& answers, const std::string& pager);

// Both, with a wait of `deadline_ms` between them.
OrFailure<Packet> AskPager(const UniqueFd& to, const std::string& pager,
                           const protocol::Message& question, int deadline_ms = kReplyDeadlineMs);

// A question with a text. REQUIRES: it fits (protocol::Message::text).
protocol::Message QuestionWithText(protocol::Kind kind, std::string_view text);

// Why an answer is a refusal. ErrnoOf is 0 if it is none, or if the pager gave no number.
int ErrnoOf(const Packet& answer);
std::string TextOf(const Packet& answer);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_PAGER_QUESTION_H_
