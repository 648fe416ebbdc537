#include "runtime/cli/command_process.h"

#include <elf.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

namespace hostmm {
namespace {

// What a shell searches when PATH is not set.
constexpr std::string_view kDefaultPath = "/usr/local/bin:/usr/bin:/bin";

Failure ExecFailure(const std::string& name, int error) {
  if (error == ENOENT || error == ENOTDIR) {
    return MakeFailure(ExitStatus::kNotFound, name, "command not found",
                       "check the name, PATH and the interpreter of a script");
  }
  if (error == E2BIG) {
    return MakeFailure(ExitStatus::kNotExecutable, name, "arguments and environment are too long",
                       "shorten them");
  }
  return MakeFailure(ExitStatus::kNotExecutable, name, "cannot be executed: " + ErrnoText(error),
                     "check its permissions and format (ls -l, file)");
}

Failure ForkFailure(int error) {
  if (error == EAGAIN) {
    return MakeFailure(ExitStatus::kLimitTooLow, "fork", "the limit of processes is reached",
                       "raise 'ulimit -u' or the pids limit of the control group");
  }
  return MakeFailure(ExitStatus::kInternal, "fork", ErrnoText(error), "");
}

// RETURNS 0 if `file` is a regular file that we may execute, else an errno.
int WhyNotExecutable(const std::string& file) {
  struct stat info = {};
  if (stat(file.c_str(), &info) != 0) return errno;
  if (S_ISDIR(info.st_mode)) return EISDIR;
  if (!S_ISREG(info.st_mode)) return EACCES;
  return faccessat(AT_FDCWD, file.c_str(), X_OK, AT_EACCESS) == 0 ? 0 : errno;
}

template <class T>
bool ReadAt(const UniqueFd& fd, off_t offset, T* value) {
  return pread(fd.get(), value, sizeof(*value), offset) == static_cast<ssize_t>(sizeof(*value));
}

bool HasInterpreter(const UniqueFd& fd, const Elf64_Ehdr& header) {
  for (unsigned i = 0; i < header.e_phnum; ++i) {
    Elf64_Phdr segment;
    const off_t offset = static_cast<off_t>(header.e_phoff + i * sizeof(segment));
    if (!ReadAt(fd, offset, &segment)) return false;
    if (segment.p_type == PT_INTERP) return true;
  }
  return false;
}

std::vector<char*> Pointers(std::span<const std::string> words) {
  std::vector<char*> pointers;
  pointers.reserve(words.size() + 1);
  // exec takes char* but writes nothing.
  for (const std::string& word : words) pointers.push_back(const_cast<char*>(word.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

OrFailure<std::string> FindCommand(const std::string& name, std::string_view path_variable) {
  if (name.find('/') != std::string::npos) {
    const int error = WhyNotExecutable(name);
    if (error == 0) return name;
    return ExecFailure(name, error);
  }
  if (path_variable.empty()) path_variable = kDefaultPath;
  int first_refusal = ENOENT;
  for (size_t start = 0; start <= path_variable.size();) {
    const size_t colon = std::min(path_variable.find(':', start), path_variable.size());
    std::string folder(path_variable.substr(start, colon - start));
    if (folder.empty()) folder = ".";  // an empty entry means the working directory
    const std::string file = folder + "/" + name;
    const int error = WhyNotExecutable(file);
    if (error == 0) return file;
    if (error == EACCES && first_refusal == ENOENT) first_refusal = error;
    start = colon + 1;
  }
  return ExecFailure(name, first_refusal);
}

std::string WhyNotPreloadable(const std::string& file) {
  struct stat info = {};
  const UniqueFd fd(open(file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.ok() || fstat(fd.get(), &info) != 0) return "";  // execute-only: the loader decides
  const bool changes_user = (info.st_mode & S_ISUID) != 0 && info.st_uid != geteuid();
  const bool changes_group = (info.st_mode & S_ISGID) != 0 && info.st_gid != getegid();
  if (changes_user || changes_group) return "is a set-uid or set-gid program";
  Elf64_Ehdr header;
  if (!ReadAt(fd, 0, &header) || std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) return "";
  if (header.e_ident[EI_CLASS] != ELFCLASS64) return "is not a 64-bit program";
  if (!HasInterpreter(fd, header)) return "is statically linked";
  return "";
}

OrFailure<RunningCommand> StartCommand(const std::string& file,
                                       std::span<const std::string> arguments,
                                       std::span<const std::string> environment,
                                       const ForwardedSignals& signals) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return MakeFailure(ExitStatus::kLimitTooLow, "pipe", ErrnoText(errno), "raise 'ulimit -n'");
  }
  const UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  const std::vector<char*> argv = Pointers(arguments);
  const std::vector<char*> envp = Pointers(environment);
  const pid_t pid = fork();
  if (pid < 0) return ForkFailure(errno);
  if (pid == 0) {
    signals.RestoreMask();
    // With a slash in `file` this searches nothing; it runs a script without "#!" with the shell,
    // as people expect.
    execvpe(file.c_str(), argv.data(), envp.data());
    const int error = errno;
    [[maybe_unused]] const ssize_t told = write(write_end.get(), &error, sizeof(error));
    _exit(ToInt(ExitStatus::kNotExecutable));
  }
  write_end.reset();
  UniqueFd pidfd = OpenPidfd(pid);
  int error = 0;
  if (read(read_end.get(), &error, sizeof(error)) == sizeof(error)) {
    waitpid(pid, nullptr, 0);
    return ExecFailure(arguments.front(), error);
  }
  return RunningCommand{pid, std::move(pidfd)};
}

int ShellStatus(int wait_status) {
  return WIFSIGNALED(wait_status) ? kSignalStatusBase + WTERMSIG(wait_status)
                                  : WEXITSTATUS(wait_status);
}

UniqueFd OpenPidfd(pid_t pid) {
  return UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
}

}  // namespace hostmm
