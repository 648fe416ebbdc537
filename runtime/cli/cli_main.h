// The command line of `hostmm` as a function of its pager, so that a test can run all of it with
// another one.
#ifndef HOSTMM_RUNTIME_CLI_CLI_MAIN_H_
#define HOSTMM_RUNTIME_CLI_CLI_MAIN_H_

#include "runtime/cli/pager_process.h"

namespace hostmm {

// main() of the program. REQUIRES: no other thread runs (it forks). RETURNS the exit status.
int CliMain(int argc, char** argv, const PagerFunction& pager);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_CLI_MAIN_H_
