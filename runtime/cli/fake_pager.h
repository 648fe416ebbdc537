// A pager for tests of the command line: keeps the whole contract of pager_options.h, manages no
// memory.
//
// A guest of it is a connection. HOSTMM_FAKE_PAGER in the environment chooses how it behaves:
//   (unset)      ready, serves, reports, ends as the contract says
//   refuse       "error=..." and kKernelLacks; with strict kStrictRefused
//   mute         never ready, never ends by itself
//   die          ends before it is ready, without a word
// It answers protocol::Kind::kInspect with a small formatted segment, so that stats, dump and check
// have something to read.
#ifndef HOSTMM_RUNTIME_CLI_FAKE_PAGER_H_
#define HOSTMM_RUNTIME_CLI_FAKE_PAGER_H_

#include "runtime/cli/pager_options.h"

namespace hostmm {

int RunFakePager(const PagerOptions& options);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_FAKE_PAGER_H_
