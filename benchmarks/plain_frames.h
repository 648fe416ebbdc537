// benchmarks/plain_frames.h
//
// Shared memory as a careful program gets it without hostmm, in three sizes of frames: 4 KiB (a
// memfd), 2 MiB of a private tmpfs with huge=always (needs root, is attached nowhere), 2 MiB of
// hugetlb (needs pages). Mapped where the kernel can do most for it: at a multiple of 1 GiB, where
// processes share hugetlb's PMD tables too.
//
// Units: bytes. Errors: end the program, see driver_steps.h. Threads: any.
#ifndef HOSTMM_BENCHMARKS_PLAIN_FRAMES_H_
#define HOSTMM_BENCHMARKS_PLAIN_FRAMES_H_

#include <cstdint>
#include <string_view>

namespace hostmm::benchmarks {

enum class Frames { kBase, kHuge, kHugetlb };

// `name` is "base", "huge" or "hugetlb".
Frames FramesOption(std::string_view name);

// What has to be touched once so that all of a mapping is mapped.
constexpr uint64_t FrameBytes(Frames frames) {
  return frames == Frames::kBase ? 4096 : uint64_t{2} << 20;
}

// Returns the descriptor of a new file of `bytes`, empty.
int MakeFile(Frames frames, uint64_t bytes);

// Maps all of it, readable and writable, at a multiple of 1 GiB.
uint8_t* MapFile(int file, uint64_t bytes);

}  // namespace hostmm::benchmarks

#endif  // HOSTMM_BENCHMARKS_PLAIN_FRAMES_H_
