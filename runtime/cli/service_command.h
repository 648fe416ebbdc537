// `hostmm pager`: the pager as a service, in the foreground, until SIGTERM or SIGINT.
//
// The process that was started is the pager, as a service manager wants it. What it says when it is
// ready is read by a short-lived process of its own, since the pager itself is busy from then on.
#ifndef HOSTMM_RUNTIME_CLI_SERVICE_COMMAND_H_
#define HOSTMM_RUNTIME_CLI_SERVICE_COMMAND_H_

#include "runtime/cli/options.h"
#include "runtime/cli/pager_process.h"

namespace hostmm {

// RETURNS an ExitStatus. The socket is gone when it returns.
int RunService(const ServiceOptions& options, const PagerFunction& pager);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_SERVICE_COMMAND_H_
