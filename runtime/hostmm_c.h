/* hostmm for C: shared memory whose page tables and protection are shared by all processes that ask
 * for it. Each function has the shape of the system call that it stands for.
 *
 * Use:      compile with `pkg-config --cflags --libs hostmm`, or dlopen("libhostmm.so.1"). Programs
 *           that are linked with the library, or run under `hostmm run`, may also call plain mmap,
 *           munmap, mremap, mprotect and madvise on the memory: these symbols are the library's. A
 *           program that uses dlopen must call the hostmm_ functions.
 * Semantics: docs/semantics.md of the project; where it says nothing, those of the system call in
 *           Linux.
 * Units:    bytes. The granule is 2 MiB (hostmm_granule).
 * Errors:   MAP_FAILED or -1 with errno, and hostmm_error() says it in one line. Nothing has been
 *           changed then, unless the function says otherwise.
 * Threads:  every function may be called by any thread at any time, hostmm_close included. None may
 *           be called from a signal handler, except those that are system calls of the same name.
 * fork:     a child has the mappings, and is attached to the same pager, before fork returns in it.
 */
#ifndef HOSTMM_RUNTIME_HOSTMM_C_H_
#define HOSTMM_RUNTIME_HOSTMM_C_H_

#include <stddef.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Flag of mmap beside MAP_SHARED (or MAP_PRIVATE, read-only): share page tables and protection with
 * all who map the same file with this flag. The kernel ignores the bit, so that a program that
 * passes it runs unchanged where hostmm is absent. (Value of the kernel patches of 2023.) */
#ifndef MAP_SHARED_PT
#define MAP_SHARED_PT 0x200000
#endif

/* Beside MAP_SHARED_PT: plain mprotect on the memory is refused with EPERM, only hostmm_mprotect
 * changes its protection, for all. A mapper may be dedicated while others of the file are not. */
#ifndef MAP_SHARED_DEDICATED
#define MAP_SHARED_DEDICATED 0x400000
#endif

/* Beside MAP_PRIVATE | MAP_ANONYMOUS: private memory whose fork costs a freeze of this process's
 * own mapping instead of a copy of its page tables, for programs that fork to have a snapshot. The
 * child has a private view of what was there; both sides may write, neither sees it of the other.
 * Below 8 MiB, and where hostmm is absent, it is plain private memory, which means the same. */
#ifndef MAP_PRIVATE_COW
#define MAP_PRIVATE_COW 0x800000
#endif

struct hostmm_options {
  size_t size;        /* sizeof(struct hostmm_options): for versions to come */
  const char* socket; /* socket of a running pager; NULL: $HOSTMM_SOCKET, else a pager of our own */
  const char* program; /* the hostmm program, to start a pager of our own; NULL: $HOSTMM_PROGRAM,
                          else ../bin/hostmm and ./hostmm beside the library, else PATH */
  const char* frames;  /* of a pager of our own: "auto", "huge", "hugetlb" or "base"; NULL: auto */
};

/* Attaches this process to a pager: the one of `hostmm run` if it runs under it, the one at
 * options->socket, or one that it starts, which ends with the last process that uses it. `options`
 * may be NULL. May be called again; each call wants a hostmm_close. Not needed before hostmm_mmap,
 * which calls it with NULL.
 * ECONNREFUSED: nobody serves the socket. ENOENT: no hostmm program was found. EPROTO: the pager is
 * of another build. EBUSY: this process is attached to another pager. ENAMETOOLONG: the socket's
 * path. EINVAL: options->size or options->frames. ECHILD: the pager could not start, see
 * hostmm_error(). */
int hostmm_open(const struct hostmm_options* options);

/* The last one of as many calls as hostmm_open detaches this process. Its mappings stay, served by
 * the kernel with the protection that they have, and are plain from then on. ENOTCONN: it is not
 * open. */
int hostmm_close(void);

/* mmap. With MAP_SHARED|MAP_SHARED_PT (opt-in): addr, length and offset must be multiples of the
 * granule; addr NULL: a place is chosen. If others have changed the protection of what is mapped,
 * the mapping has that protection, not `prot`, as far as the descriptor allows. Without
 * MAP_SHARED_PT: as mmap of a program that knows nothing of hostmm.
 * EINVAL: an alignment; MAP_SHARED_PT with MAP_PRIVATE and PROT_WRITE; MAP_SHARED_DEDICATED without
 * MAP_SHARED_PT; what mmap says. EACCES: PROT_WRITE and a read-only descriptor. EBADF, ENOMEM,
 * EEXIST, EOVERFLOW: as mmap. ENOTCONN: no pager. ENOSPC: the pager's tables are full. EPERM: the
 * process cannot have an agent thread, or one of its kernel limits forbids it. */
void* hostmm_mmap(void* addr, size_t length, int prot, int flags, int fd, off_t offset);

/* munmap. The caller only; also of parts, down to 4 KiB (hugetlb: 2 MiB). */
int hostmm_munmap(void* addr, size_t length);

/* mremap. The caller only. What is moved or resized is shared again where its new address equals
 * its offset modulo the granule; data and protection stay. */
void* hostmm_mremap(void* old_addr, size_t old_length, size_t new_length, int flags,
                    void* new_addr);

/* mprotect. On opt-in memory: when it returns 0, everybody who maps those pages opt-in has the
 * protection, as do those who map them later; a mapping from a read-only descriptor does without
 * PROT_WRITE. Parts down to 4 KiB (hugetlb: 2 MiB). Concurrent calls take effect in one order for
 * all. On other memory: mprotect.
 * EACCES: PROT_WRITE on memory that the caller has mapped from a read-only descriptor. EINVAL: addr
 * or prot. ENOMEM: a part is not mapped, or a process has no room for one more mapping
 * (vm.max_map_count); then some have the protection and some not: call again. ETIMEDOUT: a process
 * has not done it in 8 s (it is stopped, say); it will before its agent does anything else.
 * ENOTCONN: the pager is gone. */
int hostmm_mprotect(void* addr, size_t length, int prot);

/* madvise. On opt-in memory MADV_DONTNEED is a vote (pages leave the page tables when all mappers
 * have voted; data stays), MADV_REMOVE, MADV_PAGEOUT, MADV_COLD, MADV_WILLNEED, MADV_POPULATE_READ
 * and _WRITE act for all, MADV_HUGEPAGE and MADV_NOHUGEPAGE on all mappings of the range,
 * MADV_GUARD_INSTALL and _REMOVE are refused (EINVAL: a guard is one process's, the table is
 * everybody's). */
int hostmm_madvise(void* addr, size_t length, int advice);

/* The unit of opt-in mappings in bytes: 2 MiB. */
size_t hostmm_granule(void);

/* 1 if the page table that covers addr is one that others may share, 0 if it is this process's own
 * (not opt-in and changed, not aligned, or written by a debugger), -1: ENOMEM nothing that hostmm
 * manages is mapped there; ENOTCONN. */
int hostmm_is_shared(const void* addr);

/* A named region: a file of the pager, as shm_open makes one. oflag: O_RDONLY or O_RDWR, with
 * O_CREAT, O_EXCL. With O_CREAT, `length` is its length (rounded up to the granule) and `mode` says
 * who may open it; without, both are ignored. RETURNS a descriptor (O_CLOEXEC) for hostmm_mmap or
 * mmap; fstat tells the length. The region lives until it is unlinked and nobody maps it, or the
 * pager ends. EINVAL: name is empty, longer than 63 bytes or has a '/', or length is 0. EEXIST,
 * ENOENT, EACCES: as open. ENOSPC: the frames cannot be had. ENOTCONN. */
int hostmm_shm_open(const char* name, int oflag, mode_t mode, size_t length);

/* Removes the name. ENOENT; EACCES: neither the owner nor root. */
int hostmm_shm_unlink(const char* name);

/* A point-in-time snapshot of the whole file of which a part is mapped at addr (managed by hostmm,
 * with frames of the pager's). Everybody who maps it goes on; whoever writes to a page for the
 * first time since waits until the page as it was has been copied. What is seen in a snapshot is
 * the content of one moment between the call and its return. RETURNS a handle: a descriptor
 * (O_CLOEXEC) for the functions below, which may be inherited and passed to other processes. The
 * snapshot goes when its last handle is closed and its last view unmapped. Writes that do not pass
 * the page tables of its mappers are not held: of write(2) to a descriptor of a named region, of
 * plain mappings of one that hostmm does not manage, and of I/O whose pages were pinned before the
 * call (O_DIRECT reads in flight, io_uring fixed buffers): they reach the live memory, and may be
 * seen in the snapshot. ENOMEM: hostmm manages nothing at addr. ENOTSUP: the file is not one of the
 * pager's, addr is in a view, there is no userfaultfd, or a process maps it that cannot be frozen
 * or has left hostmm (hostmm_error names it), or the kernel is older than 6.4. ENOSPC: the pager's
 * tables are full, or the caller's user has three quarters of them. EAGAIN: a process left hostmm
 * meanwhile or is held up in MADV_REMOVE, one that was just forked does not go on, or too many
 * snapshots are being taken. ENOTCONN. */
int hostmm_snapshot(const void* addr);

struct hostmm_snapshot_info {
  size_t size;         /* sizeof(struct hostmm_snapshot_info), set by the caller */
  size_t length;       /* bytes of the file */
  size_t unit;         /* bytes that are copied at once: 4 KiB, or 2 MiB on hugetlb frames */
  size_t copied_bytes; /* of pages that were copied for this and other snapshots of the file */
  size_t pages_copied; /* pages of 4 KiB that differ from the live memory, so far */
  size_t views;        /* mappings of it */
};

/* What there is to know about a snapshot; info may be NULL. Also the way to learn whether what has
 * been read of a view was the snapshot: 0 says that everything read before the call was. EIO: the
 * snapshot is lost (memory for copies has run out, a process left hostmm while it mapped the
 * region, or the pager is gone), hostmm_error() says which. EBADF: no handle. EINVAL: info->size.
 */
int hostmm_snapshot_info(int snapshot, struct hostmm_snapshot_info* info);

/* Maps [offset, offset + length) of the snapshot: prot is PROT_READ, or PROT_READ | PROT_WRITE for
 * a view whose changes stay this mapping's own. addr NULL: a place is chosen, else exactly there
 * (EEXIST). addr, length, offset: multiples of 4 KiB (hugetlb: 2 MiB). Pages that nobody has
 * written since are shared with the live region. munmap, hostmm_munmap: whole or in parts. A forked
 * child has no such mapping; it may map its own. If the snapshot is lost, or hostmm is closed, an
 * access is SIGBUS. EINVAL, ENOMEM, EEXIST: as mmap. EIO: lost. ENOSPC: the pager's tables are
 * full. EBADF: no handle. EPERM: the process has no agent thread. ENOTCONN. */
void* hostmm_snapshot_map(int snapshot, void* addr, size_t length, int prot, off_t offset);

struct hostmm_export {
  size_t size; /* sizeof(struct hostmm_export) */
  int resume;  /* not 0: go on behind the last whole record that the file has */
  int earlier; /* handle of an earlier snapshot of the same region: write only what has changed
                  since; -1: everything */
  void (*progress)(void* arg, size_t done, size_t total); /* bytes of the region; may be NULL.
                         Called by the calling thread, about ten times a second and at the end */
  void* arg;
};

/* Writes an image of the snapshot to fd (a file or a pipe), which the pager does, while everybody
 * goes on writing to the region. Blocks of zeros are left out; every record has a checksum. Format:
 * docs/image_format.md. options NULL: all of it, from the start. RETURNS 0 when all is written (no
 * fsync).
 * EIO: lost. EINVAL: options; earlier is of another region or not earlier; resume on what is no
 * image of this snapshot or no file. EBADF: snapshot, fd. ENOSPC, EPIPE, EFBIG, ...: of the write;
 * what is written is a prefix that can be resumed. ENOTCONN: the pager is gone. */
int hostmm_snapshot_export(int snapshot, int fd, const struct hostmm_export* options);

/* Reads an image into [addr, addr + length), checking it; what the image leaves out is zeroed, or
 * left as it is if the image is incremental (load the earlier ones first). fd: at the start of the
 * image. EILSEQ: damaged, or not whole; what was read before stays. EFBIG: it is longer than
 * length. EINVAL: no image. EBADF, EIO: of read. */
int hostmm_image_load(int fd, void* addr, size_t length);

/* Why the calling thread's last hostmm_ function failed: one line with its arguments. Never NULL;
 * valid until the thread's next call. */
const char* hostmm_error(void);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* HOSTMM_RUNTIME_HOSTMM_C_H_ */
