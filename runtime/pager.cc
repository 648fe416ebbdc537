#include "runtime/pager.h"

#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/cli/exit_status.h"
#include "runtime/pager_core.h"
#include "runtime/time_slice.h"

namespace hostmm {
namespace {

// Writes one line for the command line to read; a reader that has gone is no error.
void Say(int fd, const std::string& line) {
  if (fd < 0) return;
  const std::string whole = line + "\n";
  (void)!write(fd, whole.data(), whole.size());
}

int Fail(int fd, ExitStatus status, std::string_view why) {
  Say(fd, absl::StrCat("error=", why));
  close(fd);
  return ToInt(status);
}

// Which failure it was, for a script.
ExitStatus StatusOf(const absl::Status& failure) {
  switch (failure.code()) {
    case absl::StatusCode::kResourceExhausted:  // ENOMEM, EMFILE
    case absl::StatusCode::kOutOfRange:         // EFBIG
      return ExitStatus::kLimitTooLow;
    case absl::StatusCode::kPermissionDenied:
      return ExitStatus::kNoPermission;
    default:
      return ExitStatus::kKernelLacks;
  }
}

// Three descriptors per guest.
void RaiseDescriptorLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

int RunPager(const PagerOptions& options) {
  // A file size limit is then an error with a name, not the end.
  signal(SIGXFSZ, SIG_IGN);
  RaiseDescriptorLimit();
  TakeTimeSlice(kShortTimeSlice);  // before there are other threads
  absl::StatusOr<Rung> rung = ChooseRung(options);
  if (!rung.ok()) {
    const ExitStatus status = options.strict ? ExitStatus::kStrictRefused : ExitStatus::kNoFrames;
    return Fail(options.ready_fd, status, rung.status().message());
  }
  const std::string ready =
      absl::StrCat("mode=", rung->uffd.source == UffdAccess::Source::kNone ? "native" : "uffd",
                   " frames=", Name(rung->store.kind()), " why=", rung->why);
  absl::StatusOr<std::unique_ptr<PagerCore>> core = PagerCore::Create(options, *std::move(rung));
  if (!core.ok()) return Fail(options.ready_fd, StatusOf(core.status()), core.status().message());
  Say(options.ready_fd, ready);
  if (options.ready_fd >= 0) close(options.ready_fd);
  const absl::Status ended = (*core)->Run();
  if (options.lifetime == PagerOptions::Lifetime::kUntilLastGuest) {
    for (const std::string& line : (*core)->Report()) Say(options.report_fd, line);
  }
  unlink(options.socket_path.c_str());
  return ToInt(ended.ok() ? ExitStatus::kOk : ExitStatus::kInternal);
}

}  // namespace hostmm
