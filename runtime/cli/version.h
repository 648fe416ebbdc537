// The version of this build, and the mark by which a preload library tells its own.
//
// The preload library, the pager and the command line come from one build and must be used
// together. The library holds HOSTMM_PRELOAD_MARK as text (it has no other way to be asked without
// being loaded), `hostmm run` and `hostmm doctor` look for it in the file.
#ifndef HOSTMM_RUNTIME_CLI_VERSION_H_
#define HOSTMM_RUNTIME_CLI_VERSION_H_

// Macros, because the mark is put together by the preprocessor: the library has no code to do it.
#define HOSTMM_VERSION "0.1.0"
#define HOSTMM_PRELOAD_MARK_PREFIX "hostmm-preload-version="
#define HOSTMM_PRELOAD_MARK HOSTMM_PRELOAD_MARK_PREFIX HOSTMM_VERSION ";"

#endif  // HOSTMM_RUNTIME_CLI_VERSION_H_
