// tests/shared_pt/view.h
//
// What the kernel and the pager say about a range of this process.
//
// Units:    pages of 4 KiB, bytes. Threads: any; snapshots, others move on.
// Errors:   MUST.
#ifndef HOSTMM_TESTS_SHARED_PT_VIEW_H_
#define HOSTMM_TESTS_SHARED_PT_VIEW_H_

#include <sys/types.h>

#include <cstddef>
#include <string>
#include <vector>

namespace hostmm::test {

inline constexpr size_t kPage = 4096;

// Pages that this process's own page tables hold (/proc/self/pagemap).
size_t PresentPages(const void* at, size_t bytes);
// Pages that are in memory, whoever has mapped them (mincore).
size_t PagesInMemory(void* at, size_t bytes);
// KiB of the VMA at `at` that are not written back (smaps).
size_t DirtyKib(const void* at);
// "rw-s" of the VMA at `at`, or "none".
std::string Permissions(const void* at);
// A two-letter VmFlag of the VMA at `at`.
bool HasVmFlag(const void* at, const char* flag);

// `hostmm dump`: the region lines of `pid`, in order; none if the pager does not know it.
std::vector<std::string> RegionsOf(pid_t pid);

// All that a refused call must leave as it was: shared mappings of this process, and its regions.
std::string StateOfThisProcess();

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_SHARED_PT_VIEW_H_
