// Small files of /proc and /sys: whole content, one number, one "Name:  N kB" line.
//
// Units:  what the file has; KilobytesOf multiplies by 1024.
// Errors: nullopt for a file or a line that is absent or of another form. No logging.
#ifndef HOSTMM_RUNTIME_CLI_PROC_FILE_H_
#define HOSTMM_RUNTIME_CLI_PROC_FILE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace hostmm {

std::optional<std::string> ReadProcFile(const std::string& path);

// A file that holds one decimal number.
std::optional<int64_t> ReadProcNumber(const std::string& path);

// The number after "NAME:" at the beginning of a line of `content`.
std::optional<uint64_t> NumberOf(std::string_view content, std::string_view name);

// As above, for lines in kB; RETURNS bytes.
std::optional<uint64_t> KilobytesOf(std::string_view content, std::string_view name);

// VmPTE of a process: the kernel's page tables at the lowest level. nullopt: gone, or a kernel
// thread.
std::optional<uint64_t> PageTableBytesOf(int64_t pid);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_PROC_FILE_H_
