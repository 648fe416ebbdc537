/* Who may write a frozen page, and when, if the pager dies or a process leaves it: what is order of
 * events in runtime/guest/holds.h and runtime/snapshot/snapshots.h (OnLeaving, Lose).
 *
 * Processes: N guests, of which each has mappings of the file that it writes (Writes) and views of its
 *            snapshot, or one of both: a program thread and an agent. One pager. The world (init)
 *            kills the pager and guests, and judges what is left when nothing moves.
 * Memory:    one page of one file. A descriptor is open as long as somebody has it: the pager, an
 *            agent, or the queue of a channel that nobody has read yet.
 * Numbers:   DEATHS of the pager, KILLS of guests, LEAVES (who goes on without the pager), QUITS (an
 *            agent is replaced by another) bound what happens.
 * Errors:    an assertion fails, or something waits for ever. README.md says what each BUG_ takes
 *            away, and what breaks then.
 */

#ifndef N
#define N 2
#endif
#ifndef DEATHS
#define DEATHS 1
#endif
#ifndef KILLS
#define KILLS 0
#endif
#ifndef LEAVES
#define LEAVES 0
#endif
#ifndef QUITS
#define QUITS 0
#endif
/* Guest 0 writes. Guest 1 has views; with BOTH they do both. */
#ifdef BOTH
#define Writes(g) (true)
#define Maps(g) (true)
#else
#define Writes(g) (g != 1)
#define Maps(g) (g == 1)
#endif

/* Orders. */
#define kFreeze 1 /* with a duplicate of the userfaultfd, and the read end of the life pipe */
#define kHold 2   /* kHoldLife: with a write end */
#define kLose 3
#define kQuit 4

/* ---- the truth ---- */
bool pager = true;
bool alive[N];
bool frozen[N];       /* its page is registered and not mapped, or mapped read-only */
bool lifted[N];       /* ... and may be written all the same */
bool wants[N];        /* its thread is at a write */
bool wrote[N];
bool view[N];         /* a view can be read, or is about to be (mprotect) */
bool readable[N];     /* and shows the live frame */
bool left[N];         /* goes on without the pager */
bool connected[N];    /* the guest's end of its channel is open */

/* Who has what. Of the life pipe only write ends count. */
bool pager_uffd[N];
bool agent_uffd[N];
bool agent_waits[N];  /* the agent has the read end */
bool pager_life = true;
bool agent_life[N];
bool store_uffd[N];   /* in the hands of nobody, for the agent's successor */
bool store_life[N];
bool store_waits[N];
byte queued_uffd[N];  /* descriptors in the queue of the channel */
byte queued_life[N];

/* ---- guests ---- */
bool lock[N];
bool agent[N];
bool reset[N];        /* the next read from the channel says that the pager had not read all */
bool told[N];         /* the answer to kMapView ... */
bool refused[N];      /* ... or that there is no snapshot any more */
chan orders[N] = [5] of { byte };

/* ---- the pager ---- */
bool member[N];       /* a guest, as the pager knows */
bool begun[N];        /* kFreeze has been sent to it */
bool noted[N];        /* its kFreezeDone has come, or it is late */
bool done[N];         /* on its way */
bool snapshot;        /* taken, and whole */
bool lost;            /* taken, and lost */
bool asked[N];        /* kMapView on its way */
bool mapped[N];       /* a view of it is in the tables */
bool answers[N];      /* kOrderDone of kLose on its way */
bool new_agent[N];    /* kAgent 1 on its way */
bool unwatched;       /* somebody writes the file and is no guest any more */

byte deaths = DEATHS;
byte kills = KILLS;
byte leaves = LEAVES;
byte quits = QUITS;

#define UffdOpen(g) (pager_uffd[g] || agent_uffd[g] || store_uffd[g] || queued_uffd[g] > 0)
#define HasLife(g) (agent_life[g] || store_life[g] || queued_life[g] > 0)
#if N == 3
#define LifeOpen (pager_life || HasLife(0) || HasLife(1) || HasLife(2))
#define NoneReads (!readable[0] && !readable[1] && !readable[2])
#else
#define LifeOpen (pager_life || HasLife(0) || HasLife(1))
#define NoneReads (!readable[0] && !readable[1])
#endif

/* Whether the kernel lets a write through. */
#define Passes(g) (!frozen[g] || lifted[g] || !UffdOpen(g))

/* Nobody writes to what can still be read as a page of the snapshot. What is written before the
 * moment of the snapshot is part of it. */
inline CheckWrite() { assert(!(snapshot || lost) || NoneReads) }

inline MakeSigbus(g) {
  view[g] = false;
  readable[g] = false
}

inline GoOff(g) {
  left[g] = true;
  connected[g] = false;
  asked[g] = false;
  MakeSigbus(g)
}

proctype Program(byte g) {
  {
end_idle:
    do
    :: atomic { Writes(g) && alive[g] && !wrote[g] && (snapshot || lost) && Passes(g) ->
                wrote[g] = true;
                wants[g] = false;
                CheckWrite() }
    :: atomic { Writes(g) && alive[g] && !wrote[g] && !wants[g] && !Passes(g) -> wants[g] = true }
    :: atomic { wants[g] && !(snapshot || lost) && Passes(g) -> wants[g] = false }
    /* A view: asked for and entered under the lock. */
    :: atomic { Maps(g) && connected[g] && !lock[g] && !asked[g] && !mapped[g] && snapshot && !left[g] ->
                lock[g] = true;
                asked[g] = true }
       if
       :: atomic { told[g] -> told[g] = false; view[g] = true }
          atomic { readable[g] = view[g]; lock[g] = false }
       :: atomic { refused[g] -> refused[g] = false; lock[g] = false }
       /* No answer: it goes on without the pager. */
       :: atomic { !pager && !told[g] && !refused[g] -> GoOff(g); lock[g] = false }
       fi
    :: atomic { leaves > 0 && connected[g] && !lock[g] && pager -> leaves--; GoOff(g) }
    od
  } unless { !alive[g] }
}

/* What comes with an order is the agent's. */
/* Who has views alone waits for nobody: when they are gone, nothing that it holds matters. */
#ifdef BUG_VIEWER_AWAITS
#define Awaits(g) (true)
#else
#define Awaits(g) (Writes(g))
#endif

inline TakeFreeze(g) {
  queued_uffd[g]--;
  if
#ifdef BUG_OFF_DROPS_HOLD
  :: left[g]
  :: else -> agent_uffd[g] = true; agent_waits[g] = Awaits(g)
#else
#ifndef BUG_NO_HOLD
  :: true -> agent_uffd[g] = true; agent_waits[g] = Awaits(g)
#else
  :: true -> agent_waits[g] = Awaits(g)
#endif
#endif
  fi;
  if
  :: Writes(g) && !left[g] && connected[g] -> frozen[g] = true; done[g] = pager
  :: else
  fi
}

inline CarryOut(g) {
  if
  :: kind == kFreeze -> TakeFreeze(g)
  :: kind == kHold -> queued_life[g]--; agent_life[g] = true
  :: kind == kLose ->
#ifdef BUG_LIFE_BEFORE_VIEW
     agent_life[g] = false;
     answers[g] = pager && connected[g]
#else
     MakeSigbus(g);
     agent_life[g] = false;
     answers[g] = pager && connected[g]
#endif
  fi;
  kind = 0
}

#define AtEnd(g) (empty(orders[g]) && (!pager || !connected[g] || !member[g]))

proctype Agent(byte g) {
  byte kind;
  bool ends;

  {
end_idle:
    do
    :: atomic {
         agent[g] && !reset[g] && nempty(orders[g]) && (!lock[g] || orders[g]?[kQuit] || orders[g]?[kHold]) ->
         orders[g]?kind;
         if
         :: kind == kQuit -> ends = true; kind = 0
         :: else -> CarryOut(g)
         fi
       }
       if
       :: ends -> break
       :: else
       fi
    :: atomic { agent[g] && reset[g] && !pager -> reset[g] = false }
#ifdef BUG_RESET_IS_END
       break
#endif
    :: atomic { agent[g] && !reset[g] && AtEnd(g) -> skip };
       break
    od;
    if
    :: atomic {
         ends ->
         ends = false;
#ifndef BUG_QUIT_DROPS_HOLDS
         store_uffd[g] = agent_uffd[g];
         store_life[g] = agent_life[g];
         store_waits[g] = agent_waits[g];
#endif
         agent_uffd[g] = false;
         agent_life[g] = false;
         agent_waits[g] = false;
         agent[g] = false
       }
       /* The next one. */
       atomic {
         agent[g] = true;
         agent_uffd[g] = store_uffd[g];
         agent_life[g] = store_life[g];
         agent_waits[g] = store_waits[g];
         store_uffd[g] = false;
         store_life[g] = false;
         store_waits[g] = false;
         new_agent[g] = pager && connected[g]
       }
       goto end_idle
    :: else
    fi;
    /* The end of the holds: views, write ends, all others' write ends, the userfaultfd. */
#ifdef BUG_LIFE_CLOSED_FIRST
    agent_life[g] = false;
#endif
#ifdef BUG_AWAITED_FIRST
    !agent_waits[g] || !LifeOpen;
#endif
    if
    :: atomic { (view[g] || agent_life[g]) && !lock[g] -> MakeSigbus(g) }
    :: atomic { !view[g] && !agent_life[g] -> skip }
    fi;
    agent_life[g] = false;
#ifndef BUG_NOT_AWAITED
    !agent_waits[g] || !LifeOpen;
#endif
    atomic { agent_uffd[g] = false; agent_waits[g] = false; agent[g] = false }
  } unless { !alive[g] }
}

/* ---- the pager ---- */

inline TellFreeze(g) {
  queued_uffd[g]++;
  orders[g]!kFreeze
}

inline TellHold(g) {
  queued_life[g]++;
  orders[g]!kHold
}

inline OnMapView(g) {
  asked[g] = false;
  mapped[g] = true;
  TellHold(g);
  TellFreeze(g);
  told[g] = true
}

inline LoseViewOf(g) {
  if
  :: mapped[g] && member[g] -> orders[g]!kLose
  :: else
  fi
}

inline Lose() {
  if
  :: snapshot ->
     snapshot = false;
     lost = true;
     LoseViewOf(0);
     LoseViewOf(1)
#if N == 3
     ; LoseViewOf(2)
#endif
  :: else
  fi
}

/* The end of a channel. */
inline Forget(g) {
  member[g] = false;
  mapped[g] = false;
  done[g] = false;
  if
  :: alive[g] && Writes(g) ->
     unwatched = true;
#ifdef BUG_PROBE_LIFTS
     lifted[g] = true;
#endif
     Lose()
  :: else
  fi;
  pager_uffd[g] = false
}

inline OnAnswer(g) {
  answers[g] = false;
  mapped[g] = false
}

inline OnNewAgent(g) {
  new_agent[g] = false;
  if
  :: mapped[g] -> TellHold(g)
  :: else
  fi;
  if
  :: mapped[g] || (Writes(g) && (snapshot || lost)) -> TellFreeze(g)
  :: else
  fi
}

#if N == 3
#define AllNoted (noted[0] && noted[1] && noted[2])
#define NoneMapped (!mapped[0] && !mapped[1] && !mapped[2])
#else
#define AllNoted (noted[0] && noted[1])
#define NoneMapped (!mapped[0] && !mapped[1])
#endif

#define Asks(g) (member[g] && connected[g] && asked[g] && snapshot)
#define Ended(g) (member[g] && !connected[g] && !done[g] && !answers[g])

inline TellIfWrites(g) {
  if
  :: Writes(g) -> TellFreeze(g)
  :: else -> noted[g] = true
  fi
}

/* One loop; a process for each guest here, for each of its steps is whole. */
proctype Pager(byte g) {
end_idle:
  do
  :: atomic { pager && member[g] && connected[g] && !begun[g] -> begun[g] = true; TellIfWrites(g) }
  :: atomic { pager && member[g] && done[g] -> done[g] = false; noted[g] = true }
  /* It is late: it is write-protected from outside. */
  :: atomic { pager && member[g] && begun[g] && !noted[g] -> noted[g] = true; frozen[g] = Writes(g) }
  :: atomic { pager && Asks(g) && nfull(orders[g]) -> OnMapView(g) }
  :: atomic { pager && member[g] && connected[g] && asked[g] && !snapshot ->
              asked[g] = false;
              refused[g] = true }
  :: atomic { pager && member[g] && answers[g] -> OnAnswer(g) }
  :: atomic { pager && member[g] && connected[g] && new_agent[g] -> OnNewAgent(g) }
  :: atomic { pager && Ended(g) -> Forget(g); noted[g] = true }
  :: atomic { pager && quits > 0 && member[g] && connected[g] && agent[g] -> quits--; orders[g]!kQuit }
  od
}

proctype Taker() {
end_idle:
  do
  :: atomic { pager && AllNoted && !unwatched && !snapshot && !lost -> snapshot = true }
  :: atomic { pager && unwatched && !snapshot && NoneMapped && pager_life -> pager_life = false }
  od
}

/* ---- the world ---- */

/* Queues are read by those who have them; what the pager has not read makes them say so once. */
inline EndChannel(g) {
  pager_uffd[g] = false;
  reset[g] = connected[g] && (done[g] || asked[g] || answers[g] || new_agent[g]);
  done[g] = false;
  answers[g] = false;
  new_agent[g] = false;
  asked[g] = false
}

inline Kill(g) {
  kills--;
  alive[g] = false;
  connected[g] = false;
  agent[g] = false;
  agent_uffd[g] = false;
  agent_life[g] = false;
  agent_waits[g] = false;
  store_uffd[g] = false;
  store_life[g] = false;
  queued_uffd[g] = 0;
  queued_life[g] = 0;
  lock[g] = false;
  wants[g] = false;
  MakeSigbus(g);
  do
  :: nempty(orders[g]) -> orders[g]?_
  :: empty(orders[g]) -> break
  od
}

/* Nobody waits for ever with its write; with a pager that lives it is granted. */
#define Rests(g) (!alive[g] || !wants[g] || (pager && member[g]))

init {
  byte i;
  atomic {
    do
    :: i < N ->
       alive[i] = true;
       connected[i] = true;
       agent[i] = true;
       member[i] = true;
       pager_uffd[i] = true;
       run Program(i);
       run Agent(i);
       run Pager(i);
       i++
    :: else -> break
    od;
    i = 0;
    run Taker()
  }
  do
  :: atomic {
       deaths > 0 && pager ->
       deaths--;
       pager = false;
       pager_life = false;
       EndChannel(0);
       EndChannel(1)
#if N == 3
       ; EndChannel(2)
#endif
     }
  :: atomic { kills > 0 && alive[0] -> Kill(0) }
  :: atomic { kills > 0 && alive[1] -> Kill(1) }
  :: timeout ->
     assert(Rests(0) && Rests(1));
#if N == 3
     assert(Rests(2));
#endif
     break
  od
}
