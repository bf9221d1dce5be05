//! Grace periods: what readers use is not freed before they are through.

use alloc::sync::Arc;
use loom::thread;

use super::{LoomPlatform, Watched, explore, run_on};
use crate::primitive::{AtomicUsize, Ordering};
use crate::rcu::{Published, Sections, Version};
use crate::shared::Shared;

/// Three values, of which one is published by its index.
struct Values {
    sections: Sections<LoomPlatform>,
    current: AtomicUsize,
    values: [Watched; 3],
}

impl Values {
    fn new() -> Arc<Self> {
        let values = [Watched::new(), Watched::new(), Watched::new()];
        Arc::new(Values { sections: Sections::new(LoomPlatform::new(0)), current: AtomicUsize::new(0), values })
    }

    fn read(&self) {
        let _section = self.sections.enter();
        self.values[self.current.load(Ordering::Acquire)].use_it();
    }

    /// Publishes the value `next` and destroys the one before.
    fn replace(&self, next: usize) {
        self.current.store(next, Ordering::Release);
        self.sections.synchronize();
        self.values[next - 1].destroy();
    }
}

#[test]
fn a_grace_period_waits_for_who_entered_before() {
    explore(Some(3), || {
        let values = Values::new();
        let readers = [0, 1].map(|cpu| {
            let values = values.clone();
            thread::spawn(move || {
                run_on(cpu);
                values.read();
            })
        });
        values.replace(1);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}

/// A reader that picked its set of counters before the first grace period, and counts itself in after it, is waited for by the second.
#[test]
fn a_grace_period_waits_for_who_picked_a_set_long_ago() {
    explore(None, || {
        let values = Values::new();
        let reader = thread::spawn({
            let values = values.clone();
            move || values.read()
        });
        values.replace(1);
        values.replace(2);
        reader.join().unwrap();
    });
}

#[test]
fn sections_may_be_nested_and_left_on_another_cpu() {
    explore(None, || {
        let values = Values::new();
        let reader = thread::spawn({
            let values = values.clone();
            move || {
                let outer = values.sections.enter();
                run_on(1);
                let inner = values.sections.enter();
                let current = &values.values[values.current.load(Ordering::Acquire)];
                drop(inner);
                current.use_it();
                drop(outer);
            }
        });
        values.replace(1);
        reader.join().unwrap();
    });
}

#[test]
fn two_writers_wait_for_the_same_reader() {
    explore(Some(3), || {
        let values = Values::new();
        let threads = [
            thread::spawn({
                let values = values.clone();
                move || values.read()
            }),
            thread::spawn({
                let values = values.clone();
                move || values.sections.synchronize()
            }),
        ];
        values.replace(1);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// The same for the cell that arrays are published in, which does not wait: it frees what it can.
#[test]
fn a_published_value_is_freed_after_its_readers() {
    struct Freed(Watched);
    impl Drop for Freed {
        fn drop(&mut self) {
            self.0.destroy();
        }
    }
    explore(None, || {
        let sections = Shared::try_new(Sections::new(LoomPlatform::new(0))).unwrap();
        let cell = Arc::new(Published::try_new(Freed(Watched::new()), sections).unwrap());
        let reader = thread::spawn({
            let cell = cell.clone();
            move || cell.load().0.use_it()
        });
        for _ in 0..2 {
            cell.publish(Version::try_new(Freed(Watched::new())).unwrap());
            cell.reclaim();
        }
        reader.join().unwrap();
    });
}
