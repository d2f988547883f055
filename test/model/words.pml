/*
 * The words of src/shared/layout.ts that the hand-over is made of, and what src/shared/control.ts does to them, one atomic
 * operation a step. Included by send.pml and receive.pml.
 *
 * JavaScript's Atomics have one order for all threads, so a word is a variable and an operation a step. What the code writes
 * plainly (SLOT, a slot's words) is a step of its own.
 *
 * READY and SEM only grow, and all that anybody asks of them is whether they are still what he has noted. So each waiter has a
 * bit `same`, set where he notes the count and cleared where somebody adds to it; the counts themselves, modulo 16, are there
 * for traces only. (Of 2^32 posts between a look and a sleep the code could take none for none; the model does not have that.)
 *
 * Waiting (src/shared/wait.ts): a sleeper is woken by who notifies after it fell asleep; the word is compared in the same step
 * in which it falls asleep. No time limit wakes anybody, so that a lost wake-up is a state without a way on.
 *
 * A line that ends in a name after `=` is an atomic store or a notify of the code: in a mutant of that name it is left out
 * (mutants.ts).
 *
 * With -DTRACE the same model takes what a run of the code has done (stepped/), event by event: a step is possible only if it
 * is the next event, and a trace is accepted if there is a way to its end. Loads that change nothing may come at any time.
 */
#define CH 2
#define MOD 16

/* STOP */
#define RUN 0
#define END 1
#define FAIL 2

/* STATE */
#define RUNNING 1
#define EOF 2
#define ENDED 3

/* Threads: the calling thread is 0. */
#define THREAD(c) ((c) + 1)

/* Operations, and numbers of words, as in stepped/stepper.ts. */
#define op_load 0
#define op_store 1
#define op_add 2
#define op_swap 3
#define op_notify 4
#define op_wait 5
#define w_READY 1
#define w_STOP 2
#define w_SEM(c) (3 + (c))
#define w_PENDING_JOB(c) (5 + (c))
#define w_PENDING_SYNC(c) (7 + (c))
#define w_SYNC_DONE(c) (9 + (c))
#define w_SYNC_RELEASED(c) (11 + (c))
#define w_STATE(c) (13 + (c))

#ifdef TRACE
c_decl {
\#include "trace.h"
}
int pos = 0;
int ev = -2;
/* By process: only whose thread has done the next event goes on. */
byte threadOf[16];
#define MINE provided ((ev & 3) == threadOf[_pid])
#define IS(t, op, w, v) (ev == ((t) | ((op) << 2) | ((w) << 5) | ((v) << 10)))
/* A way on which a property does not hold is none. */
#define assert(property) (property)
#define NEXT c_code { now.pos++; now.ev = trace_event(now.pos); }
#else
#define IS(t, op, w, v) (true)
#define NEXT skip
#define MINE
#endif

byte STOP = RUN;
bit PENDING_JOB[CH];
bit PENDING_SYNC[CH];
byte SYNC_DONE[CH];
byte SYNC_RELEASED[CH];
byte STATE[CH];

/* Up to three waits of the calling thread for READY; each channel's for SEM: is the count what was noted, and who sleeps. */
bit sameREADY[3];
bit sameSEM[CH];
bit onREADY[3];
bit onSEM[CH];
bit onSTOP[CH];
#ifdef TRACE
byte READY = 0;
byte SEM[CH];
#define GROW(word) word = (word + 1) % MOD
#else
#define READY 0
#define GROW(word) skip
#endif

/*
 * The calling thread's code runs without a break up to its next await: who has js. In a trace it has done so.
 */
bit js = 0;
#ifdef TRACE
#define FREE (true)
#define TAKE skip
#define RELEASE skip
#else
#define FREE (js == 0)
#define TAKE js = 1
#define RELEASE js = 0
#endif
#define LOCK atomic { FREE -> TAKE }
#define UNLOCK RELEASE
/* An await: others may run. */
#define AWAIT UNLOCK; LOCK

#define LOAD(t, w, word, into) atomic { IS(t, op_load, w, word) -> into = word; NEXT }
#define STORE(t, w, word, value) atomic { IS(t, op_store, w, value) -> word = value; NEXT }
#define ADD(t, w, word) atomic { IS(t, op_add, w, word) -> word = (word + 1) % MOD; NEXT }
#define NOTE_READY(k) atomic { IS(0, op_load, w_READY, READY) -> sameREADY[k] = 1; NEXT }
#define NOTE_SEM(c) atomic { IS(THREAD(c), op_load, w_SEM(c), SEM[c]) -> sameSEM[c] = 1; NEXT }

/*
 * A post is one step, but in a trace: behind an add nothing keeps the notify from coming, and whoever looks in between sees the
 * count that he sees after it as well. For the same reason the look right before a wait (its spin) is a step in a trace only: the
 * wait compares again. All that stop() wakes is one step too.
 */
#ifdef TRACE
#define TOGETHER
#else
#define TOGETHER atomic
#endif

inline postReady(t) {
  TOGETHER {
    atomic { IS(t, op_add, w_READY, READY) -> GROW(READY); sameREADY[0] = 0; sameREADY[1] = 0; sameREADY[2] = 0; NEXT }; /* = postReady: add */
    atomic { IS(t, op_notify, w_READY, 0) -> onREADY[0] = 0; onREADY[1] = 0; onREADY[2] = 0; NEXT }; /* = postReady: notify */
  }
}

inline postSem(t, c) {
  TOGETHER {
    atomic { IS(t, op_add, w_SEM(c), SEM[c]) -> GROW(SEM[c]); sameSEM[c] = 0; NEXT }; /* = postSem: add */
    atomic { IS(t, op_notify, w_SEM(c), 0) -> onSEM[c] = 0; NEXT }; /* = postSem: notify */
  }
}

/* control.stop(level); uses the caller's `byte now, set`. In a trace its loads are among the looks. */
inline stop(t, level) {
#ifdef TRACE
  do
  :: atomic { STOP < level && IS(t, op_swap, w_STOP, level) -> STOP = level; set = 1; NEXT }; break
  /* Somebody else has raised it meanwhile: enough, or not yet. */
  :: atomic { STOP >= level && IS(t, op_swap, w_STOP, STOP) -> set = 0; NEXT }; break
  :: atomic { STOP != RUN && STOP < level && IS(t, op_swap, w_STOP, STOP) -> NEXT }
  od;
#else
  set = 0;
  do
  :: LOAD(t, w_STOP, STOP, now);
     if
     :: now >= level -> break
     :: else
     fi;
     set = 1;
     atomic { if :: STOP == now -> STOP = level :: else -> set = 0 fi }; /* = stop: compareExchange */
     if
     :: set -> break
     :: else
     fi
  od;
#endif
  if
  :: set ->
     TOGETHER {
       atomic { IS(t, op_notify, w_STOP, 0) -> onSTOP[0] = 0; onSTOP[1] = 0; NEXT }; /* = stop: notify STOP */
       postReady(t); /* = stop: postReady */
       postSem(t, 0); /* = stop: postSem */
       postSem(t, 1)
     }
  :: else
  fi
}

/* control.setChannelState() */
inline setState(c, state) {
  STORE(THREAD(c), w_STATE(c), STATE[c], state); /* = setChannelState: store */
  postReady(THREAD(c)); /* = setChannelState: postReady */
}

/* control.syncDone() */
inline syncDone(c) {
  STORE(THREAD(c), w_PENDING_SYNC(c), PENDING_SYNC[c], 0); /* = syncDone: store */
  ADD(THREAD(c), w_SYNC_DONE(c), SYNC_DONE[c]); /* = syncDone: add */
  postReady(THREAD(c)); /* = syncDone: postReady */
}

/* The calling thread, behind its look: sleeps unless READY has grown since it was noted. Uses the caller's `bit slept`. */
inline waitReady(k) {
  slept = 1;
#ifdef TRACE
  atomic { IS(0, op_load, w_READY, READY) -> slept = sameREADY[k]; NEXT };
#endif
  if
  :: slept ->
     atomic {
       IS(0, op_wait, w_READY, sameREADY[k]) -> slept = sameREADY[k];
       if
       :: slept -> onREADY[k] = 1; RELEASE
       :: else
       fi;
       NEXT
     };
     if
     :: slept -> atomic { onREADY[k] == 0 && FREE -> TAKE }
     :: else
     fi
  :: else
  fi
}

/* A channel, behind its look (ASLEEP is its model's: until somebody notifies): sleeps unless SEM has grown since it was noted. Uses the caller's `bit slept`. */
inline waitSem(c) {
  slept = 1;
#ifdef TRACE
  atomic { IS(THREAD(c), op_load, w_SEM(c), SEM[c]) -> slept = sameSEM[c]; NEXT };
#endif
  if
  :: slept ->
     atomic { IS(THREAD(c), op_wait, w_SEM(c), sameSEM[c]) -> onSEM[c] = sameSEM[c]; NEXT };
     ASLEEP(c)
  :: else
  fi
}

/* control.stopAbove(), in a channel's guard: until STOP is above `level`, in `now`. */
inline stopAbove(c, level) {
  do
  :: LOAD(THREAD(c), w_STOP, STOP, now);
     again = now;
     if
     :: now > level -> break
     :: else
     fi;
#ifdef TRACE
     LOAD(THREAD(c), w_STOP, STOP, again);
#endif
     if
     :: again == now ->
        atomic { IS(THREAD(c), op_wait, w_STOP, (STOP == now)) -> onSTOP[c] = (STOP == now); NEXT };
        onSTOP[c] == 0
     :: else
     fi
  od
}

#ifdef TRACE
/* Looks that decide nothing here: calls that ask whether the session has stopped, or whether a channel is idle. */
proctype looks() {
  do
  :: atomic { IS(0, op_load, w_STOP, STOP) -> NEXT }
  :: atomic { IS(1, op_load, w_STOP, STOP) -> NEXT }
  :: atomic { IS(2, op_load, w_STOP, STOP) -> NEXT }
  :: atomic { IS(0, op_load, w_STATE(0), STATE[0]) -> NEXT }
  :: atomic { IS(0, op_load, w_STATE(1), STATE[1]) -> NEXT }
  :: atomic { IS(1, op_load, w_STATE(0), STATE[0]) -> NEXT }
  :: atomic { IS(1, op_load, w_STATE(1), STATE[1]) -> NEXT }
  :: atomic { IS(2, op_load, w_STATE(0), STATE[0]) -> NEXT }
  :: atomic { IS(2, op_load, w_STATE(1), STATE[1]) -> NEXT }
  :: atomic { IS(0, op_load, w_PENDING_JOB(0), PENDING_JOB[0]) -> NEXT }
  :: atomic { IS(0, op_load, w_PENDING_JOB(1), PENDING_JOB[1]) -> NEXT }
  :: atomic { IS(1, op_load, w_PENDING_JOB(0), PENDING_JOB[0]) -> NEXT }
  :: atomic { IS(2, op_load, w_PENDING_JOB(1), PENDING_JOB[1]) -> NEXT }
  /* The rest of a wait whose channel has left. */
  :: atomic { IS(1, op_load, w_SEM(0), SEM[0]) -> NEXT }
  :: atomic { IS(2, op_load, w_SEM(1), SEM[1]) -> NEXT }
  :: atomic { IS(1, op_load, w_SYNC_RELEASED(0), SYNC_RELEASED[0]) -> NEXT }
  :: atomic { IS(2, op_load, w_SYNC_RELEASED(1), SYNC_RELEASED[1]) -> NEXT }
  :: atomic { ev == -1 -> c_code { trace_accepted(); }; ev = -2 }
  od
}
#endif
