/* The freeze of a file, beside processes that write it, map it, fork, leave and die: what is order
 * of events in runtime/snapshot/freezer.h, snapshots.h and runtime/guest/holds.h.
 *
 * Processes: for each of the N guests a program thread (Program) and an agent (Agent). One pager. The
 *            world (init) kills guests, and judges what is left when nothing moves.
 * Memory:    one page of one file, which a guest may map at WINDOWS addresses. What a first write
 *            brings about is one step here (snapshot_write.pml has its parts), and so is losing
 *            the snapshots (snapshot_death.pml).
 * Numbers:   how often anything may happen is bounded (TAKES, FORKS, MAPS, LEAVES, KILLS); who does
 *            it and when is not, nor how late an agent is.
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
#ifndef LEAVES
#define LEAVES 0
#endif
#ifndef KILLS
#define KILLS 0
#endif

/* Guest to pager. */
#define kForkIntent 1 /* value = child */
#define kFreezeDone 2 /* value = number of the freeze */
#define kMap 3        /* value = window */
#define kAttach 4     /* value = whether the child has registered itself for a freeze */
/* Pager to agent. */
#define kFreeze 5     /* value = number of the freeze */
#define kThaw 6

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
bool mapped[N * WINDOWS];
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
bool waiting[N];             /* has not been frozen yet */
byte state;
byte number;                 /* of the latest freeze */
byte first;                  /* of the first one since the file was thawed last */
byte snapshots;              /* of the file, not lost */
bool shared;                 /* one of them shares the page with the live file */
bool unwatched;              /* somebody maps the file and is no guest any more */

byte takes = TAKES;
byte forks = FORKS;
byte maps = MAPS;
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

/* ---- the guest's side ---- */

/* The kernel's part of fork, and the library's in the child, which no program code precedes. */
inline BeBorn(g, c, at, from) {
  if
  :: mapped[from] ->
     mapped[at] = true;
     native[at] = native[from];
     marked[at] = marked[from];
#ifndef BUG_CHILD_DOES_NOT_REGISTER
     if
     :: marked[at] -> tracked[at] = true; native[at] = false
     :: else
     fi
#endif
  :: else
  fi
}

inline Fork(g, c) {
  alive[c] = true;
  BeBorn(g, c, At(c, 0), At(g, 0));
#if WINDOWS == 2
  BeBorn(g, c, At(c, 1), At(g, 1));
#endif
  parent[c] = 0;
  lock[g] = false;
  CheckPromise()
}

inline FreeSlot(c) {
  if
  :: !used[1] -> c = 1
  :: used[1] && !used[2] -> c = 2
  fi;
  used[c] = true
}

/* Nobody has its userfaultfd any more. */
inline Leave(at) { tracked[at] = false }

#define Stops(g, w) (mapped[At(g, w)] && tracked[At(g, w)] && !native[At(g, w)])

proctype Program(byte g) {
  byte child;
  byte w;

end_unborn:
  alive[g];
  {
    /* In a child the library says first what it has done. */
    if
    :: atomic {
         !runs[g] && held[g] ->
         channel[g]!kAttach,Any(marked, g);
         runs[g] = true;
         CheckPromise()
       }
    :: atomic { !runs[g] && !held[g] -> runs[g] = true; Each(g, Leave); CheckPromise() }
    :: runs[g]
    fi;
end_idle:
    do
    /* A write that the kernel does not let through. (What it lets through, CheckPromise judges.) */
    :: atomic { Stops(g, 0) -> fault[g] = 1 }
       fault[g] == 0
#if WINDOWS == 2
    :: atomic { Stops(g, 1) -> fault[g] = 2 }
       fault[g] == 0
#endif
    :: atomic {
         forks > 0 && held[g] && Any(mapped, g) && !lock[g] && nfull(channel[g]) && !used[2] ->
         forks--;
         lock[g] = true;
         FreeSlot(child);
         parent[child] = g + 1;
         held[child] = true;
         unread[child] = true;
         channel[g]!kForkIntent,child
       }
       atomic { Fork(g, child); child = 0 }
    :: atomic {
         maps > 0 && held[g] && !lock[g] && nfull(channel[g]) && !mapped[At(g, WINDOWS - 1)] ->
         w = mapped[At(g, 0)];
         maps--;
         lock[g] = true;
         channel[g]!kMap,w
       }
       /* mmap has not returned: until now nobody has the address. */
       atomic {
         answered[g] ->
         answered[g] = false;
         mapped[At(g, w)] = true;
         marked[At(g, w)] = answer[g];
         native[At(g, w)] = false;
         w = 0;
         lock[g] = false;
         CheckPromise()
       }
    /* It goes on without the pager: what it maps it writes natively, as soon as its agent lets it
     * (Forget). */
    :: atomic { leaves > 0 && held[g] && !lock[g] -> leaves--; held[g] = false }
    od
  } unless { !alive[g] }
}

inline Mark(at) {
  if
  :: mapped[at] -> marked[at] = true; native[at] = false
  :: else
  fi
}

inline Unmark(at) {
  marked[at] = false;
  native[at] = false
}

proctype Agent(byte g) {
  byte kind;
  byte value;

end_unborn:
  alive[g];
  {
end_idle:
    do
    /* One step, for it is done under the lock. */
    :: atomic {
         held[g] && !lock[g] && nempty(orders[g]) && nfull(channel[g]) ->
         orders[g]?kind,value;
         if
         :: kind == kFreeze ->
#ifdef BUG_DONE_BEFORE_MARKED
            channel[g]!kFreezeDone,value;
#else
            Each(g, Mark);
            channel[g]!kFreezeDone,value;
            kind = 0;
#endif
         :: kind == kThaw -> Each(g, Unmark); kind = 0
         fi;
         value = 0
       }
#ifdef BUG_DONE_BEFORE_MARKED
       if
       :: atomic { kind == kFreeze && !lock[g] -> Each(g, Mark); kind = 0 }
       :: kind == 0
       fi
#endif
    od
  } unless { !alive[g] }
}

/* ---- the pager's side ---- */

inline Track(at) {
  if
  :: in_tables[at] -> tracked[at] = true
  :: else
  fi
}

inline Untrack(at) {
  if
  :: in_tables[at] -> tracked[at] = false
  :: else
  fi
}

inline WriteProtect(at) {
  if
  :: in_tables[at] -> native[at] = false
  :: else
  fi
}

/* What is sent to somebody who has gone is lost. */
inline Tell(g, kind, value) {
  if
  :: alive[g] && held[g] -> orders[g]!kind,value
  :: else
  fi
}

inline ThawGuest(g) {
  Each(g, Untrack);
  fault[g] = 0;
  knows[g] = false;
  Tell(g, kThaw, 0)
}

inline ThawIfMaps(g) {
  if
  :: known[g] && attached[g] && Any(in_tables, g) -> ThawGuest(g)
  :: else -> skip
  fi
}

inline ThawIfLast() {
  if
  :: snapshots == 0 && state == kFrozen ->
     state = kThawed;
     shared = false;
     first = number + 1;
#ifdef BUG_NUMBERS_AGAIN
     number = 0;
     first = 1;
#endif
     ThawIfMaps(0);
     ThawIfMaps(1);
     ThawIfMaps(2)
  :: else
  fi
}

inline Lose() {
  snapshots = 0;
  shared = false;
  ThawIfLast()
}

/* Who comes to be a member now, and is not frozen yet. */
inline FreezeGuest(g) {
  Each(g, Track);
  Tell(g, kFreeze, number)
}

inline FreezeIfMaps(g) {
  if
  :: known[g] && Any(in_tables, g) ->
     waiting[g] = true;
     if
     :: attached[g] -> FreezeGuest(g)
     :: else
     fi
  :: else
  fi
}

inline Fail() {
  if
  :: state == kFreezing ->
     waiting[0] = false;
     waiting[1] = false;
     waiting[2] = false;
     state = kFrozen
  :: else
  fi
}

inline Copy(c, g, w) {
  in_tables[At(c, w)] = in_tables[At(g, w)]
}

inline OnForkIntent(g, c) {
  unread[c] = false;
  if
  :: true ->
     known[c] = true;
     Copy(c, g, 0);
#if WINDOWS == 2
     Copy(c, g, 1);
#endif
     knows[c] = knows[g];
     if
     :: state == kThawed || knows[g] || !Any(in_tables, c)
     :: state == kFreezing && !knows[g] && Any(in_tables, c) ->
#ifndef BUG_CHILD_NOT_MEMBER
        waiting[c] = true;
#endif
        /* Of this snapshot it is a member; of earlier ones what it writes until then is unseen. */
        if
        :: snapshots > 0 -> Lose()
        :: else
        fi
     :: state == kFrozen && !knows[g] && Any(in_tables, c) ->
#ifndef BUG_LATE_FORKS_UNSEEN
        Lose()
#endif
     fi
#ifdef FULL
  :: true ->
     /* No room: it is no guest. */
     held[c] = false;
     Each(c, Leave);
     fault[c] = 0;
#ifndef BUG_FREEZE_WITHOUT_CHILD
     Fail();
#endif
     unwatched = true;
     Lose();
     ThawIfLast()
#endif
  fi
}

inline OnFreezeDone(g, n) {
  if
  :: state != kThawed && Any(in_tables, g) ->
#ifdef BUG_OLD_DONE_KNOWS
     knows[g] = true;
#else
     if
     :: n >= first -> knows[g] = true
     :: else
     fi;
#endif
     if
     :: n == number && waiting[g] -> waiting[g] = false
     :: else
     fi
  :: else
  fi
}

inline OnMap(g, w) {
  if
  :: state != kThawed ->
#ifdef BUG_SECOND_WINDOW_KNOWS
     knows[g] = true;
#else
     /* What it maps elsewhere it may not have marked yet. */
     if
     :: !Any(in_tables, g) -> knows[g] = true
     :: else
     fi;
#endif
     tracked[At(g, w)] = alive[g];
     Tell(g, kFreeze, number)
  :: else
  fi;
  in_tables[At(g, w)] = true;
  if
  :: alive[g] -> answered[g] = true; answer[g] = (state != kThawed)
  :: else
  fi
}

inline OnAttach(g, registered) {
  attached[g] = true;
  if
  :: state != kThawed && Any(in_tables, g) ->
     FreezeGuest(g);
#ifdef BUG_CHILD_DONE_AT_ATTACH
     waiting[g] = false
#endif
  :: else ->
#ifdef BUG_CHILD_STAYS_TRACKED
     if
     :: knows[g] -> ThawGuest(g)
     :: else
     fi
#else
     /* Its parent may have been told of the thaw after the fork. */
     if
     :: registered -> ThawGuest(g)
     :: else
     fi
#endif
  fi
}

inline OnPacket(g) {
  channel[g]?kind,value;
  if
  :: kind == kForkIntent -> OnForkIntent(g, value)
  :: kind == kFreezeDone -> OnFreezeDone(g, value)
  :: kind == kMap -> OnMap(g, value)
  :: kind == kAttach -> OnAttach(g, value)
  fi;
  kind = 0;
  value = 0;
  CheckPromise()
}

inline Remove(at) { in_tables[at] = false }

/* The end of a channel, behind all that was said on it. */
inline Forget(g) {
  if
  :: (alive[g] || parent[g] != 0) && Any(in_tables, g) ->
     /* It lives on. Its agent lets it write when no view is left. */
#ifndef BUG_LEAVER_DOES_NOT_FAIL
     Fail();
#endif
#ifndef BUG_LEAVER_FORGOTTEN
     unwatched = true;
#endif
     Lose()
  :: else
  fi;
  if
  :: alive[g] -> Each(g, Leave); fault[g] = 0
  :: else
  fi;
#ifndef BUG_DEAD_STAYS_MEMBER
  waiting[g] = false;
#endif
  known[g] = false;
  knows[g] = false;
  attached[g] = false;
  Each(g, Remove);
  ThawIfLast();
  CheckPromise()
}

inline Start() {
  takes--;
  state = kFreezing;
  number++;
  FreezeIfMaps(0);
  FreezeIfMaps(1);
  FreezeIfMaps(2);
  CheckPromise()
}

inline Take() {
  state = kFrozen;
  snapshots++;
  shared = true;
  CheckPromise()
}

inline Late(g) {
  Each(g, WriteProtect);
  waiting[g] = false
}

#ifdef BUG_CHILD_IS_LATE
#define MayBeLate(g) (state == kFreezing && waiting[g])
#else
#define MayBeLate(g) (state == kFreezing && waiting[g] && attached[g])
#endif

#ifdef BUG_NOT_PARKED
#define Answers(g) (fault[g] != 0 && attached[g])
#else
#define Answers(g) (fault[g] != 0 && attached[g] && state != kFreezing)
#endif

/* A first write is copied, and granted. */
inline OnFault(g) {
  shared = false;
  native[At(g, fault[g] - 1)] = true;
  fault[g] = 0
}

#define AtEnd(g) (known[g] && !held[g] && empty(channel[g]))
#define Waits (waiting[0] || waiting[1] || waiting[2])

proctype Pager() {
  byte kind;
  byte value;

end_idle:
  do
  :: atomic { known[0] && nempty(channel[0]) -> OnPacket(0) }
  :: atomic { known[1] && nempty(channel[1]) -> OnPacket(1) }
  :: atomic { known[2] && nempty(channel[2]) -> OnPacket(2) }
  :: atomic { AtEnd(0) -> Forget(0) }
  :: atomic { AtEnd(1) -> Forget(1) }
  :: atomic { AtEnd(2) -> Forget(2) }
  :: atomic { Answers(0) -> OnFault(0) }
  :: atomic { Answers(1) -> OnFault(1) }
  :: atomic { Answers(2) -> OnFault(2) }
  :: atomic { takes > 0 && state != kFreezing && !unwatched -> Start() }
  :: atomic { MayBeLate(0) -> Late(0) }
  :: atomic { MayBeLate(1) -> Late(1) }
  :: atomic { MayBeLate(2) -> Late(2) }
  :: atomic { state == kFreezing && !Waits -> Take() }
  :: atomic { snapshots > 0 && state == kFrozen -> snapshots--; ThawIfLast() }
  od
}

/* ---- the world ---- */

inline Gone(at) {
  mapped[at] = false;
  tracked[at] = false;
  native[at] = false;
  marked[at] = false
}

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
    first = 1;
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
