#include "runtime/cli/pager_question.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

namespace hostmm {
namespace {

Failure Broken(const std::string& path, std::string_view why) {
  return MakeFailure(ExitStatus::kNoPager, path, why, "check that a 'hostmm pager' serves there");
}

Failure OtherBuild(const std::string& path, std::string_view how) {
  return MakeFailure(ExitStatus::kVersionMismatch, path,
                     "the pager is of another build than this hostmm: " + std::string(how),
                     "use the hostmm that the pager was started with");
}

}  // namespace

OrFailure<UniqueFd> SendQuestion(const UniqueFd& to, const std::string& pager,
                                 const protocol::Message& question, std::span<const int> fds) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    return MakeFailure(ExitStatus::kLimitTooLow, "socketpair", ErrnoText(errno),
                       "raise 'ulimit -n'");
  }
  UniqueFd answers(ends[0]);
  const UniqueFd far_end(ends[1]);  // closed here, so that a question that is dropped ends it
  std::vector<int> all = {far_end.get()};
  all.insert(all.end(), fds.begin(), fds.end());
  if (SendPacket(to.get(), question, all) != SendResult::kSent) {
    return Broken(pager, "the pager does not take the question");
  }
  return answers;
}

OrFailure<Packet> ReadAnswer(const UniqueFd& answers, const std::string& pager) {
  Packet packet;
  switch (ReceivePacket(answers.get(), &packet)) {
    case ReceiveResult::kPacket:
      break;
    case ReceiveResult::kMalformed:
      return OtherBuild(pager, "its answer has another form");
    case ReceiveResult::kNothing:
    case ReceiveResult::kClosed:
      return Broken(pager, "it closed the connection without an answer");
  }
  const protocol::Message& message = packet.message;
  if (message.version != protocol::kVersion || message.status == protocol::Status::kVersion) {
    return OtherBuild(pager, "protocol " + std::to_string(message.version) + ", not " +
                                 std::to_string(protocol::kVersion));
  }
  return packet;
}

OrFailure<Packet> AskPager(const UniqueFd& to, const std::string& pager,
                           const protocol::Message& question, int deadline_ms) {
  OrFailure<UniqueFd> sent = SendQuestion(to, pager, question);
  if (const Failure* failure = FailureOf(sent)) return *failure;
  const UniqueFd& answers = std::get<UniqueFd>(sent);
  pollfd wait = {answers.get(), POLLIN, 0};
  if (poll(&wait, 1, deadline_ms) != 1) return Broken(pager, "the pager does not answer");
  return ReadAnswer(answers, pager);
}

protocol::Message QuestionWithText(protocol::Kind kind, std::string_view text) {
  protocol::Message question = NewPacket(kind);
  text.copy(question.text, sizeof(question.text) - 1);
  return question;
}

int ErrnoOf(const Packet& answer) {
  if (answer.message.status == protocol::Status::kOk) return 0;
  return static_cast<int>(answer.message.value[1]);
}

std::string TextOf(const Packet& answer) {
  const char* text = answer.message.text;
  return OneLine(std::string_view(text, strnlen(text, sizeof(answer.message.text))));
}

}  // namespace hostmm
