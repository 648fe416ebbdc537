// tests/oracle/sides.h
//
// The two sides of the transparent oracle: a program run on plain Linux, and under a pager that
// serves all programs, one after the other.
//
// Owner:    a folder with copies of what is run (a build that goes on meanwhile may not exchange
//           them), and the pager; both end with this object.
// Threads:  one.
// Errors:   `trouble` of a transcript: a program that does not end, words of hostmm on standard
//           error, a pager that has died, that keeps a trace of a program, or whose tables break an
//           invariant.
#ifndef HOSTMM_TESTS_ORACLE_SIDES_H_
#define HOSTMM_TESTS_ORACLE_SIDES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "tests/oracle/command.h"
#include "tests/oracle/compare.h"
#include "tests/oracle/operation.h"

namespace hostmm::oracle {

// Paths of what was built.
struct Built {
  std::string guest;    // oracle_guest
  std::string hostmm;   // may be empty, if nothing is run managed
  std::string library;  // libhostmm_preload.so
};

class Sides {
 public:
  explicit Sides(const Built& built);
  ~Sides();
  Sides(const Sides&) = delete;
  Sides& operator=(const Sides&) = delete;

  Transcript Plain(const Program& program);
  // `wrong`: what HOSTMM_ORACLE_WRONG says.
  Transcript Lying(const Program& program, const std::string& wrong);
  Transcript Managed(const Program& program);

  // Faults that the pager has answered: 0 would mean that nothing was managed. -1: it does not say.
  int64_t FaultsServed();

 private:
  Transcript Run(const Program& program, const Environment& environment);
  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  // Copies a file into the folder.
  std::string Keep(const std::string& path);
  // RETURNS: why there is no pager, or nothing.
  std::string EnsurePager();
  std::string Ask(const std::string& question, const std::vector<std::string>& more, int* status);
  // Waits until the pager has forgotten every program. RETURNS: what is wrong with it.
  std::string AuditPager();

  std::string folder_;
  Built kept_;
  Command pager_;
};

}  // namespace hostmm::oracle

#endif  // HOSTMM_TESTS_ORACLE_SIDES_H_
