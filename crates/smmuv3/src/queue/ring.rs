//! Positions in a ring of many producers, without a lock: who writes where, what is announced, what is free again.
//!
//! Positions are counted in 64 bits and never wrap; index and wrap bit are their low bits.
//!
//! A producer *reserves* a stretch, writes its commands there, and *announces* all that is written without a gap. Whose turn that is follows from
//! the positions: it is the one whose stretch begins where the announced ones end. Whoever is ahead of his turn *marks* his stretch as written
//! and leaves it to those before him, or, if they have just gone by, to whoever waits. A producer who is alone needs one atomic exchange, the
//! reservation.

use allocator_api2::vec::Vec;
use crossbeam_utils::CachePadded;

use crate::primitive::AtomicU64;
use crate::primitive::Ordering::{Acquire, Relaxed, Release};

/// What is known of the command at a position; the places of a ring are used in turn, like those of the queue. As large as it is so that the marks of two
/// neighbours, each of a command and a CMD_SYNC, are not in one cache line.
#[derive(Default)]
#[repr(align(32))]
struct Place {
    /// At the first position of a stretch that is marked: the position behind it, until somebody has taken it on himself to announce it. Anything else is
    /// of another lap.
    written: AtomicU64,
    /// The position that `owner` is about.
    owned: AtomicU64,
    owner: AtomicU64,
}

/// # Invariants
/// - A position belongs to one producer from its reservation until it is consumed.
/// - `consumed` is never ahead of the consumer, nor the consumer of what is reserved.
/// - `announced` is changed by one thread at a time: the owner of the stretch that begins there if he has not marked it, or else the one who took the mark.
pub(super) struct Ring {
    /// The size is one more.
    mask: u64,
    places: Vec<Place>,
    producers: CachePadded<Producers>,
    consumed: CachePadded<AtomicU64>,
}

/// What every producer changes.
#[derive(Default)]
struct Producers {
    reserved: AtomicU64,
    announced: AtomicU64,
}

/// Positions that belong to the producer who reserved them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Ring {
    /// `2^log2` places. `None`: no memory.
    pub(super) fn new(log2: u8) -> Option<Self> {
        let mut places = Vec::new();
        places.try_reserve_exact(1 << log2).ok()?;
        places.extend((0..1 << log2).map(|_| Place::default()));
        let mask = (1 << log2) - 1;
        Some(Ring { mask, places, producers: CachePadded::default(), consumed: CachePadded::default() })
    }

    #[inline]
    pub(super) fn size(&self) -> u64 {
        self.mask + 1
    }

    /// Index and wrap bit of a position.
    #[inline]
    pub(super) fn index(&self, position: u64) -> u32 {
        (position & (2 * self.mask + 1)) as u32
    }

    /// The number of the place of a position.
    #[inline]
    pub(super) fn place(&self, position: u64) -> usize {
        (position & self.mask) as usize
    }

    /// `count` positions that are now the caller's, who writes his commands there and calls [`announce`](Self::announce) without delay. `None`: there
    /// is no room.
    #[inline]
    pub(super) fn reserve(&self, count: u64) -> Option<Stretch> {
        let reserved = &self.producers.reserved;
        let mut start = reserved.load(Relaxed);
        loop {
            let end = start + count;
            // Acquire: what stood there before was carried out before it is overwritten. Partner: the Release in `consumed_up_to`.
            if end > self.consumed.load(Acquire) + self.size() {
                return None;
            }
            // Relaxed: that the positions are free is known from `consumed`, and what is written there is passed on when it is announced.
            match reserved.compare_exchange_weak(start, end, Relaxed, Relaxed) {
                Ok(_) => return Some(Stretch { start, end }),
                Err(now) => start = now,
            }
        }
    }

    #[inline]
    fn reserved(&self) -> u64 {
        self.producers.reserved.load(Relaxed)
    }

    /// How many commands there would be room for now.
    pub(super) fn room(&self) -> u64 {
        let reserved = self.reserved();
        (self.consumed() + self.size()).saturating_sub(reserved)
    }

    /// Notes whose commands are in a stretch of the caller's.
    #[cold]
    pub(super) fn set_owner(&self, stretch: Stretch, owner: u64) {
        for position in stretch.start..stretch.end {
            let place = &self.places[self.place(position)];
            place.owned.store(position, Relaxed);
            place.owner.store(owner, Relaxed);
        }
    }

    /// Whose command is at a position that is announced and not consumed: what was noted, or the position itself.
    pub(super) fn owner(&self, position: u64) -> u64 {
        let place = &self.places[self.place(position)];
        if place.owned.load(Relaxed) == position { place.owner.load(Relaxed) } else { position }
    }

    /// The commands of a stretch are written: calls `ring` with the position behind all that is written without a gap, or leaves that to another.
    ///
    /// It may be that he who announces what stands before the stretch looks for marks before it is marked, and this one looks whose turn it is before the
    /// other is through. Then the stretch is announced when its owner, or anybody else, waits for something, or when the next who is ahead of his turn
    /// comes. To exclude that would take a full barrier in every submission.
    #[inline]
    pub(super) fn announce(&self, stretch: Stretch, ring: impl Fn(u64)) {
        if self.announced() == stretch.start {
            self.announce_to(stretch.end, &ring);
        } else {
            self.mark(stretch);
            if self.has_rest() {
                self.announce_rest(ring);
            }
        }
    }

    /// Says that the commands of a stretch are written.
    pub(super) fn mark(&self, Stretch { start, end }: Stretch) {
        // Release: the commands come before the mark. Partners: the Acquires in `written` and `announce_rest`. litmus: gathered
        self.places[self.place(start)].written.store(end, Release);
    }

    /// The end of the stretch that begins at a position, if it is marked.
    fn written(&self, position: u64) -> Option<u64> {
        // Acquire: what is announced was written. Partner: the Release in `mark`. litmus: gathered
        let end = self.places[self.place(position)].written.load(Acquire);
        // Not of another lap, before or after.
        (position < end && end <= position + self.size()).then_some(end)
    }

    /// Whether there is something marked that nobody has announced.
    #[inline]
    pub(super) fn has_rest(&self) -> bool {
        let announced = self.announced();
        announced != self.reserved() && self.written(announced).is_some()
    }

    /// Announces what others have left, unless another does.
    #[cold]
    pub(super) fn announce_rest(&self, ring: impl Fn(u64)) {
        let announced = self.announced();
        if let Some(end) = self.written(announced) {
            let mark = &self.places[self.place(announced)].written;
            // Who takes the mark announces the stretch. A mark is never the same twice, so that its stretch is still the next.
            // Acquire: what is announced was written. Partner: the Release in `mark`. litmus: gathered
            if mark.compare_exchange(end, 0, Acquire, Relaxed).is_ok() {
                self.announce_to(end, &ring);
            }
        }
    }

    /// It is the caller's turn to announce, and everything before `end` is written.
    #[inline]
    fn announce_to(&self, mut end: u64, ring: &impl Fn(u64)) {
        // Ends, as there is room for `size` positions only.
        while end != self.reserved()
            && let Some(next) = self.written(end)
        {
            end = next;
        }
        ring(end);
        // Release: this doorbell comes before the next. Partner: the Acquire in `announced`. litmus: doorbell-order
        self.producers.announced.store(end, Release);
    }

    /// What is announced for sure. Whose turn it is may have announced more.
    #[inline]
    pub(super) fn announced(&self) -> u64 {
        // Acquire: the doorbell of this comes before the next. Partner: the Release in `announce_to`. litmus: doorbell-order
        self.producers.announced.load(Acquire)
    }

    /// What is known to be consumed.
    #[inline]
    pub(super) fn consumed(&self) -> u64 {
        // Acquire: who learns here that commands are done sees what they did. Partner: the Release in `consumed_up_to`.
        // litmus: completion-told
        self.consumed.load(Acquire)
    }

    /// The position that the consumer stands at, by its index and wrap bit. `None`: it cannot stand there.
    ///
    /// `base` is a value of [`consumed`](Self::consumed), and everything before `reserved` is reserved. Whoever reads the index after the base may have slept in
    /// between while the consumer went round and round; the result is then a position that it has passed, never one that it has not reached.
    #[inline]
    pub(super) fn position(&self, base: u64, index: u32, reserved: u64) -> Option<u64> {
        let distance = u64::from(index).wrapping_sub(base) & (2 * self.mask + 1);
        let position = base + distance;
        self.is_reserved(position, reserved).then_some(position)
    }

    /// Whether everything before `position` is reserved, if everything before `end` is.
    #[inline]
    pub(super) fn is_reserved(&self, position: u64, end: u64) -> bool {
        // Who has learnt that a command is consumed sees at least that it was reserved. It is looked up only if it must be, as all change it.
        position <= end || position <= self.reserved()
    }

    /// Notes that the consumer has got there. The caller has passed a read barrier since it saw that.
    #[inline]
    pub(super) fn consumed_up_to(&self, position: u64) {
        if position > self.consumed.load(Relaxed) {
            // Release: what the consumer did comes before the use of what it consumed. Partners: the Acquires above. litmus: completion-told
            self.consumed.fetch_max(position, Release);
        }
    }

    /// As if everything before a position had been submitted and consumed.
    #[cfg(test)]
    pub(super) fn skip_to(&self, position: u64) {
        let Producers { reserved, announced } = &*self.producers;
        [reserved, announced, &self.consumed].into_iter().for_each(|at| at.store(position, Relaxed));
    }

    /// Whether nothing is reserved behind a position.
    pub(super) fn ends_at(&self, position: u64) -> bool {
        self.reserved() == position
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
    #[inline]
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
