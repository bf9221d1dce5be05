//! Positions in a ring of many producers, without a lock: who writes where, what is announced, what is free again.
//!
//! Positions are counted in 64 bits and never wrap; index and wrap bit are their low bits. Always
//!
//! ```text
//! consumed <= announced <= reserved <= consumed + size
//! ```
//!
//! A producer *reserves* a stretch, writes its commands there, and *announces* all that is written without a gap, his own and others'. One producer
//! announces at a time; the others *mark* what they have written and leave it to him. Alone, a producer costs two atomic exchanges: the
//! reservation makes him the one who announces, and then he stops being it.

use allocator_api2::vec::Vec;
use crossbeam_utils::CachePadded;

use crate::primitive::AtomicU64;
use crate::primitive::Ordering::{AcqRel, Acquire, Relaxed, Release};

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
/// - `announced` is changed by the one who announces only.
pub(super) struct Ring {
    log2: u8,
    places: Vec<Place>,
    producers: CachePadded<Producers>,
    consumed: CachePadded<AtomicU64>,
}

/// What every producer changes.
#[derive(Default)]
struct Producers {
    /// Twice what is reserved; bit 0 is set while somebody announces. It is never stored, only exchanged, so that each exchange sees what was done before
    /// the earlier ones.
    reserved: AtomicU64,
    announced: AtomicU64,
}

/// In [`Producers::reserved`].
const ANNOUNCING: u64 = 1;

/// Positions that belong to the producer who reserved them.
pub(super) struct Stretch {
    pub(super) start: u64,
    pub(super) end: u64,
    /// Everything before `start` is announced, and this producer has become the one who announces.
    announces: bool,
}

impl Ring {
    /// `2^log2` places. `None`: no memory.
    pub(super) fn new(log2: u8) -> Option<Self> {
        let mut places = Vec::new();
        places.try_reserve_exact(1 << log2).ok()?;
        places.extend((0..1 << log2).map(|_| Place::default()));
        Some(Ring { log2, places, producers: CachePadded::default(), consumed: CachePadded::default() })
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

    /// `count` positions that are now the caller's, who writes his commands there and calls [`announce`](Self::announce) without delay. `None`: there
    /// is no room.
    pub(super) fn reserve(&self, count: u64) -> Option<Stretch> {
        let Producers { reserved, announced } = &*self.producers;
        let mut now = reserved.load(Relaxed);
        loop {
            let start = now / 2;
            let end = start + count;
            // Acquire: what stood there before was carried out before it is overwritten. Partner: the Release in `consumed_up_to`.
            if end > self.consumed.load(Acquire) + self.size() {
                return None;
            }
            // If nothing that is reserved is left to announce, nobody before this producer can want to.
            let announces = now & ANNOUNCING == 0 && announced.load(Relaxed) == start;
            let next = 2 * end | if announces { ANNOUNCING } else { now & ANNOUNCING };
            // Acquire: one announcement comes behind the other. Partner: the exchange in `announce_rest` that gives the flag back. litmus: doorbell-order
            // That the positions are free is known from `consumed`, and what is written there is passed on by `mark`.
            match reserved.compare_exchange_weak(now, next, Acquire, Relaxed) {
                Ok(_) => return Some(Stretch { start, end, announces }),
                Err(other) => now = other,
            }
        }
    }

    /// How many commands there would be room for now.
    pub(super) fn room(&self) -> u64 {
        let reserved = self.producers.reserved.load(Relaxed) / 2;
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

    /// Says that the commands of a stretch are written.
    pub(super) fn mark(&self, stretch: &Stretch) {
        // Release: the commands come before the mark. Partner: the Acquire in `written`. litmus: gathered
        self.places[self.place(stretch.start)].written.store(stretch.end, Release);
    }

    /// The end of what is written at a position.
    fn written(&self, position: u64) -> Option<u64> {
        // Acquire: what is announced was written. Partner: the Release in `mark`. litmus: gathered
        let end = self.places[self.place(position)].written.load(Acquire);
        (end > position).then_some(end)
    }

    /// The commands of a stretch are written: calls `ring` with the position behind all that is written without a gap, unless another does.
    pub(super) fn announce(&self, stretch: Stretch, ring: impl Fn(u64)) {
        if stretch.announces {
            self.announce_from(Some(stretch.end), ring);
        } else {
            self.mark(&stretch);
            self.announce_from(None, ring);
        }
    }

    /// Announces what others have left to those who wait.
    pub(super) fn announce_rest(&self, ring: impl Fn(u64)) {
        self.announce_from(None, ring);
    }

    /// Announces what is written, again and again as long as there is more, but not for ever: what still came after so many rounds is for those who wait
    /// for it. The caller announces already, and all before `written` is written; or he begins now.
    ///
    /// When no producer is inside any more, all that is marked is announced, but for that rest. Who finds another announcing may leave, because that one
    /// looks again after it has given the flag back:
    ///
    ///     a producer                         the producer that announces
    ///     mark                               look at the next mark: nothing
    ///     set the flag: it is set            give the flag back
    ///     leave                              look at the next mark
    ///
    /// Both change the same word, so that the second exchange sees what came before the first, and the second look sees the mark. If there is still
    /// a gap before that mark, the one who fills it comes here himself, and by the same exchanges sees what he finds behind it.
    fn announce_from(&self, mut written: Option<u64>, ring: impl Fn(u64)) {
        let Producers { reserved, announced } = &*self.producers;
        for _ in 0..ROUNDS {
            let mut end = match written.take() {
                Some(end) => end,
                // AcqRel: marks that others made before they found the flag set, or gave it back.
                None if reserved.fetch_or(ANNOUNCING, AcqRel) & ANNOUNCING != 0 => return,
                None => announced.load(Relaxed),
            };
            // Ends, as there is room for `size` positions only.
            while let Some(next) = self.written(end) {
                end = next;
            }
            if end > announced.load(Relaxed) {
                announced.store(end, Relaxed);
                ring(end);
            }
            // AcqRel: as above; and the doorbell comes before that of the next who announces. litmus: doorbell-order
            reserved.fetch_sub(ANNOUNCING, AcqRel);
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
        self.producers.announced.load(Relaxed)
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
