#include "runtime/cli/doctor.h"

#include <linux/userfaultfd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <string_view>
#include <utility>

#include "runtime/cli/json_text.h"
#include "runtime/cli/version.h"

namespace hostmm {
namespace {

constexpr uint64_t kGranuleBytes = uint64_t{2} << 20;

// The oldest kernel with all that the default rung stands on: /dev/userfaultfd and MADV_COLLAPSE
// came with 6.1.
constexpr int kOldestMajor = 6;
constexpr int kOldestMinor = 1;
// UFFDIO_CONTINUE_MODE_WP, with which a page of frozen memory is given back so that the first write
// to it is seen. No feature bit says it.
constexpr std::pair kOldestWithSnapshots(6, 4);

// The pager keeps this many descriptors per guest (its channel, its userfaultfd, its pidfd), and
// some for itself.
constexpr uint64_t kDescriptorsPerGuest = 3;
constexpr uint64_t kDescriptorsOfPager = 64;
// Fewer guests than a small database has is worth a word. Arbitrary.
constexpr uint64_t kFewGuests = 300;
// Every guest has one thread of ours, which counts in `ulimit -u`. Arbitrary.
constexpr uint64_t kFewProcesses = 1024;
// Linux's default; the number of regions of one process is small, but a limit below it has been
// lowered by somebody.
constexpr int64_t kDefaultMaxMapCount = 65530;
// Below this the memory is used up anyway. Arbitrary.
constexpr uint64_t kLittleMemory = uint64_t{256} << 20;

struct NamedFeature {
  uint64_t bit;
  std::string_view name;
};
// Newer than Debian 12's headers; the kernel's ABI fixes the numbers.
constexpr uint64_t kFeatureWpAsync = uint64_t{1} << 15;
constexpr uint64_t kFeatureMove = uint64_t{1} << 16;
constexpr uint64_t kFeatureRwp = uint64_t{1} << 17;
constexpr NamedFeature kFeatures[] = {
    {UFFD_FEATURE_MISSING_SHMEM, "MISSING_SHMEM"},
    {UFFD_FEATURE_MISSING_HUGETLBFS, "MISSING_HUGETLBFS"},
    {UFFD_FEATURE_MINOR_SHMEM, "MINOR_SHMEM"},
    {UFFD_FEATURE_MINOR_HUGETLBFS, "MINOR_HUGETLBFS"},
    {UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "WP_HUGETLBFS_SHMEM"},
    {UFFD_FEATURE_THREAD_ID, "THREAD_ID"},
    {kFeatureWpAsync, "WP_ASYNC"},
    {kFeatureMove, "MOVE"},
    {kFeatureRwp, "RWPROTECT"},
};

// Of what is shared, present pages are given on request, and first writes seen.
constexpr NamedFeature kNeededForSnapshots[] = {
    {UFFD_FEATURE_MINOR_SHMEM, "MINOR_SHMEM"},
    {UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "WP_HUGETLBFS_SHMEM"},
};

std::string MiB(uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

std::string Count(uint64_t number) {
  return number == UINT64_MAX ? "unlimited" : std::to_string(number);
}

// Builds a Diagnosis finding by finding.
class Judgement {
 public:
  Judgement(const HostFeatures& host, const OrFailure<PreloadLibrary>& library)
      : host_(host), library_(library) {}

  Diagnosis Run() {
    Kernel();
    Userfaultfd();
    Features();
    Passing();
    Snapshots();
    IoUring();
    UserNamespace();
    HugeFrames();
    Hugetlb();
    Memory();
    OpenFiles();
    LockedMemory();
    Processes();
    MapCount();
    Preload();
    Say(Level::kOk, "granule", MiB(kGranuleBytes) + ": regions share page tables in such blocks");
    return std::move(diagnosis_);
  }

 private:
  void Say(Level level, std::string thing, std::string fact, std::string remedy = "") {
    diagnosis_.findings.push_back({level, std::move(thing), std::move(fact), std::move(remedy)});
  }

  // Of the last line that has one.
  std::string LastRemedy() const {
    for (auto it = diagnosis_.findings.rbegin(); it != diagnosis_.findings.rend(); ++it) {
      if (!it->remedy.empty()) return it->remedy;
    }
    return "";
  }

  // Level of something whose absence ends in a weaker mode.
  void LoseUffd() {
    if (diagnosis_.mode == ExpectedMode::kUffd) diagnosis_.mode = ExpectedMode::kNative;
  }
  void CannotRun() { diagnosis_.mode = ExpectedMode::kNone; }

  std::string AsRoot(std::string_view command) const {
    return (host_.user == 0 ? "" : "sudo ") + std::string(command);
  }

  void Kernel();
  void Userfaultfd();
  void Features();
  void Passing();
  void Snapshots();
  void IoUring();
  void UserNamespace();
  void HugeFrames();
  void Hugetlb();
  void Memory();
  void OpenFiles();
  void LockedMemory();
  void Processes();
  void MapCount();
  void Preload();

  const HostFeatures& host_;
  const OrFailure<PreloadLibrary>& library_;
  Diagnosis diagnosis_;
};

void Judgement::Kernel() {
  const KernelRelease& kernel = host_.kernel;
  const bool recent =
      std::pair(kernel.major, kernel.minor) >= std::pair(kOldestMajor, kOldestMinor);
  if (recent) {
    Say(Level::kOk, "kernel", kernel.text);
  } else {
    Say(Level::kWarn, "kernel",
        kernel.text + " is older than 6.1: no /dev/userfaultfd to pass on, no collapse",
        "install Linux 6.1 or later and reboot");
  }
}

void Judgement::Userfaultfd() {
  const UserfaultfdFeatures& uffd = host_.userfaultfd;
  if (uffd.device.works()) {
    Say(Level::kOk, "userfaultfd", "/dev/userfaultfd can be opened and passed to guests");
    return;
  }
  if (uffd.system_call.works()) {
    const bool for_all = uffd.unprivileged_sysctl.value_or(0) == 1;
    Say(for_all ? Level::kOk : Level::kWarn, "userfaultfd",
        std::string("userfaultfd(2) works, /dev/userfaultfd not") +
            (for_all ? "" : ": programs that change from root to another user get native mode"),
        for_all ? "" : "sysctl -w vm.unprivileged_userfaultfd=1");
    return;
  }
  LoseUffd();
  if (uffd.device.error == ENOENT && uffd.system_call.error == ENOSYS) {
    Say(Level::kWarn, "userfaultfd", "this kernel has none: native mode",
        "boot a kernel with CONFIG_USERFAULTFD=y");
    return;
  }
  if (uffd.device.error == ENOENT) {
    Say(Level::kWarn, "userfaultfd", "no /dev/userfaultfd here: native mode",
        "give the container the device: --device /dev/userfaultfd; or " +
            AsRoot(
                "mknod /dev/userfaultfd c 10 $(awk '$2==\"userfaultfd\"{print $1}' /proc/misc)"));
    return;
  }
  Say(Level::kWarn, "userfaultfd",
      "/dev/userfaultfd: " + ErrnoText(uffd.device.error) +
          ": native mode, unless a pager of another user serves",
      AsRoot("chgrp " + host_.group_name + " /dev/userfaultfd && " +
             AsRoot("chmod 0660 /dev/userfaultfd")));
}

void Judgement::Features() {
  const uint64_t bits = host_.userfaultfd.feature_bits;
  if (bits == 0) {
    // A warning of its own would say the line "userfaultfd" twice.
    Say(Level::kOk, "uffd-features", "not known: no userfaultfd could be made");
    return;
  }
  std::string present;
  std::string absent;
  for (const NamedFeature& feature : kFeatures) {
    std::string& list = (bits & feature.bit) != 0 ? present : absent;
    if (!list.empty()) list += " ";
    list += feature.name;
  }
  const std::string fact = present + (absent.empty() ? "" : "; not: " + absent);
  if ((bits & UFFD_FEATURE_MISSING_SHMEM) == 0) {
    LoseUffd();
    Say(Level::kWarn, "uffd-features", fact + ": native mode",
        "boot a kernel with CONFIG_USERFAULTFD=y and CONFIG_SHMEM=y");
  } else if ((bits & UFFD_FEATURE_MINOR_SHMEM) == 0) {
    Say(Level::kWarn, "uffd-features", fact + ": no --pt-budget",
        "boot a kernel with CONFIG_HAVE_ARCH_USERFAULTFD_MINOR=y");
  } else {
    Say(Level::kOk, "uffd-features", fact);
  }
}

void Judgement::Passing() {
  const Attempt& passed = host_.userfaultfd.passed_descriptor;
  if (passed.state == Attempt::State::kNotTried) return;  // the line "userfaultfd" says why
  if (passed.works()) {
    Say(Level::kOk, "passing", "a process without privilege can use the passed descriptor");
    return;
  }
  LoseUffd();
  Say(Level::kWarn, "passing",
      "a process without privilege cannot use the passed descriptor: " + ErrnoText(passed.error) +
          ": native mode",
      "allow ioctl USERFAULTFD_IOC_NEW in the seccomp or LSM policy of the container");
}

// Not for the verdict: a host without snapshots runs everything else. Called behind the lines about
// userfaultfd: what it lacks there, it lacks here, and the remedy is the same.
void Judgement::Snapshots() {
  const UserfaultfdFeatures& uffd = host_.userfaultfd;
  std::string absent;
  for (const NamedFeature& feature : kNeededForSnapshots) {
    if ((uffd.feature_bits & feature.bit) == 0) absent += " " + std::string(feature.name);
  }
  if (diagnosis_.mode != ExpectedMode::kUffd || uffd.feature_bits == 0) {
    Say(Level::kWarn, "snapshots", "not in native mode", LastRemedy());
  } else if (std::pair(host_.kernel.major, host_.kernel.minor) < kOldestWithSnapshots) {
    Say(Level::kWarn, "snapshots",
        "not on " + host_.kernel.text + ": pages cannot be given back write-protected",
        "install Linux 6.4 or later and reboot");
  } else if (!absent.empty()) {
    Say(Level::kWarn, "snapshots", "not with a userfaultfd without" + absent,
        "boot a kernel with CONFIG_HAVE_ARCH_USERFAULTFD_WP=y and "
        "CONFIG_HAVE_ARCH_USERFAULTFD_MINOR=y (x86-64 has both)");
  } else if (!uffd.device.works() && uffd.unprivileged_sysctl.value_or(0) != 1) {
    Say(Level::kWarn, "snapshots",
        "possible, but not of what a program maps that changes from root to another user",
        LastRemedy());
  } else {
    Say(Level::kOk, "snapshots", "possible; of memory whose frames are the pager's");
  }
}

void Judgement::IoUring() {
  const IoUringFeatures& ring = host_.io_uring;
  if (ring.setup.works()) {
    Say(Level::kOk, "io_uring", "can be set up");
    return;
  }
  CannotRun();
  if (ring.disabled_sysctl.value_or(0) != 0) {
    Say(Level::kFail, "io_uring",
        "kernel.io_uring_disabled=" + std::to_string(*ring.disabled_sysctl) +
            ": the pager cannot run",
        AsRoot("sysctl -w kernel.io_uring_disabled=0"));
  } else if (ring.setup.error == ENOSYS) {
    Say(Level::kFail, "io_uring", "this kernel has none: the pager cannot run",
        "boot a kernel with CONFIG_IO_URING=y");
  } else {
    Say(Level::kFail, "io_uring",
        "refused: " + ErrnoText(ring.setup.error) + ": the pager cannot run",
        "allow io_uring_setup in the seccomp profile of the container; or raise 'ulimit -l'");
  }
}

void Judgement::UserNamespace() {
  const Attempt& attempt = host_.huge.user_namespace;
  if (attempt.state == Attempt::State::kNotTried) return;  // root needs none
  if (attempt.works()) {
    Say(Level::kOk, "user-namespace", "can be made: huge frames need no privilege");
    return;
  }
  diagnosis_.frames = ExpectedFrames::kBase;
  std::string remedy = AsRoot("sysctl -w user.max_user_namespaces=15000");
  if (attempt.error == EPERM || attempt.error == EACCES) {
    remedy = AsRoot("sysctl -w kernel.unprivileged_userns_clone=1") + " (Debian), or " +
             AsRoot("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0") +
             " (Ubuntu), or run the pager as root";
  }
  Say(Level::kWarn, "user-namespace", "refused: " + ErrnoText(attempt.error) + ": base frames",
      remedy);
}

void Judgement::HugeFrames() {
  const HugeFrameFeatures& huge = host_.huge;
  if (huge.tmpfs.state == Attempt::State::kNotTried) return;  // "user-namespace" says why
  if (huge.tmpfs.works() && huge.huge_bytes >= kGranuleBytes) {
    Say(Level::kOk, "huge-frames",
        "a private tmpfs gave " + MiB(huge.huge_bytes) +
            ", mapped huge (shmem_enabled=" + huge.shmem_enabled.value_or("?") + ")");
    return;
  }
  diagnosis_.frames = ExpectedFrames::kBase;
  if (!huge.shmem_enabled.has_value()) {
    Say(Level::kWarn, "huge-frames", "this kernel has no huge pages for shared memory: base frames",
        "boot a kernel with CONFIG_TRANSPARENT_HUGEPAGE=y");
  } else if (*huge.shmem_enabled == "deny") {
    Say(Level::kWarn, "huge-frames", "shmem_enabled=deny forbids them: base frames",
        host_.user == 0
            ? "echo never > /sys/kernel/mm/transparent_hugepage/shmem_enabled"
            : "echo never | sudo tee /sys/kernel/mm/transparent_hugepage/shmem_enabled");
  } else if (!huge.tmpfs.works()) {
    Say(Level::kWarn, "huge-frames",
        "a private tmpfs cannot be used: " + ErrnoText(huge.tmpfs.error) + ": base frames",
        huge.tmpfs.error == ENOMEM || huge.tmpfs.error == ENOSPC || huge.tmpfs.error == EFAULT
            ? "free some memory, or raise the memory limit of the control group"
            : "allow fsopen and fsmount in the seccomp profile of the container");
  } else {
    Say(Level::kWarn, "huge-frames",
        "a private tmpfs gave small pages only: memory is fragmented or short: base frames",
        AsRoot("sysctl -w vm.compact_memory=1"));
  }
}

void Judgement::Hugetlb() {
  const HugetlbFeatures& pool = host_.hugetlb;
  if (pool.page_bytes == 0) {
    Say(Level::kOk, "hugetlb", "none in this kernel: no --frames=hugetlb; the default needs none");
    return;
  }
  const std::string fact = std::to_string(pool.free_pages) + " pages of " + MiB(pool.page_bytes) +
                           " free, overcommit " + std::to_string(pool.overcommit_pages);
  if (pool.page_bytes != kGranuleBytes) {
    Say(Level::kOk, "hugetlb", fact + ": no --frames=hugetlb, which needs pages of 2 MiB",
        "boot with default_hugepagesz=2M");
  } else if (pool.free_pages == 0 && pool.overcommit_pages == 0) {
    Say(Level::kOk, "hugetlb", fact + ": no --frames=hugetlb; the default needs none",
        AsRoot("sysctl -w vm.nr_overcommit_hugepages=2048"));
  } else {
    Say(Level::kOk, "hugetlb", fact + ": --frames=hugetlb can be had");
  }
}

void Judgement::Memory() {
  if (host_.available_bytes >= kLittleMemory) {
    Say(Level::kOk, "memory", MiB(host_.available_bytes) + " available");
  } else {
    Say(Level::kWarn, "memory", MiB(host_.available_bytes) + " available: frames may run out",
        "end some programs, or add memory");
  }
}

void Judgement::OpenFiles() {
  const uint64_t hard = host_.limits.open_files_hard;
  const uint64_t left = hard - std::min(hard, kDescriptorsOfPager);
  const uint64_t guests = left / kDescriptorsPerGuest;
  const std::string fact = "hard limit " + Count(hard) + ": room for " +
                           (hard == UINT64_MAX ? "any number of" : std::to_string(guests)) +
                           " guests";
  if (guests >= kFewGuests) {
    Say(Level::kOk, "open-files", fact);
  } else {
    Say(Level::kWarn, "open-files", fact,
        host_.user == 0 ? "ulimit -Hn 65536"
                        : "sudo prlimit --pid $$ --nofile=65536 (or LimitNOFILE= of the service)");
  }
}

void Judgement::LockedMemory() {
  const uint64_t bytes = host_.limits.locked_bytes;
  Say(Level::kOk, "locked-memory",
      "limit " + (bytes == UINT64_MAX ? "unlimited" : std::to_string(bytes >> 10) + " KiB") +
          ": for MAP_LOCKED and mlock of programs; hostmm locks nothing itself");
}

void Judgement::Processes() {
  const uint64_t processes = host_.limits.processes;
  const std::string fact = "limit " + Count(processes) + "; every guest has one more thread";
  if (host_.user == 0 || processes >= kFewProcesses) {
    Say(Level::kOk, "processes", fact);
  } else {
    Say(Level::kWarn, "processes", fact,
        "sudo prlimit --pid $$ --nproc=65536 (or LimitNPROC= of the service)");
  }
}

void Judgement::MapCount() {
  const std::optional<int64_t>& count = host_.limits.max_map_count;
  if (!count.has_value()) {
    Say(Level::kWarn, "max-map-count", "not known: /proc/sys is not readable");
  } else if (*count < kDefaultMaxMapCount) {
    Say(Level::kWarn, "max-map-count", std::to_string(*count) + ", less than Linux's default",
        AsRoot("sysctl -w vm.max_map_count=65530"));
  } else {
    Say(Level::kOk, "max-map-count", std::to_string(*count));
  }
}

void Judgement::Preload() {
  std::optional<Failure> failure;
  if (const Failure* absent = FailureOf(library_)) {
    failure = *absent;
  } else {
    failure = CheckPreloadVersion(std::get<PreloadLibrary>(library_));
  }
  if (failure.has_value()) {
    CannotRun();
    // The failure's own remedy is in its text, behind the semicolon.
    const size_t end = failure->text.rfind("; ");
    Say(Level::kFail, "preload", failure->text.substr(0, end), failure->text.substr(end + 2));
    return;
  }
  const PreloadLibrary& library = std::get<PreloadLibrary>(library_);
  std::string fact = library.path + " of version " + library.version;
  if (library.reach == Reach::kOwnerOnly) {
    fact += "; other users cannot read it there: 'run' gives them a copy, 'run --pager' cannot";
  }
  Say(Level::kOk, "preload", fact);
}

std::string_view LevelName(Level level) {
  switch (level) {
    case Level::kOk:
      return "ok";
    case Level::kWarn:
      return "warn";
    case Level::kFail:
      return "fail";
  }
  return "unknown";
}

}  // namespace

ExitStatus Diagnosis::status() const {
  if (mode == ExpectedMode::kNone) return ExitStatus::kCannotRun;
  const bool full = mode == ExpectedMode::kUffd && frames == ExpectedFrames::kHuge;
  return full ? ExitStatus::kOk : ExitStatus::kDegraded;
}

std::string Diagnosis::summary() const {
  if (mode == ExpectedMode::kNone) return "hostmm cannot run here";
  const std::string_view mode_text =
      mode == ExpectedMode::kUffd ? "uffd mode" : "native mode (no faults seen)";
  const std::string_view frames_text =
      frames == ExpectedFrames::kHuge ? "huge frames" : "base frames (collapsed when full)";
  return std::string(mode_text) + " on " + std::string(frames_text);
}

Diagnosis Judge(const HostFeatures& host, const OrFailure<PreloadLibrary>& library) {
  return Judgement(host, library).Run();
}

std::string DiagnosisText(const Diagnosis& diagnosis) {
  std::string text;
  for (const Finding& finding : diagnosis.findings) {
    char head[32];
    std::snprintf(head, sizeof(head), "%-5s %-15s ", LevelName(finding.level).data(),
                  finding.thing.c_str());
    text.append(head).append(OneLine(finding.fact));
    if (!finding.remedy.empty()) text.append("  -> ").append(finding.remedy);
    text.append("\n");
  }
  return text + "hostmm " HOSTMM_VERSION ": " + diagnosis.summary() + "\n";
}

std::string DiagnosisJson(const Diagnosis& diagnosis) {
  std::vector<JsonObject> findings;
  for (const Finding& finding : diagnosis.findings) {
    JsonObject object;
    object.Add("level", LevelName(finding.level));
    object.Add("thing", finding.thing);
    object.Add("fact", finding.fact);
    object.Add("remedy", finding.remedy);
    findings.push_back(std::move(object));
  }
  JsonObject report;
  report.Add("version", HOSTMM_VERSION);
  report.Add("status", ToInt(diagnosis.status()));
  report.Add("summary", diagnosis.summary());
  report.Add("granule_bytes", kGranuleBytes);
  report.Add("findings", findings);
  return report.text() + "\n";
}

int RunDoctor(const DoctorOptions& options) {
  const Diagnosis diagnosis = Judge(ProbeHost(), FindPreloadLibrary());
  const std::string text =
      options.format == OutputFormat::kJson ? DiagnosisJson(diagnosis) : DiagnosisText(diagnosis);
  std::fputs(text.c_str(), stdout);
  return ToInt(diagnosis.status());
}

}  // namespace hostmm
