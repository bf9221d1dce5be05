//! Positions in a ring of many producers, without a lock: who writes where, what is announced, what is free again.
//!
//! Positions are counted in 64 bits and never wrap; index and wrap bit are their low bits. Always
//!
//! ```text
//! consumed <= announced <= reserved <= consumed + size
//! ```
//!
//! A producer *reserves* a stretch, writes its commands there, and *marks* it as written. Whoever has marked something *announces* all that is
//! written without a gap, his own and others', unless another producer is about to do just that.

use allocator_api2::vec::Vec;
use crossbeam_utils::CachePadded;

use crate::primitive::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::primitive::{AtomicBool, AtomicU64};

/// How often one producer announces what others wrote meanwhile before it leaves that to those who wait.
pub(super) const ROUNDS: usize = 4;

/// What is known of the command at a position; the places of a ring are used in turn, like those of the queue.
#[derive(Default)]
struct Place {
    /// At the first position of a stretch that is written: the position behind it. Anything else is older, and not greater than the position.
    written: AtomicU64,
    /// Whose command it is.
    owner: AtomicU64,
}

/// # Invariants
/// - A position belongs to one producer from its reservation until it is consumed.
/// - `consumed` is never ahead of the consumer.
/// - `announced` is changed by the holder of `announcing` only.
pub(super) struct Ring {
    log2: u8,
    places: Vec<Place>,
    reserved: CachePadded<AtomicU64>,
    consumed: CachePadded<AtomicU64>,
    announcer: CachePadded<Announcer>,
}

#[derive(Default)]
struct Announcer {
    announcing: AtomicBool,
    announced: AtomicU64,
}

impl Ring {
    /// `2^log2` places. `None`: no memory.
    pub(super) fn new(log2: u8) -> Option<Self> {
        let mut places = Vec::new();
        places.try_reserve_exact(1 << log2).ok()?;
        places.extend((0..1 << log2).map(|_| Place::default()));
        Some(Ring {
            log2,
            places,
            reserved: CachePadded::default(),
            consumed: CachePadded::default(),
            announcer: CachePadded::default(),
        })
    }

    pub(super) fn size(&self) -> u64 {
        1 << self.log2
    }

    /// Index and wrap bit of a position.
    pub(super) fn index(&self, position: u64) -> u32 {
        (position & (2 * self.size() - 1)) as u32
    }

    /// The number of the place of a position.
    pub(super) fn place(&self, position: u64) -> usize {
        (position & (self.size() - 1)) as usize
    }

    /// The first of `count` positions that are now the caller's, who writes his commands there, calls [`mark`](Self::mark) and
    /// [`announce`](Self::announce) without delay. `None`: there is no room.
    pub(super) fn reserve(&self, count: u64) -> Option<u64> {
        let mut start = self.reserved.load(Relaxed);
        loop {
            // Acquire: what stood there before was carried out before it is overwritten. Partner: the Release in `consumed_up_to`.
            if start + count > self.consumed.load(Acquire) + self.size() {
                return None;
            }
            // Relaxed: that the positions are free is known from `consumed`, and what is written there is passed on by `mark`.
            match self.reserved.compare_exchange_weak(start, start + count, Relaxed, Relaxed) {
                Ok(_) => return Some(start),
                Err(now) => start = now,
            }
        }
    }

    /// How many commands there would be room for now.
    pub(super) fn room(&self) -> u64 {
        let reserved = self.reserved.load(Relaxed);
        (self.consumed() + self.size()).saturating_sub(reserved)
    }

    /// Notes whose command is at a position.
    pub(super) fn set_owner(&self, position: u64, owner: u64) {
        self.places[self.place(position)].owner.store(owner, Relaxed);
    }

    /// Whose command is at a position that is announced and not consumed.
    pub(super) fn owner(&self, position: u64) -> u64 {
        self.places[self.place(position)].owner.load(Relaxed)
    }

    /// Says that the commands from `start` to `end` are written.
    pub(super) fn mark(&self, start: u64, end: u64) {
        // Release: the commands come before the mark. Partner: the Acquire in `written`. litmus: gathered
        self.places[self.place(start)].written.store(end, Release);
    }

    /// The end of what is written at a position.
    fn written(&self, position: u64) -> Option<u64> {
        // Acquire: what is announced was written. Partner: the Release in `mark`. litmus: gathered
        let end = self.places[self.place(position)].written.load(Acquire);
        (end > position).then_some(end)
    }

    /// Calls `ring` with the position behind all that is written without a gap.
    ///
    /// When no producer is inside any more, all that is marked is announced, but for what came while one of them had announced so much for others
    /// that it left: whoever waits for it calls this again. Who finds another announcing may leave, because that one looks again after it has given
    /// the flag back:
    ///
    ///     a producer                         the producer that announces
    ///     mark                               look at the next mark: nothing
    ///     swap the flag: it is taken         swap the flag back
    ///     leave                              look at the next mark
    ///
    /// The flag is swapped, on both sides, so that the second swap reads what the first wrote, and the second look sees the mark. If there is still
    /// a gap before that mark, the one who fills it comes here himself, and by the same swaps sees what he finds behind it.
    pub(super) fn announce(&self, ring: impl Fn(u64)) {
        let Announcer { announcing, announced } = &*self.announcer;
        for _ in 0..ROUNDS {
            // AcqRel: marks that others made before they found the flag taken, or gave it back.
            if announcing.swap(true, AcqRel) {
                return;
            }
            let start = announced.load(Relaxed);
            let mut end = start;
            // Ends, as there is room for `size` positions only.
            while let Some(next) = self.written(end) {
                end = next;
            }
            if end > start {
                announced.store(end, Relaxed);
                ring(end);
            }
            announcing.swap(false, AcqRel);
            if self.written(end).is_none() {
                return;
            }
        }
    }

    /// Whether there is something to announce: what is still written at this moment by others, or was left by them.
    pub(super) fn has_rest(&self) -> bool {
        self.written(self.announced()).is_some()
    }

    /// What is announced. Who has just learnt that a command is consumed sees at least that it is announced.
    pub(super) fn announced(&self) -> u64 {
        self.announcer.announced.load(Relaxed)
    }

    /// What is known to be consumed.
    pub(super) fn consumed(&self) -> u64 {
        // Acquire: who learns here that commands are done sees what they did. Partner: the Release in `consumed_up_to`.
        // litmus: completion-told
        self.consumed.load(Acquire)
    }

    /// The position that the consumer stands at, by its index and wrap bit. `None`: it cannot stand there.
    ///
    /// `base` is a value of [`consumed`](Self::consumed). Whoever reads the index after it may have slept in between while the consumer went round and round; the result is
    /// then a position that it has passed, never one that it has not reached.
    pub(super) fn position(&self, base: u64, index: u32) -> Option<u64> {
        let distance = u64::from(index).wrapping_sub(base) & (2 * self.size() - 1);
        let position = base + distance;
        (position <= self.announced()).then_some(position)
    }

    /// Notes that the consumer has got there. The caller has passed a read barrier since it saw that.
    pub(super) fn consumed_up_to(&self, position: u64) {
        if position > self.consumed.load(Relaxed) {
            // Release: what the consumer did comes before the use of what it consumed. Partners: the Acquires above. litmus: completion-told
            self.consumed.fetch_max(position, Release);
        }
    }
}

/// The order of those who found the ring full. It is kept for fairness only: who is not next can go all the same, and nobody has to wait for
/// one who draws a turn and sleeps.
#[derive(Default)]
pub(super) struct Turns {
    drawn: AtomicU64,
    passed: AtomicU64,
}

impl Turns {
    /// Whether anybody waits.
    pub(super) fn waiting(&self) -> bool {
        self.passed.load(Relaxed) < self.drawn.load(Relaxed)
    }

    /// A turn behind those who wait.
    pub(super) fn draw(&self) -> u64 {
        self.drawn.fetch_add(1, Relaxed)
    }

    /// Whether everybody before this turn has had his own, or was overtaken.
    pub(super) fn is_up(&self, turn: u64) -> bool {
        self.passed.load(Relaxed) >= turn
    }

    /// This turn, and all before it, are over.
    pub(super) fn pass(&self, turn: u64) {
        self.passed.fetch_max(turn + 1, Relaxed);
    }
}
