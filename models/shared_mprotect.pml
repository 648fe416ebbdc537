/* The protocol of a shared mprotect, beside guests that map, unmap, fork and die: what is order of
 * events in runtime/protocol.h, board.h, shared_operations.h and guest/. This file has what both
 * sides share, and the world; guest.pml and pager.pml have the sides.
 *
 * Processes: for each of the N guests an application thread (App) and an agent (Agent); guest 0 may
 *            have a second thread (SECOND_THREAD), which maps and forks while the first waits for
 *            its call. One pager. init kills guests, and judges what is left when nothing moves.
 * Memory:    each guest has one channel to the pager, first in, first out. The board (board_*) is
 *            written by the pager and read by agents; a slot (ack_*) by its guest's agent. What is
 *            true of processes and of the kernel's own tables, whoever knows it, is "the truth".
 * Numbers:   a protection is kReadOnly or kReadWrite; the PAGES pages of one file are protected one
 *            by one. How often anything may happen is bounded (CALLS, FORKS, MAPS, UNMAPS, KILLS),
 *            who does it and when is not.
 * Errors:    an assertion fails, or an end state is invalid: a call that did not return, a guest
 *            that waits for a lock. README.md says what each BUG_ takes away, and what breaks then.
 */

#define N 3
#define THREADS (N + 1) /* thread N is the second thread of guest 0 */

#ifndef PAGES
#define PAGES 1
#endif
#ifndef CALLS
#define CALLS 1
#endif
#ifndef FORKS
#define FORKS 0
#endif
#ifndef MAPS
#define MAPS 0
#endif
#ifndef UNMAPS
#define UNMAPS 0
#endif
#ifndef KILLS
#define KILLS 0
#endif
/* How many of the guests run at the start, and how many of these map the file already. */
#ifndef RUNNING
#define RUNNING 2
#endif
#ifndef MAPPING
#define MAPPING RUNNING
#endif

#define kReadOnly 0
#define kReadWrite 1
#define kNoPage PAGES /* the order says that nothing is open */

#define kMap 1
#define kUnmap 2
#define kForkIntent 3 /* first = child */
#define kForAll 4     /* first = thread, second = page, third = protection */

/* What one writer does at once, because nobody else writes. */
#ifdef BUG_TWO_PAGERS
#define ALONE
#else
#define ALONE atomic
#endif

/* Words of the board are written and read one after the other where that can matter. */
#ifdef WORDS
#define WRITING
#else
#define WRITING atomic
#endif

/* ---- the truth: processes and the kernel's own tables ---- */
bool alive[N];
bool mapped[N];
bool mapping[N];          /* inside mmap: mapped, the answer of the pager not yet applied */
bit kernel[N * PAGES];    /* kernel's protection of guest * PAGES + page */
bool held[N];             /* somebody has the guest's end of its channel */
byte announced[N];        /* 1 + the child whose channel this guest holds until the fork, or 0 */
bool reserved[N];         /* the slot is taken, until the pager has forgotten the guest */
bool app_up[THREADS];
bool agent_up[N];
byte life[N];             /* which life of this slot: a reply goes to a socket, not to a slot */

/* ---- guests ---- */
bool lock[N];
byte sent[N];             /* packets on the channel */
bool woken[N];            /* the bell, or a kWatch, as the agent sees it */
chan channel[N] = [4] of { byte, byte, byte, byte };
byte handled[N];          /* the agent's last sequence number */
bool answered[N];         /* the answer to kMap ... */
bit answer[N * PAGES];    /* ... and what it says */
bool returned[THREADS];   /* the answer to kForAll */

/* ---- the board ---- */
byte board_sequence;      /* 0: none, or being written */
byte board_page;
bit board_access;
byte ack_sequence[N];
byte ack_packets[N];

/* ---- the pager's tables ---- */
bool known[N];
bool in_tables[N];        /* maps the file opt-in */
byte received[N];
byte uses;                /* use count of the shared table */
bool table_there;
bit access[PAGES];        /* the protection that all mappers have, or are getting */
bool open;                /* an operation is open: */
byte sequence;
byte open_page;
byte caller;
byte caller_life;
bool member[N];
chan waiting = [3] of { byte, byte, byte, bit }; /* thread, life, page, protection */

/* ---- how much may happen ---- */
byte calls = CALLS;
byte forks = FORKS;
byte maps = MAPS;
byte unmaps = UNMAPS;
byte kills = KILLS;

#define OwnerOf(t) (t == N -> 0 : t)
#define At(g, p) ((g) * PAGES + (p))

/* Guest g has of page p the protection that the tables say. */
#define Enforced(g, p) \
  (!mapped[g] || mapping[g] || (open && open_page == p) || kernel[At(g, p)] == access[p])

/* The promise. Where no operation is open, the last one has returned or is about to, and nobody may
 * have another protection: none may write after "read only", nor be refused after "read-write". */
inline CheckPromise() {
  assert(Enforced(0, 0) && Enforced(1, 0) && Enforced(2, 0));
#if PAGES == 2
  assert(Enforced(0, 1) && Enforced(1, 1) && Enforced(2, 1))
#endif
}

/* A use count is the number of those who use it, and what has users is there (invariant I5). */
inline CheckUses() {
  assert(uses == in_tables[0] + in_tables[1] + in_tables[2]);
  assert(uses == 0 || table_there)
}

/* Who has said all that it had to say is in the tables if it maps the file, and else is not. */
inline CheckTables(g) {
  assert(!alive[g] || lock[g] || nempty(channel[g]) || in_tables[g] == mapped[g])
}

inline SetKernel(g, what) {
  kernel[At(g, 0)] = what;
#if PAGES == 2
  kernel[At(g, 1)] = what;
#endif
}

/* to[i] = from[j], and so on for each page. */
#if PAGES == 2
#define CopyPages(to, i, from, j) to[i] = from[j]; to[i + 1] = from[j + 1]
#else
#define CopyPages(to, i, from, j) to[i] = from[j]
#endif

#include "guest.pml"
#include "pager.pml"

/* ---- the world ---- */

inline Kill(g) {
  kills--;
  alive[g] = false;
  mapped[g] = false;
  mapping[g] = false;
  lock[g] = false;
  held[g] = false;
  answered[g] = false;
  SetKernel(g, 0);
  if
  :: announced[g] != 0 -> held[announced[g] - 1] = false; announced[g] = 0
  :: else
  fi
}

/* Nothing moves: what must be true of a guest then. */
#define Rests(g) \
  (known[g] == alive[g] && reserved[g] == alive[g] && in_tables[g] == mapped[g] && !lock[g] && \
   !member[g])

init {
  byte i;
  atomic {
    access[0] = kReadWrite;
#if PAGES == 2
    access[1] = kReadWrite;
#endif
    do
    :: i < RUNNING ->
       alive[i] = true;
       known[i] = true;
       held[i] = true;
       reserved[i] = true;
       if
       :: i < MAPPING ->
          mapped[i] = true;
          in_tables[i] = true;
          table_there = true;
          uses++;
          SetKernel(i, kReadWrite)
       :: else
       fi;
       i++
    :: else -> break
    od;
    i = 0;
    run App(0);
    run App(1);
    run App(2);
#ifdef SECOND_THREAD
    run App(N);
#endif
    run Agent(0);
    run Agent(1);
    run Agent(2);
    run Pager();
#ifdef BUG_TWO_PAGERS
    run SecondPager();
#endif
  }
  do
  :: atomic { kills > 0 && alive[0] -> Kill(0) }
  :: atomic { kills > 0 && alive[1] -> Kill(1) }
  :: atomic { kills > 0 && alive[2] -> Kill(2) }
  :: timeout ->
     assert(!open && empty(waiting));
     assert(Rests(0) && Rests(1) && Rests(2));
     break
  od
}
