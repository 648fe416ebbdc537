// benchmarks/native_mapping.h
//
// Whether a range of the calling process is mapped as the kernel alone would map it: all of it, by
// entries as large as the frames, and with no userfaultfd modes that trap what is present. That is
// the state in which a freeze must find a region to be a freeze of it, and the one to which a
// region must return when its last snapshot has gone.
//
// Source:  /proc/self/smaps, the kernel's word: ShmemPmdMapped, *_Hugetlb or Rss; VmFlags "ui" and
//          "uw" (minor and write-protect tracking).
// Units:   kB as the kernel prints them; bytes elsewhere. Threads: any.
// Errors:  end the program, see driver_steps.h.
#ifndef HOSTMM_BENCHMARKS_NATIVE_MAPPING_H_
#define HOSTMM_BENCHMARKS_NATIVE_MAPPING_H_

#include <cstdint>

#include "benchmarks/plain_frames.h"

namespace hostmm::benchmarks {

struct NativeMapping {
  uint64_t mapped_kb;  // by entries of the frames' size
  bool tracked;
};

NativeMapping LookAtMapping(const volatile uint8_t* at, uint64_t bytes, Frames frames);

// Calls `touch` until all of the range is mapped natively, as seen twice in a row: what undoes a
// snapshot in this process comes from the pager, and may still be on its way at the first look.
// Ends the program if that does not come about within twenty seconds.
template <class Touch>
void AwaitNativeMapping(const volatile uint8_t* at, uint64_t bytes, Frames frames, Touch touch);

// Of the above: how often it has looked, and for how long.
class Looks {
 public:
  Looks();
  // True when the range has been native at two looks, 10 ms apart.
  bool Enough(const NativeMapping& look, uint64_t bytes);

 private:
  uint64_t deadline_ns_;
  int in_a_row_ = 0;
};

template <class Touch>
void AwaitNativeMapping(const volatile uint8_t* at, uint64_t bytes, Frames frames, Touch touch) {
  Looks looks;
  do {
    touch();
  } while (!looks.Enough(LookAtMapping(at, bytes, frames), bytes));
}

}  // namespace hostmm::benchmarks

#endif  // HOSTMM_BENCHMARKS_NATIVE_MAPPING_H_
