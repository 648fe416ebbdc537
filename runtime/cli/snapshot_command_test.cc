#include "runtime/cli/snapshot_command.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/cli/testing_dir.h"
#include "runtime/image/image_format.h"
#include "runtime/packet.h"
#include "runtime/protocol.h"
#include "runtime/unique_fd.h"

namespace hostmm {
namespace {

using protocol::Kind;
using protocol::Message;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// What a pager would say, from a thread of the test: one connection after the other, one handle for
// all. `on_export` writes the image.
class ScriptedPager {
 public:
  explicit ScriptedPager(const std::string& path)
      : listener_(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    EXPECT_EQ(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(listener_.get(), 8), 0);
  }
  ~ScriptedPager() { Stop(); }
  void Start() {
    thread_ = std::thread([this] { Serve(); });
  }

  void Stop() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
  }

  // Set before Start.
  std::function<Message(const std::string& text)> on_snapshot_of = [](const std::string&) {
    return NewPacket(Kind::kReply);
  };
  std::function<Message(const std::string& text)> on_drop = on_snapshot_of;
  std::function<Message(const std::string& text)> on_keep = on_snapshot_of;
  // Asked of the handles of base and snapshot alike.
  std::function<Message()> on_info = [] { return NewPacket(Kind::kReply); };
  std::function<Message(const Packet& ask)> on_export = [](const Packet& ask) {
    EXPECT_EQ(pwrite(ask.fds[1].get(), "image", 5, static_cast<off_t>(ask.message.offset)), 5);
    Message answer = NewPacket(Kind::kReply);
    answer.length = 5;
    return answer;
  };
  std::vector<std::string> asked;  // look after Stop

 private:
  void Serve() {
    while (!stop_) {
      std::vector<pollfd> waits = {{listener_.get(), POLLIN, 0}};
      for (const UniqueFd& fd : sockets_) waits.push_back({fd.get(), POLLIN, 0});
      if (poll(waits.data(), waits.size(), 20) <= 0) continue;
      if (waits[0].revents != 0) {
        sockets_.emplace_back(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
        continue;
      }
      for (size_t i = waits.size(); i-- > 1;) {
        if (waits[i].revents == 0) continue;
        Packet packet;
        if (ReceivePacket(waits[i].fd, &packet) == ReceiveResult::kPacket) {
          Answer(packet);
        } else {
          sockets_.erase(sockets_.begin() + static_cast<ptrdiff_t>(i) - 1);
        }
      }
    }
  }
  void Answer(Packet& ask) {
    const std::string text = ask.message.text;
    const int reply = ask.fds[0].get();
    switch (ask.message.kind) {
      case Kind::kSnapshotOf: {
        asked.push_back("of " + text);
        const Message answer = on_snapshot_of(text);
        if (answer.status != protocol::Status::kOk) {
          SendPacket(reply, answer);
          return;
        }
        int ends[2];
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
        sockets_.emplace_back(ends[0]);
        const UniqueFd handle(ends[1]);
        SendPacket(reply, answer, handle.get());
        return;
      }
      case Kind::kKeep:
        asked.push_back("keep " + text);
        SendPacket(reply, on_keep(text));
        return;
      case Kind::kDropKept:
        asked.push_back("drop " + text);
        SendPacket(reply, on_drop(text));
        return;
      case Kind::kSnapshotInfo:
        asked.push_back("info");
        SendPacket(reply, on_info());
        return;
      default:
        asked.push_back("export of " + std::to_string(ask.fd_count) + " at " +
                        std::to_string(ask.message.offset) + " after " +
                        std::to_string(ask.message.value[0]));
        SendPacket(reply, on_export(ask));
    }
  }

  const UniqueFd listener_;
  std::vector<UniqueFd> sockets_;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

Message Refusal(int error, const std::string& why) {
  Message message = NewPacket(Kind::kReply);
  message.status = protocol::Status::kFailed;
  message.value[1] = static_cast<uint64_t>(error);
  why.copy(message.text, sizeof(message.text) - 1);
  return message;
}

class SnapshotCommandTest : public ::testing::Test {
 protected:
  SnapshotOptions Options(const std::string& region = "buffers") const {
    SnapshotOptions options;
    options.socket_path = dir_.Under("pager");
    options.region = region;
    options.file = dir_.Under("image");
    return options;
  }
  int Run(const SnapshotOptions& options) {
    pager_->Start();
    testing::internal::CaptureStderr();
    const int status = RunSnapshot(options);
    err_ = testing::internal::GetCapturedStderr();
    pager_->Stop();
    return status;
  }
  std::string Image() const {
    std::ifstream file(dir_.Under("image"), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  bool ImageExists() const { return access(dir_.Under("image").c_str(), F_OK) == 0; }

  const TestingDir dir_;
  std::unique_ptr<ScriptedPager> pager_ = std::make_unique<ScriptedPager>(dir_.Under("pager"));
  std::string err_;
};

TEST_F(SnapshotCommandTest, AsksAndWritesAndSaysSo) {
  EXPECT_EQ(Run(Options()), 0) << err_;
  EXPECT_EQ(Image(), "image");
  EXPECT_THAT(err_, HasSubstr("hostmm: buffers: 0 KiB in "));
  // Reply, image and progress.
  EXPECT_THAT(pager_->asked, ElementsAre("of buffers", "export of 3 at 0 after 0"));
  struct stat info;
  ASSERT_EQ(stat(dir_.Under("image").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(SnapshotCommandTest, QuietSaysNothing) {
  SnapshotOptions options = Options();
  options.verbosity = Verbosity::kQuiet;
  EXPECT_EQ(Run(options), 0);
  EXPECT_EQ(err_, "");
}

// The base first, so that nothing is frozen for a base that is missing; the name before the image,
// so that an image that is cut off can be gone on with.
TEST_F(SnapshotCommandTest, BaseThenSnapshotThenNameThenImage) {
  SnapshotOptions options = Options();
  options.earlier = "mon";
  options.keep = "tue";
  EXPECT_EQ(Run(options), 0) << err_;
  EXPECT_THAT(pager_->asked,
              ElementsAre("of @mon", "of buffers", "keep tue", "export of 4 at 0 after 0"));
}

TEST_F(SnapshotCommandTest, DropsAKeptSnapshot) {
  SnapshotOptions options = Options("");
  options.drop = "mon";
  EXPECT_EQ(Run(options), 0);
  EXPECT_THAT(pager_->asked, ElementsAre("drop mon"));
}

TEST_F(SnapshotCommandTest, DroppingWhatIsNotKeptIsToldSo) {
  SnapshotOptions options = Options("");
  options.drop = "mon";
  pager_->on_drop = [](const std::string&) { return Refusal(ENOENT, "no snapshot of that name"); };
  EXPECT_EQ(Run(options), ToInt(ExitStatus::kNoSuchRegion));
  EXPECT_THAT(err_, HasSubstr("hostmm: @mon: no snapshot of that name; "));
}

TEST_F(SnapshotCommandTest, ResumeSaysHowMuchIsThereAndCutsTheRest) {
  dir_.Write("image", "imag, and what a killed writer left");
  SnapshotOptions options = Options("@tue");
  options.begin = SnapshotOptions::Begin::kResume;
  EXPECT_EQ(Run(options), 0) << err_;
  EXPECT_THAT(pager_->asked, ElementsAre("of @tue", "export of 3 at 0 after 35"));
  EXPECT_EQ(Image(), "image");
}

struct Refused {
  int error;
  ExitStatus status;
  std::string remedy;
};

TEST_F(SnapshotCommandTest, EachRefusalHasItsStatusAndOneLine) {
  for (const Refused& refused : {Refused{ENOENT, ExitStatus::kNoSuchRegion, "hostmm dump"},
                                 Refused{EACCES, ExitStatus::kNoPermission, "owner"},
                                 Refused{ENOTSUP, ExitStatus::kSnapshotFailed, "because"},
                                 Refused{ETIMEDOUT, ExitStatus::kSnapshotFailed, "because"}}) {
    pager_ = nullptr;
    unlink(dir_.Under("pager").c_str());
    pager_ = std::make_unique<ScriptedPager>(dir_.Under("pager"));
    pager_->on_snapshot_of = [&](const std::string&) { return Refusal(refused.error, "because"); };
    EXPECT_EQ(Run(Options()), ToInt(refused.status));
    EXPECT_THAT(err_, HasSubstr("hostmm: buffers: because"));
    EXPECT_THAT(err_, HasSubstr(refused.remedy));
    EXPECT_EQ(std::count(err_.begin(), err_.end(), '\n'), 1) << err_;
    EXPECT_FALSE(ImageExists()) << "an empty file was left behind";
  }
}

TEST_F(SnapshotCommandTest, ANameThatIsTakenIsFoundBeforeAnythingIsWritten) {
  SnapshotOptions options = Options();
  options.keep = "mon";
  pager_->on_keep = [](const std::string&) { return Refusal(EEXIST, "a snapshot has that name"); };
  EXPECT_EQ(Run(options), ToInt(ExitStatus::kUsage));
  EXPECT_THAT(err_, HasSubstr("--drop"));
  EXPECT_THAT(pager_->asked, ElementsAre("of buffers", "keep mon"));
  EXPECT_FALSE(ImageExists());
}

TEST_F(SnapshotCommandTest, AnImageThatIsCutOffStaysAndSaysHowToGoOn) {
  SnapshotOptions options = Options();
  options.keep = "mon";
  options.earlier = "sun";
  pager_->on_export = [](const Packet& ask) {
    EXPECT_EQ(write(ask.fds[1].get(), "ima", 3), 3);
    return Refusal(ENOSPC, "the image cannot be written: No space left on device");
  };
  EXPECT_EQ(Run(options), ToInt(ExitStatus::kImageNotWritten));
  EXPECT_THAT(err_, HasSubstr("No space left on device; go on with: hostmm snapshot @mon " +
                              options.file + " --resume --incremental-from sun\n"));
  EXPECT_EQ(Image(), "ima");
}

TEST_F(SnapshotCommandTest, ALostSnapshotIsNoFaultOfTheFile) {
  pager_->on_export = [](const Packet&) { return Refusal(EIO, "out of frames"); };
  pager_->on_info = [] { return Refusal(EIO, "out of frames"); };
  EXPECT_EQ(Run(Options()), ToInt(ExitStatus::kSnapshotFailed));
  EXPECT_THAT(err_, HasSubstr("buffers: the snapshot is lost: out of frames; take another one"));
}

TEST_F(SnapshotCommandTest, ALostSnapshotThatIsKeptIsToBeDroppedFirst) {
  SnapshotOptions options = Options();
  options.keep = "mon";
  pager_->on_export = [](const Packet&) { return Refusal(EIO, "out of frames"); };
  pager_->on_info = [] { return Refusal(EIO, "out of frames"); };
  EXPECT_EQ(Run(options), ToInt(ExitStatus::kSnapshotFailed));
  EXPECT_THAT(err_, HasSubstr("; 'hostmm snapshot --drop mon', and take another one"));
}

// The same errno, while the pager says that the snapshot is whole.
TEST_F(SnapshotCommandTest, ADiskThatFailsIsNoLossOfTheSnapshot) {
  SnapshotOptions options = Options();
  pager_->on_export = [](const Packet& ask) {
    EXPECT_EQ(write(ask.fds[1].get(), "ima", 3), 3);
    return Refusal(EIO, "the image cannot be written: Input/output error");
  };
  EXPECT_EQ(Run(options), ToInt(ExitStatus::kImageNotWritten));
  EXPECT_THAT(err_, HasSubstr("hostmm: " + options.file +
                              ": the image cannot be written: Input/output error; look after the "
                              "disk, and do it again\n"));
  EXPECT_THAT(pager_->asked, ElementsAre("of buffers", "export of 3 at 0 after 0", "info"));
}

TEST_F(SnapshotCommandTest, ADiskThatFailsUnderAKeptSnapshotCanBeGoneOnWith) {
  SnapshotOptions options = Options();
  options.keep = "mon";
  pager_->on_export = [](const Packet& ask) {
    EXPECT_EQ(write(ask.fds[1].get(), "ima", 3), 3);
    return Refusal(EIO, "nothing of the image could be written");
  };
  EXPECT_EQ(Run(options), ToInt(ExitStatus::kImageNotWritten));
  EXPECT_THAT(err_, HasSubstr("; look after the disk, then go on with: hostmm snapshot @mon " +
                              options.file + " --resume\n"));
}

TEST_F(SnapshotCommandTest, ABaseThatIsNotEarlierIsNoFaultOfTheFile) {
  SnapshotOptions options = Options();
  options.earlier = "mon";
  const std::string why = "the base is not an earlier snapshot of the same region";
  pager_->on_export = [&](const Packet&) { return Refusal(EINVAL, why); };
  EXPECT_EQ(Run(options), ToInt(ExitStatus::kUsage));
  EXPECT_THAT(err_, HasSubstr("hostmm: --incremental-from=mon: " + why +
                              "; name one that is, or leave it out: hostmm snapshot buffers " +
                              options.file + "\n"));
  EXPECT_FALSE(ImageExists());
}

// With REGION in it a second snapshot would be taken, while the first one has the name.
TEST_F(SnapshotCommandTest, WhatWasKeptBeforeTheBaseWasRefusedIsInTheRemedy) {
  SnapshotOptions options = Options();
  options.earlier = "mon";
  options.keep = "tue";
  pager_->on_export = [](const Packet&) { return Refusal(EINVAL, "the base is not earlier"); };
  EXPECT_EQ(Run(options), ToInt(ExitStatus::kUsage));
  EXPECT_THAT(err_, HasSubstr("leave it out: hostmm snapshot @tue " + options.file + "\n"));
}

TEST_F(SnapshotCommandTest, ABaseThatIsLostIsToldSo) {
  SnapshotOptions options = Options();
  options.earlier = "mon";
  pager_->on_export = [](const Packet&) { return Refusal(EINVAL, "the base is not earlier"); };
  pager_->on_info = [] { return Refusal(EIO, "out of frames"); };
  EXPECT_EQ(Run(options), ToInt(ExitStatus::kSnapshotFailed));
  EXPECT_THAT(err_, HasSubstr("hostmm: @mon: the snapshot is lost: out of frames; "
                              "'hostmm snapshot --drop mon', and take another one\n"));
}

TEST_F(SnapshotCommandTest, AFileThatIsNoImageOfTheSnapshotIsABadImage) {
  dir_.Write("image", "something else");
  SnapshotOptions options = Options("@mon");
  options.begin = SnapshotOptions::Begin::kResume;
  options.earlier = "sun";
  pager_->on_export = [](const Packet&) {
    return Refusal(EINVAL, "the file is no image of this snapshot");
  };
  EXPECT_EQ(Run(options), ToInt(ExitStatus::kBadImage));
  EXPECT_THAT(err_, HasSubstr("hostmm: " + options.file + ": the file is no image of this "));
  EXPECT_EQ(Image(), "something else");
}

// A file system that does not take the write as it is: there is no image yet that could be bad.
TEST_F(SnapshotCommandTest, AWriteThatIsInvalidIsNoBadImage) {
  pager_->on_export = [](const Packet&) {
    return Refusal(EINVAL, "the image cannot be written: Invalid argument");
  };
  EXPECT_EQ(Run(Options()), ToInt(ExitStatus::kImageNotWritten));
}

TEST_F(SnapshotCommandTest, APagerThatGoesMidwayIsToldSo) {
  pager_->on_export = [](const Packet& ask) {
    shutdown(ask.fds[0].get(), SHUT_RDWR);  // as the kernel does when its process ends
    return NewPacket(Kind::kReply);
  };
  EXPECT_EQ(Run(Options()), ToInt(ExitStatus::kNoPager));
  EXPECT_THAT(err_, HasSubstr("without an answer"));
}

TEST_F(SnapshotCommandTest, ExistingFilesAreLeftAlone) {
  dir_.Write("image", "precious");
  EXPECT_EQ(Run(Options()), ToInt(ExitStatus::kImageNotWritten));
  EXPECT_THAT(err_, HasSubstr("exists already"));
  EXPECT_EQ(Image(), "precious");
  EXPECT_THAT(pager_->asked, ElementsAre());
}

TEST_F(SnapshotCommandTest, FilesThatCannotBe) {
  pager_->Start();
  SnapshotOptions options = Options();
  for (const std::string& file : {dir_.path(), dir_.Under("no/such"), std::string("/proc/x")}) {
    options.file = file;
    testing::internal::CaptureStderr();
    EXPECT_EQ(RunSnapshot(options), ToInt(ExitStatus::kImageNotWritten));
    EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("hostmm: " + file + ": "));
  }
  pager_->Stop();
  EXPECT_THAT(pager_->asked, ElementsAre());
}

}  // namespace
}  // namespace hostmm
