// A named region between programs that are not related: they have the pager's socket and a name in
// common, and nothing else.
//
//   hostmm pager --socket /run/pool.sock &
//   named_region /run/pool.sock write       makes the region, leaves a message, and ends
//   named_region /run/pool.sock read        another program, later: reads it, and removes the name
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "runtime/hostmm.h"

namespace {

constexpr char kName[] = "example.message";
constexpr char kText[] = "left in shared memory";

[[noreturn]] void Fail(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

void Write(const hostmm::Session& session) {
  // Others may read it, and only that.
  const mode_t mode = S_IRUSR | S_IWUSR | S_IRGRP | S_IROTH;
  auto region = session.CreateNamed(kName, hostmm::Granule(), mode);
  if (!region.ok()) Fail(region.status());
  std::memcpy(region->data(), kText, sizeof(kText));
  std::printf("wrote \"%s\"\n", kText);
}

void Read(const hostmm::Session& session) {
  auto region = session.OpenNamed(kName, {.protection = hostmm::Protection::kRead});
  if (!region.ok()) Fail(region.status());
  const std::string text(region->As<char>().data(),
                         strnlen(region->As<char>().data(), region->size()));
  std::printf("read \"%s\"\n", text.c_str());
  if (text != kText) Fail(absl::DataLossError("not what was written"));
  // A reader cannot make it writable, for itself or for others.
  if (hostmm::ErrnoOf(region->Protect(hostmm::Protection::kReadWrite)) != EACCES) {
    Fail(absl::InternalError("a reader may write"));
  }
  if (absl::Status status = session.UnlinkNamed(kName); !status.ok()) Fail(status);
  const absl::Status gone = session.OpenNamed(kName).status();
  if (hostmm::ErrnoOf(gone) != ENOENT) Fail(absl::InternalError("the name is still there"));
}

}  // namespace

int main(int argc, char** argv) {
  const std::string role = argc == 3 ? argv[2] : "";
  if (role != "write" && role != "read") {
    std::fprintf(stderr, "usage: named_region SOCKET write|read\n");
    return 2;
  }
  auto session = hostmm::Session::Open({.socket = argv[1]});
  if (!session.ok()) Fail(session.status());
  role == "write" ? Write(*session) : Read(*session);
}
