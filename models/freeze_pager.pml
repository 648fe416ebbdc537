/* The pager of snapshot_freeze.pml: runtime/snapshot/freezer.h, and when snapshots.h calls it.
 *
 * Steps:   a packet, a fault or a turn of the loop is one step; so is what a Freeze does to all
 *          guests, but for the write protection of hugetlb (Protect).
 */

/* What the kernel has unmapped cannot be registered. */
inline Track(at) {
  if
  :: in_tables[at] && there[at] -> tracked[at] = true
  :: else
  fi
}

inline Untrack(at) {
  if
  :: in_tables[at] -> tracked[at] = false; native[at] = mapped[at]
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
#define Hears(g) (alive[g] && held[g])

inline TellFreeze(g) {
  if
  :: Hears(g) ->
#ifndef BUG_NUMBER_OF_FREEZE
     sent[g]++;
#endif
     told[g] = sent[g];
     orders[g]!kFreeze,sent[g]
  :: else
  fi
}

/* It does not know any more, and no answer counts that is on its way. */
inline ForgetTold(g) {
  told[g] = 0;
  knows[g] = false
}

inline ThawGuest(g) {
  Each(g, Untrack);
  fault[g] = 0;
  ForgetTold(g);
#ifdef BUG_NUMBERS_AGAIN
  sent[g] = 0;
#endif
  if
  :: Hears(g) -> orders[g]!kThaw,0
  :: else
  fi
}

inline ThawIfMaps(g) {
  if
  :: known[g] && attached[g] && Any(in_tables, g) ->
#ifndef BUG_QUEUED_KNOWS
     /* What it maps until its turn comes its library does not mark. */
     ForgetTold(g);
#endif
     thaws[g]++
  :: else -> skip
  fi
}

/* Its turn. Who is frozen again meanwhile stays as it is; who has unmapped it meanwhile is not. */
inline ThawNext(g) {
  thaws[g]--;
  if
#ifdef BUG_FROZEN_AGAIN_THAWED
  :: true -> ThawGuest(g)
#endif
#ifndef BUG_UNMAPPED_STAYS_MARKED
  :: state != kThawed && !Any(in_tables, g) -> ThawGuest(g)
#endif
  :: state == kThawed -> ThawGuest(g)
  :: else
  fi;
  CheckPromise()
}

inline ThawIfLast() {
  if
  :: snapshots == 0 && state == kFrozen ->
     state = kThawed;
     shared = false;
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

/* The kernel has unmapped what the pager has not heard of yet. */
#define GoneAt(g, w) (in_tables[At(g, w)] && !there[At(g, w)])
#if WINDOWS == 2
#define Lacks(g) (GoneAt(g, 0) || GoneAt(g, 1))
#else
#define Lacks(g) (GoneAt(g, 0))
#endif

/* Who lacks something is not told: it is late, if it does not unmap the rest too. */
inline FreezeGuest(g) {
  Each(g, Track);
  if
  :: !Lacks(g) ->
     TellFreeze(g);
#ifdef HUGETLB
#ifdef BUG_KNOWS_IS_PROTECTED
     protecting[g] = !knows[g];
#else
     protecting[g] = true;
#endif
     if
     :: knows[g] || !Hears(g) -> waiting[g] = false
     :: else
     fi
#else
     if
     :: !Hears(g) -> Each(g, WriteProtect); waiting[g] = false
     :: else
     fi
#endif
  :: else ->
#ifndef BUG_OLD_ANSWER_ENDS
     /* It was zapped before what it has been granted since. */
     told[g] = 0
#else
     skip
#endif
  fi
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
#endif
     if
     :: n == told[g] -> knows[g] = true; waiting[g] = false
     :: else
     fi
  :: else
  fi
}

inline OnMap(g, w) {
  if
  :: state != kThawed ->
#ifdef BUG_SECOND_WINDOW_KNOWS
     /* What it maps elsewhere it may not have marked yet. */
     knows[g] = true;
#endif
#ifdef BUG_MAPPER_KNOWS
     /* An earlier kThaw may be on its way. */
     if
     :: !Any(in_tables, g) -> knows[g] = true
     :: else
     fi;
#endif
     tracked[At(g, w)] = alive[g];
     TellFreeze(g)
  :: else ->
     /* Or it stays registered, if it was taken for an earlier mapping (README.md, "early"). */
     tracked[At(g, w)] = false
  fi;
  in_tables[At(g, w)] = true;
  if
  :: alive[g] -> answered[g] = true; answer[g] = (state != kThawed)
  :: else
  fi
}

inline OnUnmap(g, w) {
  in_tables[At(g, w)] = false;
  if
  :: state != kThawed && !Any(in_tables, g) -> ThawGuest(g); waiting[g] = false
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
     :: registered || knows[g] -> ThawGuest(g)
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
  :: kind == kUnmap -> OnUnmap(g, value)
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
  told[g] = 0;
  thaws[g] = 0;
  Each(g, Remove);
  ThawIfLast();
  CheckPromise()
}

inline Start() {
  takes--;
  state = kFreezing;
#ifdef BUG_NUMBER_OF_FREEZE
  sent[0]++;
  sent[1]++;
  sent[2]++;
#endif
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

#define CannotFreeze(g) (!attached[g] || Lacks(g))

/* Whoever cannot be frozen from outside either ends the freeze: a child that does not come, too. */
inline Late(g) {
  if
#ifdef BUG_CHILD_IS_LATE
  :: !attached[g] -> waiting[g] = false
#endif
  :: CannotFreeze(g) -> Fail(); ThawIfLast()
  :: !CannotFreeze(g) ->
     Each(g, Track);
     Each(g, WriteProtect);
     waiting[g] = false
  fi
}

#define MayBeLate(g) (state == kFreezing && waiting[g] && known[g])

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

#ifdef HUGETLB
/* Its agent has been told before, and does its part meanwhile. */
inline Protect(g) {
  if
  :: atomic { protecting[g] -> Each(g, WriteProtect); protecting[g] = false; CheckPromise() }
  :: !protecting[g]
  fi
}
#endif

#define AtEnd(g) (known[g] && !held[g] && empty(channel[g]))
#define Waits (waiting[0] || waiting[1] || waiting[2])

proctype Pager() {
  byte kind;
  byte value;

end_idle:
  if
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
  :: atomic { thaws[0] > 0 -> ThawNext(0) }
  :: atomic { thaws[1] > 0 -> ThawNext(1) }
  :: atomic { thaws[2] > 0 -> ThawNext(2) }
  fi;
#ifdef HUGETLB
  Protect(0);
  Protect(1);
  Protect(2);
#endif
  goto end_idle
}

