// The layout of the region of pair_writer.
#ifndef HOSTMM_TESTS_CLI_PAIRS_H_
#define HOSTMM_TESTS_CLI_PAIRS_H_

#include <cstddef>

namespace hostmm::test {

inline constexpr size_t kPairs = 1500;
inline constexpr size_t kPairsPage = 4096;
inline constexpr size_t kPairsBytes = size_t{16} << 20;  // more than twice kPairs pages

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_CLI_PAIRS_H_
