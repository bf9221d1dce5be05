//! Taking times on a machine that is not quiet.

use std::time::{Duration, Instant};

/// How long to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Rounds of which the best counts.
    pub rounds: usize,
    /// How long one round of one candidate lasts, about.
    pub round: Duration,
}

impl Default for Effort {
    fn default() -> Self {
        Effort { rounds: 15, round: Duration::from_millis(10) }
    }
}

impl Effort {
    /// As little as shows that a measurement works.
    pub const SMOKE: Effort = Effort { rounds: 2, round: Duration::from_micros(200) };
}

/// Nanoseconds that each candidate takes for one call: the least over all rounds, in which all have their turn. The least is what the work
/// costs; all above it is the machine's.
pub fn in_turns<const N: usize>(effort: Effort, mut candidates: [&mut dyn FnMut(); N]) -> [f64; N] {
    let calls = candidates.each_mut().map(|candidate| {
        let once = nanos_each(8, candidate).max(1.0);
        (effort.round.as_nanos() as f64 / once).ceil().max(1.0) as u32
    });
    let mut best = [f64::INFINITY; N];
    for _ in 0..effort.rounds {
        for (at, candidate) in candidates.iter_mut().enumerate() {
            best[at] = best[at].min(nanos_each(calls[at], candidate));
        }
    }
    best
}

/// Nanoseconds for one of so many calls.
pub fn nanos_each(calls: u32, mut call: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..calls {
        call();
    }
    start.elapsed().as_nanos() as f64 / f64::from(calls)
}
