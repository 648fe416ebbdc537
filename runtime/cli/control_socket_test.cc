#include "runtime/cli/control_socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/cli/testing_dir.h"

namespace hostmm {
namespace {

using ::testing::HasSubstr;

ExitStatus StatusOf(const OrFailure<ListeningSocket>& result) {
  const Failure* failure = FailureOf(result);
  return failure == nullptr ? ExitStatus::kOk : failure->status;
}

// A socket file of `type` at `path`, bound; closed by the caller's UniqueFd, which leaves the file.
UniqueFd BindPlain(const std::string& path, int type) {
  UniqueFd fd(socket(AF_UNIX, type, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, path.c_str());
  EXPECT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_EQ(listen(fd.get(), 1), 0);
  return fd;
}

TEST(ControlSocketTest, ListensWithExactlyTheAskedMode) {
  const TestingDir dir;
  const mode_t old_mask = umask(0077);
  const auto listening = ListenAt(dir.Under("s"), 0666);
  umask(old_mask);
  ASSERT_EQ(StatusOf(listening), ExitStatus::kOk);
  struct stat info = {};
  ASSERT_EQ(stat(dir.Under("s").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0666u);
  EXPECT_EQ(FailureOf(ConnectToPager(dir.Under("s"))), nullptr);
}

TEST(ControlSocketTest, LiveSocketIsTaken) {
  const TestingDir dir;
  const auto first = ListenAt(dir.Under("s"), 0600);
  ASSERT_EQ(StatusOf(first), ExitStatus::kOk);
  const auto second = ListenAt(dir.Under("s"), 0600);
  ASSERT_EQ(StatusOf(second), ExitStatus::kSocketTaken);
  EXPECT_THAT(FailureOf(second)->text, HasSubstr("hostmm run --pager"));
  EXPECT_EQ(FailureOf(ConnectToPager(dir.Under("s"))), nullptr) << "the first must still serve";
}

TEST(ControlSocketTest, StaleSocketIsReplaced) {
  const TestingDir dir;
  { const UniqueFd dead = BindPlain(dir.Under("s"), SOCK_SEQPACKET); }
  ASSERT_TRUE(std::filesystem::exists(dir.Under("s")));
  EXPECT_EQ(StatusOf(ListenAt(dir.Under("s"), 0600)), ExitStatus::kOk);
}

// As a killed pager leaves it while the kernel still holds its socket: it listens, and nobody is
// there.
TEST(ControlSocketTest, SocketOfADeadListenerIsReplaced) {
  const TestingDir dir;
  const UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, dir.Under("s").c_str());
  ASSERT_EQ(bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  const pid_t listener = fork();
  if (listener == 0) _exit(listen(socket.get(), 1) == 0 ? 0 : 1);
  int status = -1;
  ASSERT_EQ(waitpid(listener, &status, 0), listener);
  ASSERT_EQ(status, 0);
  EXPECT_EQ(StatusOf(ListenAt(dir.Under("s"), 0600)), ExitStatus::kOk);
}

TEST(ControlSocketTest, SocketOfAnotherProgramAndOtherFilesAreTaken) {
  const TestingDir dir;
  const UniqueFd other = BindPlain(dir.Under("stream"), SOCK_STREAM);
  EXPECT_EQ(StatusOf(ListenAt(dir.Under("stream"), 0600)), ExitStatus::kSocketTaken);
  dir.Write("file", "precious");
  EXPECT_EQ(StatusOf(ListenAt(dir.Under("file"), 0600)), ExitStatus::kSocketTaken);
  EXPECT_TRUE(std::filesystem::exists(dir.Under("file")));
  const auto connected = ConnectToPager(dir.Under("stream"));
  ASSERT_NE(FailureOf(connected), nullptr);
  EXPECT_EQ(FailureOf(connected)->status, ExitStatus::kNoPager);
}

TEST(ControlSocketTest, DirectoryThatIsNotThere) {
  const TestingDir dir;
  EXPECT_EQ(StatusOf(ListenAt(dir.Under("none/s"), 0600)), ExitStatus::kNoSuchDirectory);
}

TEST(ControlSocketTest, PathThatIsTooLong) {
  EXPECT_EQ(StatusOf(ListenAt("/" + std::string(107, 'x'), 0600)), ExitStatus::kPathTooLong);
}

TEST(ControlSocketTest, NobodyServesThere) {
  const TestingDir dir;
  const auto connected = ConnectToPager(dir.Under("s"));
  ASSERT_NE(FailureOf(connected), nullptr);
  EXPECT_EQ(FailureOf(connected)->status, ExitStatus::kNoPager);
  EXPECT_THAT(FailureOf(connected)->text, HasSubstr("hostmm pager --socket"));
}

TEST(ControlSocketTest, RemoveLeavesASuccessorsSocketAlone) {
  const TestingDir dir;
  auto first = ListenAt(dir.Under("s"), 0600);
  ASSERT_EQ(StatusOf(first), ExitStatus::kOk);
  ListeningSocket& old = std::get<ListeningSocket>(first);
  // The inode stays in use while the descriptor lives, so that the successor's is another.
  ASSERT_EQ(unlink(dir.Under("s").c_str()), 0);
  const auto second = ListenAt(dir.Under("s"), 0600);
  ASSERT_EQ(StatusOf(second), ExitStatus::kOk);
  RemoveSocket(old);
  EXPECT_TRUE(std::filesystem::exists(dir.Under("s")));
  RemoveSocket(std::get<ListeningSocket>(second));
  EXPECT_FALSE(std::filesystem::exists(dir.Under("s")));
}

}  // namespace
}  // namespace hostmm
