// benchmarks/driver_steps.h
//
// How a measured program talks to the script that drives it: the program prints one JSON object per
// line when it has reached a step, and waits until the script has sampled /proc and sends a
// newline. Nothing moves in the program between the two, which is what makes the samples
// comparable.
//
// Threads: the calling process's main thread only. Errors: a driver that has gone (end of file on
// stdin) ends the program with status 3, so that none is left behind.
#ifndef HOSTMM_BENCHMARKS_DRIVER_STEPS_H_
#define HOSTMM_BENCHMARKS_DRIVER_STEPS_H_

#include <cstdint>
#include <string>
#include <string_view>

namespace hostmm::benchmarks {

// Prints `json` as a line of its own.
void Report(const std::string& json);

// Prints `json`, then waits for the driver's newline.
void ReportAndWait(const std::string& json);

// Returns the text after "--name=", or `fallback` when no argument has that name.
std::string_view TextOption(int argc, char** argv, std::string_view name,
                            std::string_view fallback);

// As above for an unsigned number. Ends the program with status 2 when it is not one.
uint64_t NumberOption(int argc, char** argv, std::string_view name, uint64_t fallback);

// Prints "PROGRAM: what: strerror(errno)" and ends the program with status 1.
[[noreturn]] void Fail(std::string_view what);

}  // namespace hostmm::benchmarks

#endif  // HOSTMM_BENCHMARKS_DRIVER_STEPS_H_
