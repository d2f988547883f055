/*
 * The sending side: src/send/hand-over.ts, sender.ts and channel.ts over src/shared/control.ts. Two channels, two clients of
 * the calling thread: 0 is the RAM client, which also syncs, 1 the device-state client.
 *
 *     a slot has one owner            assertions on `owner` wherever a slot is read or swapped
 *     no job is lost, or sent twice   at an orderly end all that was published is sent
 *     no sync overtakes a job         what was published to a channel before requestSync() is sent before its SYNC
 *     nobody sleeps for ever          every process comes to its end: an end state that is none is an error
 *
 * With -DOPENED channels are in their loops at first, and guards asleep; with -DBUSY each has a job besides, so that whoever
 * has one then waits, with a ticket. With -DFAILS anybody may also stop the session with FAIL at any time, a channel's
 * connection may break or its thread die, and a write may be stuck until its guard breaks it; without a trace channel 0's alone.
 */
#define ASLEEP(c) onSEM[c] == 0
#include "words.pml"

/* Of the RAM client, and of the device-state client. */
#ifndef JOBS
#define JOBS 1
#endif
#ifndef DEVICE_JOBS
#define DEVICE_JOBS 1
#endif
#ifndef SYNCS
#define SYNCS 1
#endif
#define NONE 255

/* The channel's slot; slot c is channel c's at first, slot CH + k client k's. */
byte SLOT[CH];
bit filled[4];
/* Ghosts: who has a slot (a channel, or CH + client); jobs published and not sent, and those of them that a sync is behind. */
byte owner[4];
byte unsent[CH];
byte due[CH];
bit asked[CH];
bit broken[CH];
bit gone[CH];
bit opened = 0;
byte over = 0;

byte nextTicket = 0;
byte serving = 0;

/* An idle channel, into `id`: any, from a rotating start, or the one that is wanted. */
inline findIdle() {
  id = NONE;
  if
  :: c = 0
  :: c = 1
  fi;
  atomic {
    LOAD(0, w_PENDING_JOB(c), PENDING_JOB[c], job);
    if
    :: !job -> id = c
    :: else
    fi
  };
  if
  :: id == NONE ->
     atomic {
       LOAD(0, w_PENDING_JOB(1 - c), PENDING_JOB[1 - c], job);
       if
       :: !job -> id = 1 - c
       :: else
       fi
     }
  :: else
#ifdef TRACE
  /* That one was wanted, no other. */
  :: skip
#endif
  fi
}

/* The head of Session.until(): notes READY, leaves if the session stops. */
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

/* control.publish(): the client's slot and the channel's are swapped. */
inline publish(k) {
  atomic {
    back = SLOT[id];
    assert(!filled[back] && owner[back] == id && owner[slot] == CH + k && filled[slot])
  };
  atomic { SLOT[id] = slot; owner[slot] = id; owner[back] = CH + k; unsent[id]++ };
  STORE(0, w_PENDING_JOB(id), PENDING_JOB[id], 1); /* = publish: store */
  postSem(0, id); /* = publish: postSem */
  slot = back
}

/* HandOver.give() */
inline give(k) {
  id = NONE;
  if
  :: nextTicket == serving ->
     LOAD(0, w_STOP, STOP, stopped);
     if
     :: stopped == RUN -> findIdle()
     :: else
     fi
  :: else
  fi;
  if
  :: id == NONE ->
     atomic { ticket = nextTicket; nextTicket++ };
     do
     :: look(k);
        if
        :: serving == ticket -> findIdle()
        :: else
        fi;
        if
        :: id != NONE -> break
        :: else
        fi;
        waitReady(k)
     od;
     /* A turn of other promises lies between the condition and what follows it. */
     AWAIT;
     serving++;
     if
     :: serving != nextTicket ->
        postReady(0); /* = give: postReady */
     :: else -> atomic { serving = 0; nextTicket = 0 }
     fi
  :: else
  fi;
  publish(k)
}

/* Sender.#sync(), behind the flush */
inline sync() {
  LOAD(0, w_STOP, STOP, stopped);
  if
  :: stopped != RUN -> UNLOCK; goto ended
  :: else
  fi;
  syncs++;
  c = 0;
  do
  :: c < CH ->
     atomic { due[c] = unsent[c]; asked[c] = 1 };
     STORE(0, w_PENDING_SYNC(c), PENDING_SYNC[c], 1); /* = requestSync: store */
     postSem(0, c); /* = requestSync: postSem */
     c++
  :: else -> break
  od;
  c = 0;
  do
  :: c < CH ->
     do
     :: look(k);
        LOAD(0, w_SYNC_DONE(c), SYNC_DONE[c], synced);
        if
        :: synced == syncs -> break
        :: else
        fi;
        waitReady(k)
     od;
     AWAIT;
     c++
  :: else -> break
  od
}

proctype client(byte k) MINE {
  byte slot = CH + k, back, id, c, stopped, ticket, synced, jobs = 0, syncs = 0;
  bit job, slept;
  opened;
  LOCK;
  do
  :: jobs < (k == 0 -> JOBS : DEVICE_JOBS) ->
     atomic { assert(owner[slot] == CH + k && !filled[slot]); filled[slot] = 1 };
     give(k);
#ifndef TRACE
     jobs++;
#endif
     AWAIT
#ifdef TRACE
  /* HandOver.offer(): without a wait, or not at all */
  :: nextTicket == serving ->
     findIdle();
     if
     :: id != NONE -> filled[slot] = 1; publish(k)
     :: else
     fi
#endif
#ifdef TRACE
  :: k == 0 -> sync()
#else
  :: k == 0 && syncs < SYNCS && jobs == JOBS -> sync()
#endif
  :: (k == 0 && jobs == JOBS && syncs == SYNCS) || (k == 1 && jobs == DEVICE_JOBS) -> UNLOCK; break
  od;
ended:
  over++
}

/* open(), and the end: orderly, or at once. */
proctype session() MINE {
  byte stopped, now, set, state;
  bit slept;
#ifdef OPENED
  goto running;
#endif
  LOCK;
  do
  :: look(2);
     LOAD(0, w_STATE(0), STATE[0], state);
     if
     :: state >= RUNNING ->
        LOAD(0, w_STATE(1), STATE[1], state)
     :: else ->
        LOAD(0, w_STATE(1), STATE[1], set)
     fi;
     if
     :: state >= RUNNING -> break
     :: else
     fi;
     waitReady(2)
  od;
  UNLOCK;
running:
  opened = 1;
#ifdef TRACE
  do
  :: stop(0, END)
  :: stop(0, FAIL)
  od;
#endif
  if
  :: over == CH -> LOCK; stop(0, END); UNLOCK
#ifdef FAILS
  :: LOCK; stop(0, FAIL); UNLOCK
#endif
  fi;
ended:
  opened = 1;
  /* Teardown: the channels' tasks are joined, then STOP is FAIL. */
  gone[0] && gone[1];
  LOCK;
  stop(0, FAIL);
  UNLOCK;
#ifdef FAILS
  skip
#else
  assert(unsent[0] == 0 && unsent[1] == 0 && STATE[0] == ENDED && STATE[1] == ENDED)
#endif
}

/* All held bytes are written: what is to be sent so far is with the kernel. In a trace `next` tells that this has come. */
inline write(c, next) {
#ifdef FAILS
  if
#ifdef TRACE
  :: next
#else
  :: !broken[c]
#endif
  :: broken[c] -> goto thrown
#ifndef TRACE
  /* Stuck; it breaks itself; or the thread dies, and posts nothing any more. */
  :: c == 0 -> broken[c]; goto thrown
  :: atomic { c == 0 && !broken[c] -> broken[c] = 1; goto thrown }
  :: c == 0 -> goto died
#endif
  fi
#else
  skip
#endif
}

inline send(c) {
  atomic {
    assert(unsent[c] > 0);
    unsent[c]--;
    if
    :: due[c] > 0 -> due[c]--
    :: else
    fi
  }
}

/* control.done() */
inline done(c) {
  filled[slot] = 0;
  STORE(THREAD(c), w_PENDING_JOB(c), PENDING_JOB[c], 0); /* = done: store */
  postReady(THREAD(c)); /* = done: postReady */
}

proctype channel(byte c) MINE {
  byte stopped, slot, now, set;
  bit wantsSync, hasJob, slept;
#ifndef OPENED
  /* Connected, hello written. */
  write(c, IS(THREAD(c), op_store, w_STATE(c), RUNNING));
  setState(c, RUNNING);
#endif
  do
  :: NOTE_SEM(c);
     atomic {
       LOAD(THREAD(c), w_STOP, STOP, stopped);
       if
       :: stopped == FAIL -> goto left
       :: else
       fi
     };
     LOAD(THREAD(c), w_PENDING_SYNC(c), PENDING_SYNC[c], wantsSync);
     LOAD(THREAD(c), w_PENDING_JOB(c), PENDING_JOB[c], hasJob);
     if
     :: !hasJob && !wantsSync ->
        if
        :: stopped == END -> break
        :: else
        fi;
        if
        :: broken[c] -> goto thrown
        :: else
        fi;
        waitSem(c)
     :: else ->
        if
        :: hasJob ->
           atomic { slot = SLOT[c]; assert(owner[slot] == c && filled[slot]) };
           if
           /* Pages elsewhere: the list is copied, the slot given back, then they are written. */
           :: done(c);
              write(c, (wantsSync || IS(THREAD(c), op_load, w_SEM(c), SEM[c])));
              send(c)
           /* Bytes in the slot: written, then it is given back. */
           :: write(c, IS(THREAD(c), op_store, w_PENDING_JOB(c), 0));
              atomic { assert(owner[slot] == c && filled[slot]); send(c) }; done(c)
           fi
        :: else
        fi;
        if
        :: wantsSync ->
           write(c, IS(THREAD(c), op_store, w_PENDING_SYNC(c), 0));
           atomic { assert(due[c] == 0 && asked[c]); asked[c] = 0 };
           syncDone(c)
        :: else
        fi
     fi
  od;
left:
  LOAD(THREAD(c), w_STOP, STOP, stopped);
  if
  :: stopped != FAIL && broken[c] -> goto thrown
  :: else -> goto leaving
  fi;
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

/* STOP = FAIL takes the connection away, whatever the loop is waiting for. */
proctype guard(byte c) MINE {
  byte level = RUN, now, again;
#ifdef OPENED
  onSTOP[c] == 0;
#endif
  do
  :: level < FAIL -> stopAbove(c, level); level = now
  :: else -> break
  od;
  atomic { now = broken[c]; broken[c] = 1 };
  if
  :: !now ->
     postSem(THREAD(c), c); /* = broke: postSem */
  :: else
  fi
}

#ifdef TRACE
/* Its connection breaks at any time, or does not. (Without a trace: in a write.) */
proctype peer(byte c) MINE {
  bit was;
  atomic { IS(THREAD(c), op_add, w_SEM(c), SEM[c]) -> was = broken[c]; broken[c] = 1 };
  if
  :: !was -> postSem(THREAD(c), c)
  :: else
  fi
}
#endif

init {
#ifdef TRACE
  /* In the order in which they begin; the last is tried first. */
  threadOf[3] = 1;
  threadOf[4] = 2;
  threadOf[5] = 1;
  threadOf[6] = 2;
  threadOf[7] = 1;
  threadOf[8] = 2;
  c_code { now.ev = trace_event(0); };
#endif
  atomic {
    SLOT[1] = 1;
    owner[1] = 1;
    owner[2] = 2;
    owner[3] = 3;
#ifdef OPENED
    STATE[0] = RUNNING;
    STATE[1] = RUNNING;
#ifdef FAILS
    onSTOP[0] = 1;
    onSTOP[1] = 1;
#endif
#endif
#ifdef BUSY
    filled[0] = 1;
    filled[1] = 1;
    unsent[0] = 1;
    unsent[1] = 1;
    PENDING_JOB[0] = 1;
    PENDING_JOB[1] = 1;
#endif
#ifdef TRACE
    run looks();
#endif
    run session();
#ifdef TRACE
    run peer(0);
    run peer(1);
#endif
#ifdef FAILS
    run guard(0);
    run guard(1);
#endif
    run channel(0);
    run channel(1);
    run client(0);
    run client(1)
  }
}
