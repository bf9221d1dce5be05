//! Shared ownership: the last owner drops the value.

use loom::thread;

use super::{Watched, explore};
use crate::shared::Shared;

/// Destroyed when it is dropped.
struct Value(Watched);

impl Drop for Value {
    fn drop(&mut self) {
        self.0.destroy();
    }
}

#[test]
fn the_last_owner_drops_the_value_when_all_others_are_through_with_it() {
    explore(None, || {
        let first = Shared::try_new(Value(Watched::new())).unwrap();
        let others = [(); 2].map(|()| {
            let owner = first.clone();
            thread::spawn(move || {
                owner.0.use_it();
                drop(owner);
            })
        });
        first.0.use_it();
        drop(first);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}
