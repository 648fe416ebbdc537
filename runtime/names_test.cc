// Named regions: who may open and unlink them, and what is mapped from their descriptors.
#include "runtime/names.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <string>

#include "runtime/session_fixture.h"

namespace hostmm {
namespace {

using protocol::Kind;
using protocol::Message;
using protocol::Status;

class NamesTest : public SessionFixture {
 protected:
  static Message OpenOf(const std::string& name, uint64_t flags, uint64_t mode = 0600,
                        uint64_t length = kRegion) {
    Message open = NewPacket(Kind::kOpenName);
    name.copy(open.text, sizeof(open.text) - 1);
    open.length = length;
    open.value[0] = flags;
    open.value[1] = mode;
    return open;
  }
  // 0 or an errno; the file is in file_.
  int Open(Guest& guest, const std::string& name, uint64_t flags, uint64_t mode = 0600,
           uint64_t length = kRegion) {
    if ((flags & O_CREAT) != 0) names_.push_back(name);
    const std::optional<Message> answer = Ask(guest, OpenOf(name, flags, mode, length));
    return answer->status == Status::kOk ? 0 : static_cast<int>(answer->value[1]);
  }
  int Unlink(Guest& guest, const std::string& name) {
    Message unlink = NewPacket(Kind::kUnlinkName);
    name.copy(unlink.text, sizeof(unlink.text) - 1);
    return static_cast<int>(Ask(guest, unlink)->value[1]);
  }
  std::optional<Message> MapFile(Guest& guest, UniqueFd file, uint64_t va, int prot,
                                 protocol::Share share) {
    Message adopt = Ranged(Kind::kAdopt, va, kRegion);
    adopt.prot = static_cast<uint32_t>(prot);
    adopt.mode = share;
    adopt.value[0] = static_cast<uint64_t>(protocol::AdoptSource::kFile);
    return Ask(guest, adopt, std::move(file));
  }
};

TEST_F(NamesTest, ACreatedNameIsFoundByOthers) {
  Guest& owner = NewGuest(1000);
  ASSERT_EQ(Open(owner, "pool", O_RDWR | O_CREAT | O_EXCL, 0644, kRegion - 5), 0);
  struct stat info;
  ASSERT_EQ(fstat(file_.get(), &info), 0);
  EXPECT_EQ(static_cast<uint64_t>(info.st_size), kRegion) << "rounded up to 2 MiB";
  const ino_t inode = info.st_ino;
  ASSERT_EQ(pwrite(file_.get(), "hello", 5, 100), 5);
  Guest& other = NewGuest(1001);
  const std::optional<Message> answer = Ask(other, OpenOf("pool", O_RDONLY, 0, 0));
  EXPECT_EQ(answer->status, Status::kOk);
  EXPECT_EQ(answer->length, kRegion);
  EXPECT_EQ(answer->value[0], kPageSize);
  ASSERT_EQ(fstat(file_.get(), &info), 0);
  EXPECT_EQ(info.st_ino, inode);
  char read[5];
  EXPECT_EQ(pread(file_.get(), read, 5, 100), 5);
  EXPECT_EQ(std::string(read, 5), "hello");
}

TEST_F(NamesTest, FlagsAndNamesThatMakeNoSense) {
  Guest& guest = NewGuest();
  for (const char* name : {"", "/", "/pool", "a/b"}) {
    EXPECT_EQ(Open(guest, name, O_RDWR | O_CREAT), EINVAL) << name;
    EXPECT_EQ(Unlink(guest, name), EINVAL) << name;
  }
  for (const uint64_t flags :
       {uint64_t{O_WRONLY}, uint64_t{3}, uint64_t{O_RDWR | O_TRUNC}, ~uint64_t{0}}) {
    EXPECT_EQ(Open(guest, "pool", flags), EINVAL) << flags;
  }
  EXPECT_EQ(Open(guest, "pool", O_RDWR | O_CREAT, 0600, 0), EINVAL);
  EXPECT_EQ(Open(guest, "pool", O_RDWR | O_CREAT, 0600, ~uint64_t{0}), ENOSPC);
  EXPECT_EQ(Open(guest, "pool", O_RDWR), ENOENT);
  EXPECT_EQ(Unlink(guest, "pool"), ENOENT);
  const std::string longest(63, 'n');
  EXPECT_EQ(Open(guest, longest, O_RDWR | O_CREAT), 0);
  EXPECT_EQ(Open(guest, longest, O_RDWR | O_CREAT | O_EXCL), EEXIST);
  EXPECT_EQ(Open(guest, longest, O_RDWR | O_CREAT, 0, 0), 0) << "it is there: the rest is ignored";
}

TEST_F(NamesTest, PermissionBitsAreThoseOfFiles) {
  Guest& owner = NewGuest(1000, 100);
  Guest& same_group = NewGuest(1001, 100);
  Guest& stranger = NewGuest(1002, 102);
  Guest& root = NewGuest(0, 0);
  ASSERT_EQ(Open(owner, "pool", O_RDWR | O_CREAT, 0640), 0);
  EXPECT_EQ(Open(owner, "pool", O_RDWR), 0);
  EXPECT_EQ(Open(same_group, "pool", O_RDONLY), 0);
  EXPECT_EQ(Open(same_group, "pool", O_RDWR), EACCES);
  EXPECT_EQ(Open(stranger, "pool", O_RDONLY), EACCES);
  EXPECT_EQ(Open(root, "pool", O_RDWR), 0);
  // The first class that fits decides, as for files.
  ASSERT_EQ(Open(owner, "odd", O_RDWR | O_CREAT, 0066), 0) << "whoever makes it has it";
  EXPECT_EQ(Open(owner, "odd", O_RDONLY), EACCES);
  EXPECT_EQ(Open(stranger, "odd", O_RDWR), 0);
  EXPECT_EQ(Unlink(stranger, "odd"), EACCES);
  EXPECT_EQ(Unlink(same_group, "pool"), EACCES);
  EXPECT_EQ(Unlink(owner, "odd"), 0);
  EXPECT_EQ(Unlink(root, "pool"), 0);
  EXPECT_EQ(Open(root, "pool", O_RDONLY), ENOENT);
}

TEST_F(NamesTest, AReadOnlyOpenCannotBeWrittenThrough) {
  Guest& owner = NewGuest();
  ASSERT_EQ(Open(owner, "pool", O_RDWR | O_CREAT, 0644), 0);
  Guest& reader = NewGuest(1001);
  ASSERT_EQ(Open(reader, "pool", O_RDONLY), 0);
  EXPECT_EQ(fcntl(file_.get(), F_GETFL) & O_ACCMODE, O_RDONLY);
  EXPECT_LT(pwrite(file_.get(), "x", 1, 0), 0);
  EXPECT_EQ(mmap(nullptr, kBlockSize, PROT_WRITE, MAP_SHARED, file_.get(), 0), MAP_FAILED);
  struct stat info;
  ASSERT_EQ(fstat(file_.get(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u) << "or others could open it anew through /proc";
}

TEST_F(NamesTest, AMappedNameIsThePagersOwnFile) {
  Guest& owner = NewOptInGuest();
  ASSERT_EQ(Open(owner, "pool", O_RDWR | O_CREAT, 0644), 0);
  const std::optional<Message> mapped =
      MapFile(owner, std::move(file_), kVa, PROT_READ | PROT_WRITE, kSharedPt);
  ASSERT_EQ(mapped->status, Status::kOk);
  EXPECT_EQ(mapped->value[0], static_cast<uint64_t>(protocol::Adopted::kOwn));
  EXPECT_EQ(mapped->prot, static_cast<uint32_t>(PROT_READ | PROT_WRITE));
  Guest& reader = NewOptInGuest(1001);
  ASSERT_EQ(Open(reader, "pool", O_RDONLY), 0);
  const std::optional<Message> second =
      MapFile(reader, std::move(file_), 2 * kVa, PROT_READ, kSharedPt);
  EXPECT_EQ(second->value[0], static_cast<uint64_t>(protocol::Adopted::kOwn));
  EXPECT_EQ(second->mm.slot, mapped->mm.slot);
  EXPECT_NE(segment_.reader().FindRegion(reader.id, GuestAddr(2 * kVa))->flags & kNeverWrite, 0u);
  // Without MAP_SHARED_PT it is a managed mapping like others.
  Guest& plain = NewGuest(1000);
  ASSERT_EQ(Open(plain, "pool", O_RDWR), 0);
  EXPECT_EQ(MapFile(plain, std::move(file_), kVa, PROT_READ, 0)->value[0],
            static_cast<uint64_t>(protocol::Adopted::kOwn));
  EXPECT_EQ(segment_.reader().Pools().mms, 1u);
  EXPECT_EQ(segment_.tables.Info({mapped->mm.slot, mapped->mm.generation}).frames,
            FrameKind::kBase);
}

TEST_F(NamesTest, AnUnlinkedNameLivesWhileItIsMapped) {
  Guest& owner = NewOptInGuest();
  ASSERT_EQ(Open(owner, "pool", O_RDWR | O_CREAT), 0);
  ASSERT_EQ(MapFile(owner, std::move(file_), kVa, PROT_READ, kSharedPt)->status, Status::kOk);
  EXPECT_EQ(Unlink(owner, "pool"), 0);
  EXPECT_EQ(segment_.reader().Pools().mms, 1u);
  EXPECT_EQ(Open(owner, "pool", O_RDWR | O_CREAT), 0) << "another one";
  EXPECT_EQ(segment_.reader().Pools().mms, 2u);
  Note(owner, Ranged(Kind::kUnmap, kVa, kRegion));
  EXPECT_EQ(segment_.reader().Pools().mms, 1u);
}

TEST_F(NamesTest, OneUserLeavesFilesForOthers) {
  Guest& greedy = NewGuest(1000);
  uint64_t made = 0;
  while (made < 2000 && Open(greedy, "n" + std::to_string(made), O_RDWR | O_CREAT, 0600, 1) == 0) {
    ++made;
  }
  EXPECT_EQ(made, SegmentConfig{}.max_mms / 4 * 3);
  EXPECT_EQ(Open(NewGuest(1001), "mine", O_RDWR | O_CREAT), 0);
}

}  // namespace
}  // namespace hostmm
