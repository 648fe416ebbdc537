// A preload library that hooks nothing: it carries the version mark that `hostmm run` looks for.

#include "runtime/cli/version.h"

extern "C" {
[[gnu::used, gnu::retain, gnu::visibility("default")]] extern const char hostmm_test_mark[] =
    HOSTMM_PRELOAD_MARK;
}
