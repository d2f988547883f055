/*
 * The receiving side: src/recv/channel.ts and calling-thread.ts, delivery.ts and receiver.ts over src/shared/control.ts. Two
 * channels; of the calling thread two waits for READY: 0 is the delivery, 1 the receiver's ready and sync().
 *
 *     a slot has one owner            the channel fills it only while it is its own; assertions on `owner`
 *     no job is lost, or taken twice  what is in a slot when it is taken is what was offered last
 *     no sync overtakes a job         sync() ends with all taken that came before it, and no channel reads on before that
 *     nobody sleeps for ever          every process comes to its end: an end state that is none is an error
 *
 * With -DOPENED channels run at first, and guards sleep. With -DFAILS channel 0 may also end early, or its thread die, and the
 * session may be stopped with FAIL at any time.
 */
/* The guard ends a channel also while it waits. */
#define ASLEEP(c) if :: onSEM[c] == 0 :: settled[c] -> goto leaving fi
#include "words.pml"

/* Of each channel, before each of its SYNCs. */
#ifndef JOBS
#define JOBS 1
#endif
#ifndef SYNCS
#define SYNCS 1
#endif

bit filled[CH];
/* Ghosts: the slot is the calling thread's; jobs that were offered and not taken; the syncs that are through. */
bit given[CH];
bit untaken[CH];
byte synced = 0;
bit gone[CH];
bit delivering[CH];
/* The guard of a channel has seen STOP. */
bit settled[CH];
bit closing = 0;
bit over = 0;

/* The head of CallingThread.#until(), behind its condition: leaves if the session stops. */
inline stopped_(c) {
  atomic {
    LOAD(THREAD(c), w_STOP, STOP, stopped);
    if
    :: stopped != RUN -> goto resting
    :: else
    fi
  };
  waitSem(c)
}

/* The slot is filled, offered, and waited for. */
inline offer(c) {
  atomic { assert(!given[c] && !filled[c]); filled[c] = 1 };
  given[c] = 1;
  untaken[c] = 1;
  STORE(THREAD(c), w_PENDING_JOB(c), PENDING_JOB[c], 1); /* = offer: store */
  postReady(THREAD(c)); /* = offer: postReady */
  do
  :: NOTE_SEM(c);
     LOAD(THREAD(c), w_PENDING_JOB(c), PENDING_JOB[c], job);
     if
     :: !job -> break
     :: else
     fi;
     stopped_(c)
  :: settled[c] -> goto leaving
  od
}

/* A SYNC was read: says so, and waits until all channels have theirs. */
inline sync(c) {
  atomic { assert(!untaken[c]); syncs++ };
  syncDone(c);
  do
  :: NOTE_SEM(c);
     LOAD(THREAD(c), w_SYNC_RELEASED(c), SYNC_RELEASED[c], released);
     if
     :: released == syncs -> break
     :: else
     fi;
     stopped_(c)
  :: settled[c] -> goto leaving
  od;
  assert(SYNC_DONE[0] >= syncs && SYNC_DONE[1] >= syncs)
}

proctype channel(byte c) MINE {
  byte stopped, released, now, set, syncs = 0, jobs = 0;
  bit job, slept;
#ifndef OPENED
  setState(c, RUNNING);
#endif
  do
#ifdef TRACE
  :: offer(c)
  :: sync(c)
  :: break
  :: goto thrown
#else
  :: jobs < JOBS && (syncs < SYNCS || SYNCS == 0) -> offer(c); jobs++
  :: syncs < SYNCS -> sync(c); jobs = 0
  :: syncs == SYNCS -> break
#ifdef FAILS
  :: c == 0 -> break
  :: c == 0 -> goto thrown
  :: c == 0 -> goto died
#endif
#endif
  :: settled[c] -> goto leaving
  od;
  /* The source has ended it. */
  setState(c, EOF);
  goto leaving;
resting:
  settled[c];
  goto leaving;
thrown:
#ifdef TRACE
  if
  :: skip
  :: stop(THREAD(c), FAIL)
  fi;
#else
  LOAD(THREAD(c), w_STOP, STOP, stopped);
  if
  :: stopped != FAIL -> stop(THREAD(c), FAIL)
  :: else
  fi;
#endif
leaving:
  setState(c, ENDED);
died:
  gone[c] = 1
}

/* STOP ends the channel, also one that waits for bytes. */
proctype guard(byte c) MINE {
  byte now, again;
#ifdef OPENED
  onSTOP[c] == 0;
#endif
  stopAbove(c, RUN);
  settled[c] = 1
}

/* control.taken() */
inline taken(c) {
  atomic { assert(filled[c] && given[c] && untaken[c]); filled[c] = 0; given[c] = 0; untaken[c] = 0 };
  STORE(0, w_PENDING_JOB(c), PENDING_JOB[c], 0); /* = taken: store */
  postSem(0, c); /* = taken: postSem */
}

/* Delivery.#deliver() */
proctype deliver() MINE {
  byte stopped, c;
  bit job, slept;
  LOCK;
  do
  :: NOTE_READY(0);
     LOAD(0, w_STOP, STOP, stopped);
     if
     :: stopped != RUN -> break
     :: else
     fi;
     c = 0;
     do
     :: c < CH ->
        if
        :: !delivering[c] ->
           LOAD(0, w_PENDING_JOB(c), PENDING_JOB[c], job);
           if
           :: job && filled[c] ->
              if
              /* Pages: taken at once. */
              :: taken(c)
              /* A device's load(): later. */
              :: delivering[c] = 1
              fi
           :: job && !filled[c] -> assert(false)
           :: else
           fi
        :: else
        fi;
        c++
     :: else -> break
     od;
     waitReady(0);
     if
     :: !slept -> AWAIT
     :: else
     fi
  od;
  UNLOCK;
  over = 1
}

/* Delivery.#take() of a device's state, behind load(). */
proctype taker(byte c) MINE {
  do
  :: atomic { delivering[c] && FREE -> TAKE };
     delivering[c] = 0;
     taken(c);
     UNLOCK
  :: over && !delivering[c] && gone[c] -> break
  od
}

inline look(k) {
  NOTE_READY(k);
  atomic {
    LOAD(0, w_STOP, STOP, stopped);
    if
    :: stopped != RUN -> UNLOCK; goto ended
    :: else
    fi
  }
}

/* Receiver: ready, sync() so many times, and the end: orderly, or at once. */
proctype session() MINE {
  byte c, stopped, now, set, state, done;
  bit slept;
  LOCK;
#ifndef OPENED
  do
  :: look(1);
     LOAD(0, w_STATE(0), STATE[0], state);
     if
     :: state >= RUNNING -> LOAD(0, w_STATE(1), STATE[1], state)
     :: else
     fi;
     if
     :: state >= RUNNING -> break
     :: else
     fi;
     waitReady(1)
  od;
#endif
  do
  :: synced < SYNCS ->
     AWAIT;
     c = 0;
     do
     :: c < CH ->
        do
        :: look(1);
           LOAD(0, w_STATE(c), STATE[c], state);
           LOAD(0, w_SYNC_DONE(c), SYNC_DONE[c], done);
           if
           :: done == synced + 1 -> break
           :: else
           fi;
           if
           :: state >= EOF ->
              LOAD(0, w_STOP, STOP, stopped);
              if
              /* It has ended before its SYNC. */
              :: stopped == RUN -> stop(0, FAIL); UNLOCK; goto ended
              :: else
              fi
           :: else
           fi;
           waitReady(1)
        od;
        AWAIT;
        c++
     :: else -> break
     od;
#ifndef TRACE
     atomic { assert(!untaken[0] && !untaken[1]) };
#endif
     synced++;
     c = 0;
     do
     :: c < CH ->
        ADD(0, w_SYNC_RELEASED(c), SYNC_RELEASED[c]); /* = releaseSync: add */
        postSem(0, c); /* = releaseSync: postSem */
        c++
     :: else -> break
     od
  :: synced == SYNCS -> break
  od;
  UNLOCK;
ended:
  closing = 1
}

/* The end: orderly behind the last sync, or at any moment. */
proctype end() MINE {
  byte now, set;
#ifdef TRACE
  do
  :: stop(0, END)
  :: stop(0, FAIL)
  od;
#endif
  if
  :: closing -> LOCK; stop(0, END); UNLOCK
#ifdef FAILS
  :: LOCK; stop(0, FAIL); UNLOCK
#endif
  fi;
  /* Teardown: the channels' tasks are joined, then STOP is FAIL. */
  gone[0] && gone[1];
  LOCK;
  stop(0, FAIL);
  UNLOCK;
  closing;
#ifdef FAILS
  skip
#else
  assert(synced == SYNCS && !untaken[0] && !untaken[1] && STATE[0] == ENDED && STATE[1] == ENDED)
#endif
}

init {
#ifdef TRACE
  /* In the order in which they begin; the last is tried first. */
  threadOf[3] = 1;
  threadOf[4] = 2;
  threadOf[5] = 1;
  threadOf[6] = 2;
  c_code { now.ev = trace_event(0); };
#endif
  atomic {
#ifdef OPENED
    STATE[0] = RUNNING;
    STATE[1] = RUNNING;
    onSTOP[0] = 1;
    onSTOP[1] = 1;
#endif
#ifdef TRACE
    run looks();
#endif
    run end();
    run guard(0);
    run guard(1);
    run channel(0);
    run channel(1);
    run taker(0);
    run taker(1);
    run deliver();
    run session()
  }
}
