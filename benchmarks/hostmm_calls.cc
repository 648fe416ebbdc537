#include "benchmarks/hostmm_calls.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "benchmarks/driver_steps.h"

namespace hostmm::benchmarks {
namespace {

template <class Function>
void Find(const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
  if (*function != nullptr) return;
  errno = ENOSYS;
  Fail(std::string(name) + ": not under hostmm");
}

HostmmCalls FindAll() {
  HostmmCalls calls = {};
  Find("hostmm_is_shared", &calls.is_shared);
  Find("hostmm_shm_open", &calls.shm_open);
  Find("hostmm_snapshot", &calls.snapshot);
  Find("hostmm_snapshot_info", &calls.snapshot_info);
  Find("hostmm_snapshot_map", &calls.snapshot_map);
  Find("hostmm_snapshot_export", &calls.snapshot_export);
  Find("hostmm_image_load", &calls.image_load);
  Find("hostmm_error", &calls.error);
  return calls;
}

}  // namespace

const HostmmCalls& Hostmm() {
  static const HostmmCalls calls = FindAll();
  return calls;
}

bool HasHostmm() { return dlsym(RTLD_DEFAULT, "hostmm_is_shared") != nullptr; }

void FailHostmm(std::string_view what) {
  std::fprintf(stderr, "%s: %.*s: %s\n", program_invocation_short_name,
               static_cast<int>(what.size()), what.data(), Hostmm().error());
  std::exit(1);
}

uint8_t* MapNewRegion(const char* name, uint64_t bytes) {
  const int file = Hostmm().shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, bytes);
  if (file < 0) FailHostmm("hostmm_shm_open");
  // The mmap of a program under hostmm: the library's.
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_SHARED_PT, file, 0);
  if (mapped == MAP_FAILED) Fail("mmap of the region");
  close(file);
  return static_cast<uint8_t*>(mapped);
}

int TakeSnapshot(const volatile uint8_t* region) {
  const int snapshot = Hostmm().snapshot(const_cast<const uint8_t*>(region));
  if (snapshot < 0) FailHostmm("hostmm_snapshot");
  return snapshot;
}

uint64_t UnitOf(int snapshot) {
  struct hostmm_snapshot_info info = {};
  info.size = sizeof(info);
  if (Hostmm().snapshot_info(snapshot, &info) != 0) FailHostmm("hostmm_snapshot_info");
  return info.unit;
}

const uint8_t* MapView(int snapshot, uint64_t offset, uint64_t bytes) {
  const void* view =
      Hostmm().snapshot_map(snapshot, nullptr, bytes, PROT_READ, static_cast<off_t>(offset));
  if (view == MAP_FAILED) FailHostmm("hostmm_snapshot_map");
  return static_cast<const uint8_t*>(view);
}

}  // namespace hostmm::benchmarks
