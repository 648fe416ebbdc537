/* The guest's side: runtime/guest/. App makes the calls of hooks, Agent carries out orders.
 *
 * Steps:   what happens under a guest's lock and is seen by nobody else meanwhile is one step; so a
 *          hook that never waits under its lock takes it and lets it go in one.
 * Death:   a guest that was killed does nothing more, wherever it was ("unless"). App and Agent of
 *          a slot then wait for the next process that gets it.
 */

#define CanSend(g) (nfull(channel[g]))

/* REQUIRES: the lock, CanSend. Counted before it can be received. */
inline Send(g, kind, first, second, third) {
  sent[g]++;
  channel[g]!kind,first,second,third
}

#define AnySlot (!reserved[0] || !reserved[1] || !reserved[2])

/* A new process takes the first free slot: slots are alike. */
inline TakeSlot(c) {
  if
  :: !reserved[0] -> c = 0
  :: reserved[0] && !reserved[1] -> c = 1
  :: reserved[0] && reserved[1] -> c = 2
  fi;
  reserved[c] = true;
  held[c] = true;
  sent[c] = 0;
  handled[c] = 0;
  woken[c] = false
}

/* The kernel's part: the child has its parent's mappings, as they are at this moment. */
inline KernelFork(g, c) {
  alive[c] = true;
  life[c]++;
  mapped[c] = mapped[g];
  CopyPages(kernel, At(c, 0), kernel, At(g, 0));
#ifdef BUG_CHILD_KEEPS_COUNT
  sent[c] = sent[g];
#endif
  CheckPromise()
}

inline MapRest(g) {
#ifdef BUG_APPLY_AFTER_UNLOCK
  atomic { answered[g] -> answered[g] = false; lock[g] = false }
  atomic {
    CopyPages(kernel, At(g, 0), answer, At(g, 0));
    mapping[g] = false;
    CheckPromise()
  }
#else
  atomic {
    answered[g] -> answered[g] = false;
    CopyPages(kernel, At(g, 0), answer, At(g, 0));
    mapping[g] = false;
    CheckPromise();
    handled[g] = 0;
    lock[g] = false
  }
#endif
}

inline ForkRest(g) {
#ifdef BUG_INTENT_AFTER_FORK
  atomic { CanSend(g) -> Send(g, kForkIntent, child, 0, 0); child = 0 }
#else
  atomic { announced[g] = 0; KernelFork(g, child); child = 0; lock[g] = false }
#endif
}

inline ForAllRest(t) {
  atomic {
    returned[t] -> returned[t] = false;
#ifdef BUG_CALLER_KEEPS_LOCK
    lock[OwnerOf(t)] = false
#endif
  }
}

#define g OwnerOf(t)

proctype App(byte t) {
  byte page;
  bit to;
  byte child;

end_unborn:
  atomic {
    alive[g] && !app_up[t] ->
    app_up[t] = true;
    returned[t] = false;
    page = 0;
    to = 0;
    child = 0
  }
  {
end_idle:
    do
    :: atomic {
         maps > 0 && !mapped[g] && !lock[g] && CanSend(g) ->
         maps--;
         lock[g] = true;
         mapped[g] = true;
         mapping[g] = true;
         SetKernel(g, kReadWrite);
         Send(g, kMap, 0, 0, 0)
       }
       MapRest(g)
    :: atomic {
         unmaps > 0 && mapped[g] && !lock[g] && CanSend(g) ->
         unmaps--;
         mapped[g] = false;
         SetKernel(g, 0);
         Send(g, kUnmap, 0, 0, 0)
       }
    :: atomic {
         forks > 0 && mapped[g] && !lock[g] && CanSend(g) && AnySlot ->
         forks--;
         TakeSlot(child);
#ifdef BUG_INTENT_AFTER_FORK
         KernelFork(g, child)
#else
         lock[g] = true;
         announced[g] = child + 1;
         Send(g, kForkIntent, child, 0, 0)
#endif
       }
       ForkRest(g)
    :: atomic {
         calls > 0 && mapped[g] && !lock[g] && CanSend(g) ->
         calls--;
#ifdef BUG_CALLER_KEEPS_LOCK
         lock[g] = true;
#endif
         if
         :: page = 0
#if PAGES == 2
         :: page = 1
#endif
         fi;
         if
         :: to = kReadOnly
         :: to = kReadWrite
         fi;
         Send(g, kForAll, t, page, to);
         page = 0;
         to = 0
       }
       ForAllRest(t)
    od
  } unless { atomic { !alive[g] -> app_up[t] = false } }
  goto end_unborn
}

#undef g

/* Reads the board. What was read is one order if its sequence number is the same before and after;
 * else nothing is lost, because the bell rings when the order is whole. */
inline ReadBoard() {
#ifdef WORDS
  seen = board_sequence;
  page = board_page;
  to = board_access;
  if
  :: board_sequence != seen -> seen = 0
  :: else
  fi
#else
  atomic { seen = board_sequence; page = board_page; to = board_access }
#endif
}

/* REQUIRES: the lock. */
inline Apply() {
#ifndef BUG_MAPPED_BEFORE_LOCK
  maps_it = mapped[g];
#endif
  if
  :: maps_it && page != kNoPage ->
     assert(mapped[g]); /* else it protects memory that is none of the file's by now */
     kernel[At(g, page)] = to;
     CheckPromise()
  :: else
  fi;
  maps_it = false;
  page = 0;
  to = 0
}

/* Applies what was read, says so, and lets the lock go. */
inline CarryOut() {
#ifdef BUG_ACK_SEQUENCE_FIRST
  atomic { Apply(); ack_sequence[g] = seen }
  atomic { ack_packets[g] = sent[g]; handled[g] = seen; seen = 0; lock[g] = false }
#else
#ifdef WORDS
  atomic { Apply(); ack_packets[g] = sent[g] }
  atomic { ack_sequence[g] = seen; handled[g] = seen; seen = 0; lock[g] = false }
#else
  atomic {
    Apply();
    ack_packets[g] = sent[g];
    ack_sequence[g] = seen;
    handled[g] = seen;
    seen = 0;
    lock[g] = false
  }
#endif
#endif
}

proctype Agent(byte g) {
  byte seen;
  byte page;
  bit to;
  bool maps_it;

end_unborn:
  atomic {
    alive[g] && !agent_up[g] ->
    agent_up[g] = true;
    seen = 0;
    page = 0;
    to = 0;
    maps_it = false
  }
  {
end_idle:
    do
#ifdef BUG_READ_BEFORE_LOCK
    :: atomic { woken[g] -> woken[g] = false; ReadBoard() }
       atomic { !lock[g] -> lock[g] = true }
#else
#ifdef BUG_MAPPED_BEFORE_LOCK
    :: atomic { woken[g] -> woken[g] = false; maps_it = mapped[g] }
       atomic { !lock[g] -> lock[g] = true; ReadBoard() }
#else
#ifdef WORDS
    :: atomic { woken[g] && !lock[g] -> woken[g] = false; lock[g] = true }
       ReadBoard();
#else
    :: atomic { woken[g] && !lock[g] -> woken[g] = false; lock[g] = true; ReadBoard() }
#endif
#endif
#endif
       if
       :: seen != 0 && seen != handled[g] -> CarryOut()
       :: else -> atomic { seen = 0; page = 0; to = 0; maps_it = false; lock[g] = false }
       fi
    od
  } unless { atomic { !alive[g] -> agent_up[g] = false } }
  goto end_unborn
}
