//! Entering and leaving the read section of a domain with ATS, as every unmap does, on one and on two CPUs; and the same with a readers' lock
//! word in the array beside it, as the customary fence for ATS has it.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::{Duration, Instant};

use smmuv3::internals::DomainArray;
use smmuv3::{Key, Kind};
use smmuv3_model::{Model, ModelConfig, ModelPlatform};

use crate::{Bound, Effort, Figure, nanos_each};

/// What a second thread may add.
const MOST: f64 = 1.2;

/// The reader's side of a reader-writer lock that all readers share.
#[derive(Default)]
struct SharedWord(AtomicU32);

impl SharedWord {
    fn read(&self, inside: impl FnOnce()) {
        self.0.fetch_add(1, Ordering::Acquire);
        inside();
        self.0.fetch_sub(1, Ordering::Release);
    }
}

fn domain() -> DomainArray<ModelPlatform> {
    let model = Model::new(ModelConfig::default());
    let domain = DomainArray::new(&model.platform()).expect("memory");
    assert!(domain.attach(&[Key::new(0, Kind::S1Asid, 7, 0), Key::new(0, Kind::Ats, 0x18, 0)]));
    domain
}

/// Nanoseconds for one call on each of `threads` threads at once: the mean over the threads, the least over all rounds in which they did run at once.
/// Infinite if there was none, on a machine with too much else to do.
fn on_threads(threads: usize, calls: u32, rounds: usize, call: &(impl Fn() + Sync)) -> f64 {
    let gate = Barrier::new(threads);
    let measure = || {
        let round = |_| {
            gate.wait();
            let start = Instant::now();
            let each = nanos_each(calls, call);
            (each, start, Instant::now())
        };
        (0..rounds).map(round).collect()
    };
    let times: Vec<Vec<(f64, Instant, Instant)>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(measure)).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let of_round = |round: usize| {
        let of_round = || times.iter().map(|times| times[round]);
        let (first, last) = (of_round().map(|(_, start, _)| start).min()?, of_round().map(|(.., end)| end).max()?);
        let (all, none) = (of_round().map(|(_, start, _)| start).max()?, of_round().map(|(.., end)| end).min()?);
        let at_once = none.saturating_duration_since(all).as_secs_f64() > 0.8 * (last - first).as_secs_f64();
        at_once.then(|| of_round().map(|(each, ..)| each).sum::<f64>() / threads as f64)
    };
    (0..rounds).filter_map(of_round).fold(f64::INFINITY, f64::min)
}

/// The figures of this part.
pub fn figures(effort: Effort) -> Vec<Figure> {
    let domain = domain();
    let word = SharedWord::default();
    let section = || domain.read(|entries| assert_eq!(black_box(entries), 2));
    let locked = || domain.read(|entries| word.read(|| assert_eq!(black_box(entries), 2)));
    // What the machine gives two threads that share nothing: two CPUs, or two halves of one.
    let alone = || {
        let own = AtomicU32::new(0);
        black_box(&own).fetch_add(1, Ordering::Acquire);
        fence(Ordering::SeqCst);
        black_box(&own).fetch_sub(1, Ordering::Release);
    };
    // Longer than it takes to start, and short enough that in some round no thread waits for a CPU.
    let calls = (effort.round.min(Duration::from_millis(2)).as_nanos() / 40).max(1) as u32;
    let mut best = [f64::INFINITY; 6];
    for _ in 0..effort.rounds {
        let times = [
            on_threads(1, calls, 4, &section),
            on_threads(2, calls, 4, &section),
            on_threads(1, calls, 4, &locked),
            on_threads(2, calls, 4, &locked),
            on_threads(1, calls, 4, &alone),
            on_threads(2, calls, 4, &alone),
        ];
        best = std::array::from_fn(|at| best[at].min(times[at]));
    }
    let [one, two, locked_one, locked_two, alone_one, alone_two] = best;
    let figure = |name: &str, value, unit| Figure::new("section", name, value, unit);
    vec![
        figure("read section, one thread", one, "ns"),
        figure("read section, each of two threads", two, "ns"),
        figure("read section, two threads against one", two / one, "×").bounded(Bound::AtMost(MOST)),
        figure("with a shared lock word, one thread", locked_one, "ns"),
        figure("with a shared lock word, each of two threads", locked_two, "ns"),
        figure("with a shared lock word, two threads against one", locked_two / locked_one, "×"),
        figure("with nothing shared at all, two threads against one", alone_two / alone_one, "×"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn what_is_measured_is_done() {
        let count = AtomicUsize::new(0);
        on_threads(2, 100, 3, &|| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 2 * 100 * 3);
        let word = SharedWord::default();
        word.read(|| assert_eq!(word.0.load(Ordering::Relaxed), 1));
        assert_eq!(word.0.load(Ordering::Relaxed), 0);
        let figures = figures(Effort::SMOKE);
        assert!(figures.iter().all(|figure| figure.value > 0.0), "{figures:?}");
        assert_eq!(figures.iter().filter(|figure| figure.bound.is_some()).count(), 1);
    }
}
