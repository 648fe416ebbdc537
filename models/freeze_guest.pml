/* The guests of snapshot_freeze.pml: the hooks (Program) and the agent of each, runtime/guest/.
 *
 * Writes:  what is mapped and not registered is written at once, and so mapped writable.
 * Steps:   as in guest.pml. An unmap is two, because the pager may freeze the file between them.
 */

/* The kernel's part of fork, and the library's in the child, which no program code precedes. */
inline BeBorn(g, c, at, from) {
  if
  :: mapped[from] ->
     there[at] = true;
     mapped[at] = true;
     marked[at] = marked[from];
#ifndef BUG_CHILD_DOES_NOT_REGISTER
     tracked[at] = marked[at];
#endif
     native[at] = !tracked[at]
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

inline Gone(at) {
  there[at] = false;
  mapped[at] = false;
  tracked[at] = false;
  native[at] = false;
  marked[at] = false
}

/* Nobody has its userfaultfd any more. */
inline Leave(at) { tracked[at] = false }

#if WINDOWS == 2
#define AllMapped(g) (mapped[At(g, 0)] && mapped[At(g, 1)])
#else
#define AllMapped(g) (mapped[g])
#endif

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
         maps > 0 && held[g] && !lock[g] && nfull(channel[g]) && !AllMapped(g) ->
         w = mapped[At(g, 0)];
         maps--;
         lock[g] = true;
         there[At(g, w)] = true;
         channel[g]!kMap,w
       }
       /* mmap has not returned: until now nobody has the address. */
       atomic {
         answered[g] ->
         answered[g] = false;
         mapped[At(g, w)] = true;
         marked[At(g, w)] = answer[g];
         native[At(g, w)] = !tracked[At(g, w)];
         w = 0;
         lock[g] = false;
         CheckPromise()
       }
    :: atomic {
         unmaps > 0 && held[g] && !lock[g] && Any(mapped, g) ->
         if
         :: mapped[At(g, 0)]
#if WINDOWS == 2
         :: mapped[At(g, 1)] -> w = 1
#endif
         fi;
         unmaps--;
         lock[g] = true;
         Gone(At(g, w))
       }
       atomic { nfull(channel[g]) -> channel[g]!kUnmap,w; w = 0; lock[g] = false }
    /* It goes on without the pager: what it maps it writes natively, as soon as its agent lets it
     * (Forget). */
    :: atomic { leaves > 0 && held[g] && !lock[g] -> leaves--; held[g] = false }
    od
  } unless { !alive[g] }
}

inline Mark(at) {
  if
  :: mapped[at] ->
     marked[at] = true;
#ifndef HUGETLB
     native[at] = false
#endif
  :: else
  fi
}

inline Unmark(at) {
  marked[at] = false;
  native[at] = mapped[at] && !tracked[at]
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

