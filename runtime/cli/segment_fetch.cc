#include "runtime/cli/segment_fetch.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "runtime/cli/control_socket.h"
#include "runtime/packet.h"
#include "runtime/protocol.h"

namespace hostmm {
namespace {

// The pager answers from its loop at once; a machine that swaps gets this long.
constexpr int kReplyDeadlineMs = 10000;

constexpr std::string_view kOneBuild = "use the hostmm that the pager was started with";

Failure Broken(const std::string& path, std::string_view why) {
  return MakeFailure(ExitStatus::kNoPager, path, why, "check that a 'hostmm pager' serves there");
}

Failure OtherBuild(const std::string& path, std::string_view how) {
  return MakeFailure(ExitStatus::kVersionMismatch, path,
                     "the pager is of another build than this hostmm: " + std::string(how),
                     kOneBuild);
}

OrFailure<FetchedSegment> ReadAnswer(const UniqueFd& answers, const std::string& path) {
  Packet packet;
  switch (ReceivePacket(answers.get(), &packet)) {
    case ReceiveResult::kPacket:
      break;
    case ReceiveResult::kMalformed:
      return OtherBuild(path, "its answer has another form");
    case ReceiveResult::kNothing:
    case ReceiveResult::kClosed:
      return Broken(path, "it closed the connection without an answer");
  }
  const protocol::Message& message = packet.message;
  if (message.magic != protocol::kMagic) return OtherBuild(path, "its answer has another form");
  if (message.version != protocol::kVersion || message.status == protocol::Status::kVersion) {
    return OtherBuild(path, "protocol " + std::to_string(message.version) + ", not " +
                                std::to_string(protocol::kVersion));
  }
  const std::string_view text(message.text, strnlen(message.text, sizeof(message.text)));
  if (message.status != protocol::Status::kOk) {
    return MakeFailure(ExitStatus::kNoPermission, path,
                       "the pager refuses: " + (text.empty() ? "no reason" : std::string(text)),
                       "ask as the pager's own user, or as root");
  }
  if (packet.fd_count < 1 || !packet.fds[0].ok()) {
    return Broken(path, "its answer has no segment in it");
  }
  FetchedSegment fetched;
  fetched.fd = std::move(packet.fds[0]);
  fetched.opt_in = {message.va, message.length, message.offset, message.value[0]};
  return fetched;
}

Failure AttachFailure(const std::string& name, AttachStatus status) {
  if (status == AttachStatus::kBadVersion) {
    return MakeFailure(ExitStatus::kVersionMismatch, name, "the segment is of another version",
                       kOneBuild);
  }
  std::string_view why = "the segment is damaged";
  if (status == AttachStatus::kTooSmall) why = "the segment is too small";
  if (status == AttachStatus::kBadMagic) why = "that is no segment of hostmm";
  if (status == AttachStatus::kBadGeometry)
    why = "the segment has a geometry that is not known here";
  return MakeFailure(ExitStatus::kBadSegment, name, why, kOneBuild);
}

}  // namespace

OrFailure<FetchedSegment> FetchSegment(const std::string& socket_path) {
  OrFailure<UniqueFd> connected = ConnectToPager(socket_path);
  if (const Failure* failure = FailureOf(connected)) return *failure;
  const UniqueFd& channel = std::get<UniqueFd>(connected);
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    return MakeFailure(ExitStatus::kLimitTooLow, "socketpair", ErrnoText(errno),
                       "raise 'ulimit -n'");
  }
  const UniqueFd answers(ends[0]);
  UniqueFd far_end(ends[1]);
  protocol::Message question = NewPacket(protocol::Kind::kInspect);
  std::strncpy(question.text, "hostmm", sizeof(question.text) - 1);
  if (SendPacket(channel.get(), question, far_end.get()) != SendResult::kSent) {
    return Broken(socket_path, "the pager does not take the question");
  }
  far_end.reset();  // so that a pager that drops the question shows as end of file
  pollfd wait = {answers.get(), POLLIN, 0};
  if (poll(&wait, 1, kReplyDeadlineMs) != 1) {
    return Broken(socket_path, "the pager does not answer");
  }
  return ReadAnswer(answers, socket_path);
}

OrFailure<OpenSegment> MapSegment(const UniqueFd& segment, const std::string& name) {
  struct stat info = {};
  if (fstat(segment.get(), &info) != 0 || info.st_size <= 0) {
    return AttachFailure(name, AttachStatus::kTooSmall);
  }
  const size_t bytes = static_cast<size_t>(info.st_size);
  OpenSegment open;
  open.mapping = Mapping(mmap(nullptr, bytes, PROT_READ, MAP_SHARED, segment.get(), 0), bytes);
  if (!open.mapping.ok()) {
    return MakeFailure(ExitStatus::kLimitTooLow, name, "mmap: " + ErrnoText(errno),
                       "raise 'ulimit -v'");
  }
  const AttachStatus status = TableReader::Attach(open.mapping.bytes(), &open.reader);
  if (status != AttachStatus::kOk) return AttachFailure(name, status);
  return open;
}

OrFailure<OpenSegment> OpenSegmentOf(const std::string& socket_path) {
  OrFailure<FetchedSegment> fetched = FetchSegment(socket_path);
  if (const Failure* failure = FailureOf(fetched)) return *failure;
  const FetchedSegment& segment = std::get<FetchedSegment>(fetched);
  OrFailure<OpenSegment> open = MapSegment(segment.fd, socket_path);
  if (FailureOf(open) == nullptr) std::get<OpenSegment>(open).opt_in = segment.opt_in;
  return open;
}

}  // namespace hostmm
