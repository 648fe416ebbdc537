// `hostmm doctor`: what this host can do for hostmm, and the exact remedy for what it cannot.
//
// Judge() is pure: facts in, one Finding per thing out, and a verdict. A finding is kFail when
// hostmm cannot run for it, kWarn when something is lost (the fact says what), kOk otherwise. Only
// what the default rung needs counts for the verdict: a host without hugetlb pages is in good
// health.
#ifndef HOSTMM_RUNTIME_CLI_DOCTOR_H_
#define HOSTMM_RUNTIME_CLI_DOCTOR_H_

#include <string>
#include <vector>

#include "runtime/cli/failure.h"
#include "runtime/cli/host_features.h"
#include "runtime/cli/options.h"
#include "runtime/cli/preload_library.h"

namespace hostmm {

enum class Level { kOk, kWarn, kFail };

struct Finding {
  Level level;
  std::string thing;
  std::string fact;
  std::string remedy;  // a command; empty where nothing is to be done
};

// What a guest gets here by default.
enum class ExpectedMode { kUffd, kNative, kNone };
enum class ExpectedFrames { kHuge, kBase };

struct Diagnosis {
  std::vector<Finding> findings;
  ExpectedMode mode = ExpectedMode::kUffd;
  ExpectedFrames frames = ExpectedFrames::kHuge;

  ExitStatus status() const;
  // One line, such as "uffd mode on huge frames".
  std::string summary() const;
};

Diagnosis Judge(const HostFeatures& host, const OrFailure<PreloadLibrary>& library);

std::string DiagnosisText(const Diagnosis& diagnosis);
std::string DiagnosisJson(const Diagnosis& diagnosis);

// Probes, judges, prints to standard output. RETURNS kOk, kDegraded or kCannotRun.
int RunDoctor(const DoctorOptions& options);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_DOCTOR_H_
