// `hostmm image`: checks images and says what they are of; makes the memory itself of them.
//
// Reads each file once, to its end. Nothing of a record is used before its hash was found right; a
// RAW that cannot be finished is removed.
#ifndef HOSTMM_RUNTIME_CLI_IMAGE_COMMAND_H_
#define HOSTMM_RUNTIME_CLI_IMAGE_COMMAND_H_

#include <string>

#include "runtime/cli/options.h"
#include "runtime/image/image_format.h"

namespace hostmm {

// RETURNS an ExitStatus; kBadImage if a file is not whole.
int RunImage(const ImageOptions& options);

// One line about a whole image.
std::string DescribeImage(const ImageHeader& header, const ImagePosition& position);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_IMAGE_COMMAND_H_
