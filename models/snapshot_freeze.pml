/* The freeze of a file, beside processes that write it, map it, fork, leave and die: what is order
 * of events in runtime/snapshot/freezer.h, snapshots.h and runtime/guest/holds.h.
 *
 * Processes: for each of the N guests a program thread (Program) and an agent (Agent), in
 *            freeze_guest.pml. One pager, in freeze_pager.pml. The world (init) kills guests, and
 *            judges what is left when nothing moves.
 * Memory:    one page of one file, which a guest may map at WINDOWS addresses. What a first write
 *            brings about is one step here (snapshot_write.pml has its parts), and so is losing
 *            the snapshots (snapshot_death.pml).
 * Frames:    small ones, or HUGETLB: write-protected from outside instead of zapped.
 * Numbers:   how often anything may happen is bounded (TAKES, FORKS, MAPS, UNMAPS, LEAVES, KILLS);
 *            who does it and when is not, nor how late an agent is.
 * Errors:    an assertion fails, or something waits for ever. README.md says what each BUG_ takes
 *            away, and what breaks then.
 */

#define N 3

#ifndef RUNNING
#define RUNNING 2
#endif
/* How many of these map the file at the start, each at its first window. */
#ifndef MAPPING
#define MAPPING RUNNING
#endif
#ifndef WINDOWS
#define WINDOWS 1
#endif
#ifndef TAKES
#define TAKES 1
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
#ifndef LEAVES
#define LEAVES 0
#endif
#ifndef KILLS
#define KILLS 0
#endif

/* Guest to pager. */
#define kForkIntent 1 /* value = child */
#define kFreezeDone 2 /* value = number of the kFreeze */
#define kMap 3        /* value = window */
#define kUnmap 4      /* value = window */
#define kAttach 5     /* value = whether the child has registered itself for a freeze */
/* Pager to agent. */
#define kFreeze 6     /* value = its number */
#define kThaw 7

#define kThawed 0
#define kFreezing 1
#define kFrozen 2

#define At(g, w) ((g) * WINDOWS + (w))

/* ---- the truth: processes and the kernel's own tables ---- */
bool used[N];                /* the slot has or had a process: slots are not used again */
bool alive[N];
bool runs[N];                /* code of its program does; not between fork and the child's attach */
bool held[N];                /* somebody has the guest's end of its channel */
byte parent[N];              /* 1 + who has announced this child and not forked it yet, or 0 */
bool there[N * WINDOWS];     /* the kernel has the mapping */
bool mapped[N * WINDOWS];    /* and the program its address */
bool tracked[N * WINDOWS];   /* registered: whatever is not mapped comes to the pager */
bool native[N * WINDOWS];    /* mapped writable */
byte fault[N];               /* 1 + the window at which its program's thread sleeps, or 0 */
bool unread[N];              /* a child whose announcement the pager has not read */

/* ---- guests ---- */
bool lock[N];
bool marked[N * WINDOWS];    /* the library knows that it is frozen */
bool answered[N];
bit answer[N];               /* to kMap: frozen */
chan channel[N] = [4] of { byte, byte };
chan orders[N] = [6] of { byte, byte };

/* ---- the pager ---- */
bool known[N];
bool attached[N];            /* the pager has its userfaultfd */
bool in_tables[N * WINDOWS];
bool knows[N];               /* as the pager sees it, its library has marked all windows */
byte sent[N];                /* number of the last kFreeze to this guest (of all, in the pager) */
byte told[N];                /* the same, if an answer to it counts, or 0 */
bool waiting[N];             /* has not been frozen yet */
byte thaws[N];               /* how often it stands in the queue of those who are to be thawed */
#ifdef HUGETLB
bool protecting[N];          /* is to be write-protected before the pager does anything else */
#endif
byte state;
byte snapshots;              /* of the file, not lost */
bool shared;                 /* one of them shares the page with the live file */
bool unwatched;              /* somebody maps the file and is no guest any more */

byte takes = TAKES;
byte forks = FORKS;
byte maps = MAPS;
byte unmaps = UNMAPS;
byte leaves = LEAVES;
byte kills = KILLS;

#if WINDOWS == 2
#define Any(what, g) (what[At(g, 0)] || what[At(g, 1)])
#define Each(g, do) do(At(g, 0)); do(At(g, 1))
#else
#define Any(what, g) (what[g])
#define Each(g, do) do(g)
#endif

/* Nobody writes unseen where a snapshot shares the page. Until the pager has read of a fork it
 * cannot know that there is something to be lost (STRICT: as if it had to). */
#define WritesUnseen(g, w) \
  (alive[g] && runs[g] && mapped[At(g, w)] && (native[At(g, w)] || !tracked[At(g, w)]))
#ifdef STRICT
#define Excused(g) (false)
#else
#define Excused(g) (unread[g])
#endif
#define Good(g, w) (!WritesUnseen(g, w) || Excused(g))
#define Promise(w) (Good(0, w) && Good(1, w) && Good(2, w))

inline CheckPromise() {
  assert(!shared || Promise(0));
#if WINDOWS == 2
  assert(!shared || Promise(1))
#endif
}

#include "freeze_guest.pml"
#include "freeze_pager.pml"

/* ---- the world ---- */

inline CloseIfParent(g, c) {
  if
  :: parent[c] == g + 1 -> parent[c] = 0; held[c] = false; unread[c] = false
  :: else
  fi
}

/* A parent that dies within fork takes its announced child with it. */
inline Kill(g) {
  kills--;
  alive[g] = false;
  held[g] = false;
  lock[g] = false;
  fault[g] = 0;
  answered[g] = false;
  Each(g, Gone);
  do
  :: nempty(orders[g]) -> orders[g]?_,_
  :: empty(orders[g]) -> break
  od;
  CloseIfParent(g, 1);
  CloseIfParent(g, 2)
}

/* Nothing moves: every freeze has ended, every thread goes on, and what is not frozen is native. */
#define Rests(g) \
  (fault[g] == 0 && !lock[g] && !waiting[g] && known[g] == (alive[g] && held[g]) && \
   (state == kFrozen || !(Any(tracked, g) || Any(marked, g)) || !held[g]))

init {
  byte i;
  atomic {
    do
    :: i < RUNNING ->
       used[i] = true;
       alive[i] = true;
       runs[i] = true;
       held[i] = true;
       known[i] = true;
       attached[i] = true;
       if
       :: i < MAPPING ->
          there[At(i, 0)] = true;
          mapped[At(i, 0)] = true;
          native[At(i, 0)] = true;
          in_tables[At(i, 0)] = true
       :: else
       fi;
       i++
    :: else -> break
    od;
    i = 0;
    run Program(0);
    run Program(1);
    run Program(2);
    run Agent(0);
    run Agent(1);
    run Agent(2);
    run Pager()
  }
  do
  :: atomic { kills > 0 && alive[0] -> Kill(0) }
  :: atomic { kills > 0 && alive[1] -> Kill(1) }
  :: atomic { kills > 0 && alive[2] -> Kill(2) }
  :: timeout ->
     assert(state != kFreezing);
     assert(Rests(0) && Rests(1) && Rests(2));
     break
  od
}
