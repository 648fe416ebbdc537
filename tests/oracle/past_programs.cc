#include "tests/oracle/past_programs.h"

#include <sys/mman.h>

namespace hostmm::oracle {
namespace {

constexpr uint32_t kReadWrite = PROT_READ | PROT_WRITE;

// mmap of PROT_NONE with MAP_LOCKED: there is nothing to fill, and that is no error.
const Program kLockedWithoutAccess = {
    .operations = {MapOp{0, 0, 0, 2902, 0, kAnonymousShared, kAnywhere, PROT_NONE, kLocked, 0}},
};

// MREMAP_DONTUNMAP with another length is EINVAL, also where the mapping could grow.
const Program kKeepsOldAndGrows = {
    .operations = {MapOp{0, 0, 0, 2560, 0, kAnonymousShared, kFixed, kReadWrite, 0, 0},
                   RemapOp{0, 0, 0, 2560, 3072, 1, 0, kKeepOld, kStraight}, WriteOp{0, 0, 0, 0}},
};

// A region moved in parts, then named as a whole without a change.
const Program kSameLengthOfTwoParts = {
    .operations = {MapOp{0, 1, 0, 2232, 0, kAnonymousShared, kAnywhere, kReadWrite, 0, 0},
                   RemapOp{0, 1, 1389, 843, 843, 0, 0, kMayMove, kStraight},
                   RemapOp{0, 1, 0, 2048, 2048, 0, 0, kStay, kStraight}, FillOp{0, 1, 0, 1897},
                   ScanOp{0, 1, 0, 2232}},
};

// A second window that reaches behind the end of the file, touched in the file's last block: what
// lies behind the end stays SIGBUS, however large the frame is.
const Program kWindowBehindTheEnd = {
    .operations = {MapOp{0, 2, 0, 2049, 0, kAnonymousShared, kFixed, kReadWrite, 0, 0},
                   RemapOp{0, 2, 1024, 1025, 2048, 1, 0, kDuplicateTo, kStraight},
                   ReadOp{0, 1, 1024, 0}, ReadOp{0, 1, 1025, 0}, WriteOp{0, 1, 1100, 0}},
};

// The same where the mapping itself has grown.
const Program kGrownBehindTheEnd = {
    .operations = {MapOp{0, 2, 0, 2049, 0, kAnonymousShared, kFixed, kReadWrite, 0, 0},
                   RemapOp{0, 2, 0, 2049, 3072, 1, 0, kStay, kStraight},
                   AdviseOp{0, 2, 0, 3072, MADV_HUGEPAGE, kStraight}, FillOp{0, 2, 0, 2049},
                   ReadOp{0, 2, 2048, 0}, WriteOp{0, 2, 2100, 0}},
};

// A child of _Fork, made while its parent's agent collapses blocks and holds the lock of the guest
// side: the child has the lock as it was, and nobody who would release it. A race, so many times.
Program BareForksWhileTheAgentWorks() {
  constexpr uint32_t kPages = 5120;
  Program program = {.objects = {{kMemfd, kPages * kPage}}};
  program.operations = {MapOp{0, 0, 0, kPages, 0, kFirstObject, kFixed, kReadWrite, 0, 0}};
  for (int i = 0; i < 40; ++i) {
    // Small pages again, and all of them there: that is what the agent collapses.
    program.operations.push_back(PunchOp{0, 0, 0, kPages});
    program.operations.push_back(FillOp{0, 0, 0, kPages});
    for (int j = 0; j < 10; ++j) {
      program.operations.push_back(ForkOp{0, kBareFork});
      program.operations.push_back(AdviseOp{1, 0, 0, 512, MADV_DOFORK, kStraight});
      program.operations.push_back(KillOp{0, 1});
    }
  }
  return program;
}

// mremap of a mapping and the one behind it, which differ in protection: moved by Linux 6.17 and
// later, refused when it is registered with userfaultfd.
const Program kMovesTwoMappings = {
    .operations = {MapOp{0, 2, 0, 3502, 0, kAnonymousShared, kFixed, kReadWrite, 0, 0},
                   WriteOp{0, 2, 7, 0}, ProtectOp{0, 2, 100, 1, PROT_READ, kStraight},
                   RemapOp{0, 2, 0, 2560, 2560, 3, 0, kMoveTo, kStraight}, ReadOp{0, 3, 7, 0}},
};

// mremap of a mapping and of nothing behind it, which is the same for the kernel.
const Program kMovesAHole = {
    .operations = {MapOp{0, 2, 0, 2849, 0, kAnonymousShared, kFixed, kReadWrite, 0, 0},
                   RemapOp{0, 2, 0, 3584, 3584, 3, 0, kMoveTo, kStraight}},
};

// mremap of what hostmm has as two regions, because a part of it is not for children.
const Program kMovesTwoRegions = {
    .operations = {MapOp{0, 2, 0, 3072, 0, kAnonymousShared, kFixed, kReadWrite, 0, 0},
                   WriteOp{0, 2, 700, 0}, WriteOp{0, 2, 2000, 0},
                   AdviseOp{0, 2, 0, 1536, MADV_DONTFORK, kStraight},
                   RemapOp{0, 2, 512, 2560, 2560, 1, 0, kMoveTo, kStraight}, ReadOp{0, 1, 188, 0},
                   ReadOp{0, 1, 1488, 0}, WriteOp{0, 1, 1, 0}},
};

// mremap of two mappings of a segment: refused on plain Linux.
const Program kMovesTwoMappingsOfASegment = {
    .objects = {{kSysV, 10486760}},
    .operations = {MapOp{0, 3, 0, 0, 0, kFirstObject, kAnywhere, kReadWrite, 0, 0},
                   AdviseOp{0, 3, 0, 2048, MADV_SEQUENTIAL, kStraight},
                   RemapOp{0, 3, 2, 2559, 2559, 1, 0, kKeepOldTo, kStraight}},
};

// The same of a file, which is not registered. hostmm had something to say.
const Program kMovesTwoMappingsOfAFile = {
    .objects = {{kMemfd, 16u << 20}},
    .operations = {MapOp{0, 3, 0, 3167, 0, kFirstObject, kFixed, kReadWrite, 0, 0},
                   ProtectOp{0, 3, 413, 2560, PROT_READ, kStraight},
                   RemapOp{0, 3, 1000, 2049, 2049, 4, 0, kMoveTo, kStraight}},
};

}  // namespace

const std::vector<PastProgram>& PastPrograms() {
  static const std::vector<PastProgram> programs = {
      {"MAP_LOCKED without access", Verdict::kAgrees, kLockedWithoutAccess},
      {"MREMAP_DONTUNMAP and growth", Verdict::kAgrees, kKeepsOldAndGrows},
      {"two parts of a region, same length", Verdict::kAgrees, kSameLengthOfTwoParts},
      {"a window behind the end", Verdict::kAgrees, kWindowBehindTheEnd},
      {"grown behind the end", Verdict::kAgrees, kGrownBehindTheEnd},
      {"bare forks", Verdict::kAgrees, BareForksWhileTheAgentWorks()},
      {"mremap of two mappings", Verdict::kAgrees, kMovesTwoMappings},
      {"mremap of two mappings of a file", Verdict::kAgrees, kMovesTwoMappingsOfAFile},
      {"mremap of two regions", Verdict::kDiffers, kMovesTwoRegions},
      {"mremap of two mappings of a segment", Verdict::kAgrees, kMovesTwoMappingsOfASegment},
      {"mremap of a mapping and a hole", Verdict::kDiffers, kMovesAHole},
  };
  return programs;
}

}  // namespace hostmm::oracle
