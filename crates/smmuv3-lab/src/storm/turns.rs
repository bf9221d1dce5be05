//! Threads that take turns: one runs at a time, and which one follows from seeds alone. So a round can be run again.
//!
//! A thread gives its turn away at a *point* (a barrier, a register access, a wait; see `host`), when it has ended an operation, and when
//! it has nothing more to do. In the first case to any other; in the others to the owner of the first operation that
//! nobody has begun. So operations begin in the order of the history, unless one is interrupted.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::rng::derive;

/// How far the clock goes on when it is looked at. A driver that waits for something that does not come gives up in good time.
const NS_PER_LOOK: u64 = 1_000_000;

pub(super) struct Turns {
    state: Mutex<State>,
    wake: Vec<Condvar>,
    clock: AtomicU64,
}

struct State {
    current: usize,
    alive: Vec<bool>,
    /// The thread of each step.
    owners: Vec<usize>,
    begun: Vec<bool>,
    /// The steps that were begun, in that order.
    order: Vec<usize>,
    /// Nobody begins anything any more.
    stop: bool,
}

impl State {
    /// Who is next if nobody in particular is.
    fn in_order(&self) -> Option<usize> {
        let waiting = self.begun.iter().position(|begun| !begun).map(|step| self.owners[step]);
        waiting.filter(|&thread| !self.stop && self.alive[thread]).or(self.alive.iter().position(|alive| *alive))
    }
}

impl Turns {
    /// For steps whose threads are `owners`.
    pub(super) fn new(owners: Vec<usize>, threads: usize) -> Self {
        let state = State {
            current: 0,
            alive: vec![true; threads],
            begun: vec![false; owners.len()],
            owners,
            order: Vec::new(),
            stop: false,
        };
        let current = state.in_order().unwrap_or(0);
        Turns {
            state: Mutex::new(State { current, ..state }),
            wake: (0..threads).map(|_| Condvar::new()).collect(),
            clock: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of `me`.
    pub(super) fn wait(&self, me: usize) {
        let mut state = self.lock();
        while state.current != me {
            state = self.wake[me].wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn pass(&self, mut state: MutexGuard<'_, State>, me: usize, to: usize) {
        if to != me {
            state.current = to;
            drop(state);
            self.wake[to].notify_one();
            self.wait(me);
        }
    }

    /// Lets another thread run, if there is one, until it is the turn of `me` again. Which one follows from `key`, and changes as little as
    /// possible where there are fewer.
    pub(super) fn yield_to_any(&self, me: usize, key: u64) {
        let state = self.lock();
        let others = state.alive.iter().enumerate().filter(|(thread, alive)| **alive && *thread != me);
        if let Some((to, _)) = others.max_by_key(|(thread, _)| derive(key, *thread as u64)) {
            self.pass(state, me, to);
        }
    }

    /// A step begins; false: it does not any more.
    pub(super) fn begin(&self, step: usize) -> bool {
        let mut state = self.lock();
        if !state.stop {
            state.begun[step] = true;
            state.order.push(step);
        }
        !state.stop
    }

    /// A step of `me` has ended.
    pub(super) fn end(&self, me: usize) {
        let state = self.lock();
        if let Some(to) = state.in_order() {
            self.pass(state, me, to);
        }
    }

    /// `me` takes no turns any more.
    pub(super) fn leave(&self, me: usize) {
        let mut state = self.lock();
        state.alive[me] = false;
        if let Some(to) = state.in_order() {
            state.current = to;
            self.wake[to].notify_one();
        }
    }

    /// Nobody begins anything any more.
    pub(super) fn stop(&self) {
        self.lock().stop = true;
    }

    /// The steps that were begun, in that order.
    pub(super) fn order(&self) -> Vec<usize> {
        self.lock().order.clone()
    }

    pub(super) fn now_ns(&self) -> u64 {
        self.clock.fetch_add(NS_PER_LOOK, Relaxed)
    }
}
