/* The pager's side: runtime/session.h, opt_in.h, shared_operations.h, board_set.h.
 *
 * Steps:   one loop, one packet at a time, all of its effect at once; only writing the board takes
 *          several (WORDS). What the real one finds out later (an agent's note that it was the last
 *          one, or a tick) may happen here as soon as it is true, or at any time after.
 */

/* kWatch: the guest's agent looks at the board, at once and whenever the bell rings. */
inline Watch(g) { woken[g] = true }

inline ForgetAccess(p) {
  if
  :: open && open_page == p
  :: else -> access[p] = kReadWrite
  fi
}

inline OnMap(g) {
  if
  :: table_there
  :: else ->
     /* Nobody maps it any more: this one brings its own protection, unless one is being given. */
     table_there = true;
     ForgetAccess(0);
#if PAGES == 2
     ForgetAccess(1)
#endif
  fi;
  ALONE { in_tables[g] = true; uses++; CheckUses() }
  ALONE {
    if
    :: alive[g] ->
       CopyPages(answer, At(g, 0), access, 0);
       answered[g] = true
    :: else
    fi;
    Watch(g)
  }
}

/* Takes a guest from the tables. */
inline Remove(g) {
  if
  :: in_tables[g] ->
     ALONE { in_tables[g] = false; uses-- }
     if
     :: uses == 0 -> table_there = false
     :: else
     fi
  :: else
  fi
}

/* It is no longer waited for: it has nothing to protect, and a new mapping asks first. Its agent is
 * told not to look at this board any more; that it may be looking already makes no difference. */
inline OnUnmap(g) {
  Remove(g);
#ifdef BUG_UNMAPPED_STAYS_MEMBER
  woken[g] = false
#else
  member[g] = false
#endif
}

inline OnForkIntent(g, c) {
  known[c] = true;
#ifndef BUG_OLD_SLOT
  ack_sequence[c] = 0;
  ack_packets[c] = 0;
#endif
  if
  :: in_tables[g] ->
     in_tables[c] = true;
     uses++;
#ifndef BUG_CHILD_NOT_MEMBER
     /* It has what its parent had at the fork, so it is waited for unless the parent forked after
      * it had noted that it is done. */
#ifdef BUG_NOTED_IS_ENOUGH
     member[c] = member[g] && ack_sequence[g] != sequence;
#else
     member[c] = member[g] && !(ack_sequence[g] == sequence && ack_packets[g] < received[g]);
#endif
#endif
     Watch(c)
  :: else
  fi
}

inline OnPacket(g) {
  channel[g]?kind,first,second,third;
  received[g]++;
  if
  :: kind == kMap -> OnMap(g)
  :: kind == kUnmap -> OnUnmap(g)
  :: kind == kForkIntent -> OnForkIntent(g, first)
  :: kind == kForAll -> waiting!first,life[g],second,third
  fi;
  ALONE {
    kind = 0;
    first = 0;
    second = 0;
    third = 0;
    CheckUses();
    CheckTables(g)
  }
}

/* The end of a channel comes when the last thread of its guest has gone, and after all that the
 * guest has sent. */
#define ThreadsGone(g) (!app_up[g] && !agent_up[g] && (g != 0 || !app_up[N]))
#ifdef BUG_END_OVERTAKES_PACKETS
#define AtEnd(g) (known[g] && !held[g] && ThreadsGone(g))
#else
#define AtEnd(g) (known[g] && !held[g] && ThreadsGone(g) && empty(channel[g]))
#endif

inline Forget(g) {
  Remove(g);
#ifndef BUG_DEAD_STAYS_MEMBER
  member[g] = false;
#endif
  do
  :: nempty(channel[g]) -> channel[g]?_,_,_,_
  :: empty(channel[g]) -> break
  od;
  woken[g] = false;
  received[g] = 0;
  known[g] = false;
  reserved[g] = false;
  CheckUses()
}

inline Rest() {
  open_page = 0;
  caller = 0;
  caller_life = 0
}

/* A reply goes to the socket that the caller waits on, and nowhere if it is gone. */
inline Reply() {
  if
  :: alive[OwnerOf(caller)] && life[OwnerOf(caller)] == caller_life -> returned[caller] = true
  :: else
  fi
}

/* Makes an order the one that stands on the board. */
inline WriteBoard(page, to) {
#ifdef WORDS
#ifndef BUG_NO_MARK
  board_sequence = 0;
#endif
  board_page = page;
  board_access = to;
  board_sequence = sequence
#else
  board_page = page;
  board_access = to;
  board_sequence = sequence
#endif
}

#define CallerMaps (in_tables[OwnerOf(caller)] && life[OwnerOf(caller)] == caller_life)

inline Start() {
  atomic {
#ifdef BUG_NOT_ONE_BY_ONE
    if
    :: open -> Reply()
    :: else
    fi;
#endif
    waiting?caller,caller_life,open_page,to;
    open = CallerMaps;
    if
    :: open ->
       sequence++;
       member[0] = in_tables[0];
       member[1] = in_tables[1];
       member[2] = in_tables[2];
#ifndef BUG_TABLES_LAST
       access[open_page] = to
#endif
    :: else -> Reply(); Rest() /* refused */
    fi;
    CheckPromise()
  }
  if
  :: open ->
     WriteBoard(open_page, to);
     ALONE {
       woken[0] = woken[0] || member[0];
       woken[1] = woken[1] || member[1];
       woken[2] = woken[2] || member[2]
     }
  :: else
  fi;
  to = 0
}

/* What is believed of a guest's ack: only with all that the guest had said before it. */
#ifdef BUG_PACKETS_NOT_AWAITED
#define Done(g) (!member[g] || ack_sequence[g] == sequence)
#else
#define Done(g) (!member[g] || (ack_sequence[g] == sequence && received[g] >= ack_packets[g]))
#endif
#define AllDone (Done(0) && Done(1) && Done(2))

#ifdef BUG_NOT_ONE_BY_ONE
#define MayStart (nempty(waiting))
#else
#define MayStart (!open && nempty(waiting))
#endif

/* The last one has done it. The bell does not ring for the order that says so. */
inline Complete() {
  ALONE {
#ifdef BUG_TABLES_LAST
    access[open_page] = board_access;
#endif
    open = false;
    member[0] = false;
    member[1] = false;
    member[2] = false;
    CheckPromise();
    Reply();
    Rest();
    sequence++
  }
  WriteBoard(kNoPage, 0)
}

#define Readable(g) (known[g] && nempty(channel[g]))

proctype Pager() {
  byte kind;
  byte first;
  byte second;
  byte third;
  bit to;

end_idle:
  do
  :: ALONE { Readable(0) -> OnPacket(0) }
#ifndef BUG_TWO_PAGERS
  :: ALONE { Readable(1) -> OnPacket(1) }
#endif
  :: ALONE { Readable(2) -> OnPacket(2) }
  :: atomic { AtEnd(0) -> Forget(0) }
  :: atomic { AtEnd(1) -> Forget(1) }
  :: atomic { AtEnd(2) -> Forget(2) }
  :: WRITING { MayStart -> Start() }
  :: WRITING { open && AllDone -> Complete() }
  od
}

#ifdef BUG_TWO_PAGERS
/* Shares the work with Pager, and the tables. */
proctype SecondPager() {
  byte kind;
  byte first;
  byte second;
  byte third;

end_idle:
  do
  :: ALONE { Readable(1) -> OnPacket(1) }
  od
}
#endif
