/* The first write to a page that snapshots share, beside views that map the page, new freezes, and
 * snapshots that go: what is order of events in runtime/snapshot/first_writes.h, views.h,
 * view_orders.h and snapshots.h.
 *
 * Processes: WRITERS processes with a thread each, and one process with a view of each snapshot: for
 *            each view a thread that reads it, and with PRIVATE one that writes to it; their agent.
 *            One pager, whose copies a worker makes (BLOCKS) or itself.
 * Memory:    one page of one file. That other pages are there is seen in one thing: reading a
 *            neighbour maps the page as well, if it is as it was and is not mapped (Neighbour).
 * Numbers:   what stands in the page is the number of the last write. WRITES, TAKES, KILLS (of the
 *            viewer), LATES (orders to it that nobody waits for any more), FAILS (no memory for a
 *            copy) bound what happens.
 * Errors:    an assertion fails, or something waits for ever. README.md says what each BUG_ takes
 *            away, and what breaks then.
 */

#define S 2 /* snapshots, and views */
#define WRITERS 2

#ifndef WRITES
#define WRITES 2
#endif
#ifndef TAKES
#define TAKES 2
#endif
#ifndef KILLS
#define KILLS 0
#endif
#ifndef LATES
#define LATES 0
#endif
#ifndef FAILS
#define FAILS 0
#endif

/* How a page is mapped in a view. */
#define kNone 0
#define kLive 1 /* the live file's frame, read-only */
#define kCopy 2 /* a copy of the pre-image */
#define kOwn 3  /* what the viewer has written: nobody may take it away */
#define kGone 4 /* memory that cannot be touched */

/* A thread's fault, as the pager reads it. */
#define kRead 1
#define kWrite 2     /* of what is not mapped */
#define kProtected 3 /* a write to what is mapped read-only */
#define kZapping 4   /* ... which the agent is taking away first */

/* Of a writer. */
#define kWaits 1
#define kCollected 2

/* Orders to the viewer's agent. */
#define kRevoke 1
#define kZap 2 /* before a write to the view is answered with a copy */
#define kLose 3

/* Of a snapshot. */
#define kNotTaken 0
#define kWhole 1
#define kLost 2
#define kDropped 3

/* ---- the truth ---- */
byte live;                 /* what stands in the live page */
bool writable[WRITERS];    /* mapped writable in the writer */
byte writer[WRITERS];      /* 0, kWaits, kCollected */
bool viewer = true;        /* the viewer's process lives */
byte view[S];
byte copy[S];              /* what stands in the view's own copy */
byte reader[S];            /* the fault of the thread that reads the view */
byte neighbour[S];         /* the same for the page beside it */
byte author[S];            /* and of the one that writes to it */

/* ---- the pager ---- */
byte taken[S];
byte was[S];               /* what stood in the page at the moment of the snapshot (nobody knows) */
bool shares[S];            /* its tables name the live frame */
byte preimage[S];          /* else: the pre-image's content */
bool named[S];             /* the live frame is mapped in its view, as far as the pager knows */
bool frozen;
bool freezing;
byte life;                 /* of the file's pre-image store: another one after each thaw */
bool copying;              /* somebody's first write is under way: */
bool copied;               /* ... the worker has done its part */
byte frame;                /* ... what it has copied */
byte copied_life;          /* ... to the store of that life */
byte revoking;             /* ... so many revokes are not answered */
bool losing;               /* ... and the snapshots are being lost */
byte attempt;              /* an answer to an order of an earlier one is late */
bool replacing[S];         /* the view of a lost snapshot */
chan orders = [8] of { byte, byte, byte };
chan answers = [8] of { byte, byte, byte };

byte writes = WRITES;
byte takes = TAKES;
byte kills = KILLS;
byte lates = LATES;
byte fails = FAILS;

#define Replacing (replacing[0] || replacing[1])
#define IsShared (shares[0] || shares[1])
#define Wrong(s) (view[s] == kLive && taken[s] == kWhole && live != was[s])
#define WrongCopy(s) (view[s] == kCopy && taken[s] == kWhole && copy[s] != was[s])

/* A view shows what was, as long as its snapshot is not reported as lost. */
inline CheckViews() {
  assert(!Wrong(0) && !Wrong(1));
  assert(!WrongCopy(0) && !WrongCopy(1))
}

/* Who may write has a page that no snapshot shares. */
inline CheckGrants() { assert(freezing || !IsShared || !(writable[0] || writable[1])) }

/* ---- the guests ---- */

proctype Writer(byte w) {
end_idle:
  do
  :: atomic { writes > 0 && writable[w] -> writes--; live++; CheckViews() }
  :: atomic { writes > 0 && !writable[w] && writer[w] == 0 && frozen -> writer[w] = kWaits }
     writer[w] == 0
  :: atomic { writes > 0 && !writable[w] && !frozen && !freezing -> writable[w] = true }
  od
}

/* The agents of writers carry out a freeze: each zaps the page. */
proctype Zapper(byte w) {
end_idle:
  do
  :: atomic { freezing && writable[w] -> writable[w] = false }
  od
}

#define Views(s) (viewer && taken[s] == kWhole)

proctype Reader(byte s) {
end_idle:
  do
  :: atomic { Views(s) && view[s] == kNone && reader[s] == 0 -> reader[s] = kRead }
     reader[s] == 0 || !viewer
  od
}

proctype Neighbour(byte s) {
end_idle:
  do
  :: atomic { Views(s) && view[s] != kGone && neighbour[s] == 0 && shares[s] -> neighbour[s] = kRead }
     neighbour[s] == 0 || !viewer
  od
}

/* Writes to the view until it has a page of its own there. */
proctype Author(byte s) {
end_idle:
  do
  :: atomic { Views(s) && view[s] == kNone && author[s] == 0 -> author[s] = kWrite }
     author[s] == 0 || !viewer
  :: atomic { Views(s) && view[s] == kLive && author[s] == 0 -> author[s] = kProtected }
     author[s] == 0 || !viewer
  :: atomic { Views(s) && view[s] == kCopy -> view[s] = kOwn; copy[s] = 0 }
  od
}

/* A zap takes away what is the file's; of what is the viewer's own it must not. */
inline ZapView(s) {
  if
#ifdef BUG_ZAPS_ALL
  :: view[s] == kLive || view[s] == kCopy || view[s] == kOwn ->
     assert(view[s] != kOwn); /* the viewer has written that */
     view[s] = kNone;
     copy[s] = 0
#else
  :: view[s] == kLive -> view[s] = kNone
#endif
  :: else
  fi
}

proctype ViewerAgent() {
  byte kind;
  byte s;
  byte tag;

end_idle:
  do
  :: atomic {
       viewer && nempty(orders) ->
       orders?kind,s,tag;
       if
       :: kind == kRevoke || kind == kZap -> ZapView(s)
       :: kind == kLose -> view[s] = kGone; copy[s] = 0
       fi;
       answers!kind,s,tag;
       tag = 0;
       kind = 0;
       s = 0
     }
  od
}

/* ---- the pager ---- */

inline WakeWriter(w) {
  if
  :: writer[w] == kCollected -> writer[w] = 0
  :: else
  fi
}

inline GrantTo(w) {
  if
#ifdef BUG_GRANT_NOT_LOOKED_AT
  :: writer[w] == kCollected && frozen -> writable[w] = true
#else
  :: writer[w] == kCollected && frozen && !freezing && !IsShared -> writable[w] = true
#endif
  :: else
  fi;
  WakeWriter(w)
}

/* All that waited for the page goes on, or comes again. */
inline Finish() {
  copying = false;
  copied = false;
  frame = 0;
  copied_life = 0;
  revoking = 0;
  losing = false;
  GrantTo(0);
  GrantTo(1);
  CheckGrants()
}

inline Thaw() {
  frozen = false;
  life++;
  if
  :: writer[0] == kWaits -> writer[0] = 0
  :: else
  fi;
  if
  :: writer[1] == kWaits -> writer[1] = 0
  :: else
  fi
}

#define AnyWhole (taken[0] == kWhole || taken[1] == kWhole)
#define AnyLeft (AnyWhole || Replacing)

inline ThawIfLast() {
  if
  :: frozen && !freezing && !AnyLeft -> Thaw()
  :: else
  fi
}

inline LoseOne(s) {
  if
  :: taken[s] == kWhole ->
     taken[s] = kLost;
     if
     :: viewer -> replacing[s] = true; orders!kLose,s,attempt
     :: else -> shares[s] = false; named[s] = false
     fi
  :: else
  fi
}

inline NoneReplaced() {
  replacing[0] = false;
  replacing[1] = false
}

/* All views have been replaced, or are not waited for any more. */
inline Lost(s) {
  if
  :: taken[s] == kLost -> shares[s] = false; named[s] = false
  :: else
  fi
}

inline EndLosing() {
  if
  :: !Replacing ->
     Lost(0);
     Lost(1);
     ThawIfLast();
     if
     :: losing -> Finish()
     :: else
     fi
  :: else
  fi
}

inline Lose() {
  losing = copying;
  revoking = 0;
  attempt++;
  LoseOne(0);
  LoseOne(1);
  EndLosing()
}

inline RevokeOne(s) {
  if
  :: named[s] && viewer -> revoking++; orders!kRevoke,s,attempt
  :: else
  fi;
  named[s] = false
}

inline PrivatizeOne(s) {
  if
  :: shares[s] -> shares[s] = false; preimage[s] = frame
  :: else
  fi
}

inline Privatize() {
#ifdef BUG_OLD_STORE
  /* The frame is of another store: in this one stands what somebody has left there. */
  if
  :: copied_life != life -> frame = 99
  :: else
  fi;
#endif
  PrivatizeOne(0);
  PrivatizeOne(1)
}

/* The content is the copy's; what shares the page is that of this moment. */
inline OnCopied() {
  copied = false;
  if
#ifdef BUG_OLD_STORE
  :: !frozen || !IsShared -> Finish()
  :: frozen && IsShared && fails > 0 -> fails--; Lose()
  :: frozen && IsShared ->
#else
  :: !frozen || !IsShared || copied_life != life -> Finish()
  :: frozen && IsShared && copied_life == life && fails > 0 -> fails--; Lose()
  :: frozen && IsShared && copied_life == life ->
#endif
#ifdef BUG_REVOKE_FIRST
     RevokeOne(0);
     RevokeOne(1);
     if
     :: revoking == 0 -> Privatize(); Finish()
     :: else
     fi
#else
     Privatize();
#ifndef BUG_NOT_REVOKED
     RevokeOne(0);
     RevokeOne(1);
#endif
     if
#ifdef BUG_NOT_AWAITED
     :: true -> Finish()
#else
     :: revoking == 0 -> Finish()
     :: else
#endif
     fi
#endif
  fi
}

/* Whoever comes while a page is being copied, or taken from views, is collected; also if no snapshot
 * shares it by then. */
inline OnWriter(w) {
  if
#ifdef BUG_UNSHARED_GRANTED_AT_ONCE
  :: copying && IsShared -> writer[w] = kCollected
  :: !IsShared ->
#else
  :: copying -> writer[w] = kCollected
  :: !copying && !IsShared ->
#endif
     writer[w] = 0;
     writable[w] = true;
     CheckGrants()
  :: !copying && IsShared ->
     writer[w] = kCollected;
     copying = true;
     copied_life = life;
#ifndef BLOCKS
     frame = live;
     OnCopied()
#endif
  fi
}

/* The live frame, for what is not mapped. */
inline Share(s) {
  named[s] = true;
  if
  :: viewer && view[s] == kNone -> view[s] = kLive
  :: else
  fi;
  CheckViews()
}

inline OnReader(s) {
  if
  :: taken[s] != kWhole
  :: taken[s] == kWhole && shares[s] -> Share(s)
  :: taken[s] == kWhole && !shares[s] ->
     if
     :: viewer && view[s] == kNone -> view[s] = kCopy; copy[s] = preimage[s]
     :: else
     fi;
     CheckViews()
  fi;
  reader[s] = 0
}

inline OnNeighbour(s) {
  if
  :: taken[s] == kWhole && shares[s] -> Share(s)
  :: else
  fi;
  neighbour[s] = 0
}

/* A copy for a view that is written, if there is nothing yet. Else the thread comes again. */
inline CopyFor(s) {
  if
  :: viewer && taken[s] == kWhole && view[s] == kNone -> view[s] = kOwn
  :: else
  fi;
  author[s] = 0
}

inline OnAuthor(s) {
  if
  :: author[s] == kProtected && named[s] && viewer -> author[s] = kZapping; orders!kZap,s,attempt
  :: else -> CopyFor(s)
  fi
}

inline OnAnswer() {
  answers?kind,s,tag;
  if
  :: kind == kRevoke ->
     if
     :: revoking > 0 && tag == attempt ->
        revoking--;
        if
        :: revoking == 0 ->
#ifdef BUG_REVOKE_FIRST
           Privatize();
#endif
           Finish()
        :: else
        fi
     :: else
     fi
  :: kind == kZap ->
     /* Another thread may have had the page mapped again meanwhile: it stays named. */
#ifdef BUG_UNNAMED_AFTER_ZAP
     named[s] = false;
#endif
     CopyFor(s)
  :: kind == kLose ->
     if
     :: replacing[s] -> replacing[s] = false; EndLosing()
     :: else
     fi
  fi;
  kind = 0;
  tag = 0;
  s = 0
}

inline Late() {
  lates--;
#ifdef BUG_LATE_IS_DONE
  if
  :: revoking > 0 -> Finish()
  :: else -> NoneReplaced(); EndLosing()
  fi
#else
  if
  :: revoking > 0 -> Lose()
  :: else -> NoneReplaced(); EndLosing()
  fi
#endif
}

inline OnViewerGone() {
  do
  :: nempty(orders) -> orders?_,_,_
  :: empty(orders) -> break
  od;
  do
  :: nempty(answers) -> answers?_,_,_
  :: empty(answers) -> break
  od;
  named[0] = false;
  named[1] = false;
  reader[0] = 0;
  reader[1] = 0;
  neighbour[0] = 0;
  neighbour[1] = 0;
  author[0] = 0;
  author[1] = 0;
#ifndef BUG_DEAD_AWAITED
  NoneReplaced();
  if
  :: losing -> EndLosing()
  :: revoking > 0 && !losing -> Finish()
  :: else -> EndLosing()
  fi;
#endif
  known = false
}

inline Take() {
  takes--;
  freezing = false;
  s = (taken[0] == kNotTaken -> 0 : 1);
  taken[s] = kWhole;
  was[s] = live;
  shares[s] = true;
  s = 0;
  CheckGrants();
  CheckViews()
}

/* Its last view and its last handle have gone. */
inline Drop(s) {
  taken[s] = kDropped;
  shares[s] = false;
  named[s] = false;
  view[s] = kNone;
  copy[s] = 0;
  ThawIfLast()
}

#define Mine(w) (writer[w] == kWaits && frozen && !freezing)
#define MayTake (takes > 0 && !freezing && taken[1] == kNotTaken)
/* A thread that waits for its view's memory does not unmap it. */
#define MayDrop(s) \
  (taken[s] == kWhole && (!known || (reader[s] == 0 && neighbour[s] == 0 && author[s] == 0)))

proctype Pager() {
  byte kind;
  byte s;
  byte tag;
  bool known = true;

end_idle:
  do
  :: atomic { Mine(0) -> OnWriter(0) }
  :: atomic { Mine(1) -> OnWriter(1) }
#ifdef BLOCKS
  :: atomic { copying && !copied && copied_life != 0 && frame == 0 -> frame = live; copied = true }
  :: atomic { copied -> OnCopied() }
#endif
  :: atomic { reader[0] != 0 && known -> OnReader(0) }
  :: atomic { reader[1] != 0 && known -> OnReader(1) }
  :: atomic { neighbour[0] != 0 && known -> OnNeighbour(0) }
  :: atomic { neighbour[1] != 0 && known -> OnNeighbour(1) }
  :: atomic { (author[0] == kWrite || author[0] == kProtected) && known -> OnAuthor(0) }
  :: atomic { (author[1] == kWrite || author[1] == kProtected) && known -> OnAuthor(1) }
  :: atomic { nempty(answers) && known -> OnAnswer() }
  :: atomic { lates > 0 && known && (revoking > 0 || Replacing) -> Late() }
  :: atomic { known && !viewer -> OnViewerGone() }
  :: atomic { MayTake -> freezing = true; frozen = true }
  :: atomic { freezing && !writable[0] && !writable[1] -> Take() }
  :: atomic { MayDrop(0) -> Drop(0) }
  :: atomic { MayDrop(1) -> Drop(1) }
  od
}

/* ---- the world ---- */

init {
  atomic {
    live = 1;
    life = 1;
    writable[0] = true;
    run Writer(0);
    run Writer(1);
    run Zapper(0);
    run Zapper(1);
    run Reader(0);
    run Reader(1);
    run Neighbour(0);
    run Neighbour(1);
#ifdef PRIVATE
    run Author(0);
    run Author(1);
#endif
    run ViewerAgent();
    run Pager()
  }
  do
  :: atomic {
       kills > 0 && viewer ->
       kills--;
       viewer = false;
       view[0] = kNone;
       view[1] = kNone;
       copy[0] = 0;
       copy[1] = 0
     }
  :: timeout ->
     assert(!freezing && !copying && revoking == 0 && !Replacing);
     assert(writer[0] == 0 && writer[1] == 0);
     assert(reader[0] == 0 && reader[1] == 0 && author[0] == 0 && author[1] == 0);
     break
  od
}
