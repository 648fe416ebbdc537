// tests/shared_pt/object.h
//
// What is mapped: one object of each kind that opt-in sharing knows.
//
// Owner:    the process that makes it. It has no name that outlives that process, except a named
//           region, which Remove takes away (or the end of the pager).
// Units:    bytes. Threads: any. Errors: MUST.
#ifndef HOSTMM_TESTS_SHARED_PT_OBJECT_H_
#define HOSTMM_TESTS_SHARED_PT_OBJECT_H_

#include <cstddef>
#include <string>
#include <vector>

namespace hostmm::test {

enum class MemoryKind { kAnonymous, kMemfd, kDevShm, kNamed, kDisk };
inline constexpr MemoryKind kMemoryKinds[] = {MemoryKind::kAnonymous, MemoryKind::kMemfd,
                                              MemoryKind::kDevShm, MemoryKind::kNamed,
                                              MemoryKind::kDisk};
const char* NameOf(MemoryKind kind);

class Object {
 public:
  // Ends the case with a reason when the machine has no such memory.
  static Object Make(MemoryKind kind, size_t bytes);
  // The same object in another program.
  static Object FromWords(const std::vector<std::string>& words);
  std::vector<std::string> Words() const;

  MemoryKind kind() const { return kind_; }
  size_t bytes() const { return bytes_; }
  // A descriptor of its own, the caller's to close; -1 for anonymous memory.
  int Open(int access) const;
  void Remove() const;
  // Frames are the pager's.
  bool IsOwn() const { return kind_ == MemoryKind::kAnonymous || kind_ == MemoryKind::kNamed; }
  // Mappings of it may be executable.
  bool MayExecute() const;

 private:
  Object(MemoryKind kind, size_t bytes, std::string path)
      : kind_(kind), bytes_(bytes), path_(std::move(path)) {}

  MemoryKind kind_;
  size_t bytes_;
  std::string path_;
};

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_SHARED_PT_OBJECT_H_
