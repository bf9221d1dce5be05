//! Tables that were taken out and wait to be freed: a list through their own first words.

use crate::primitive::AtomicU64;
use crate::primitive::Ordering::{Acquire, Relaxed, Release};

use super::{DEAD, PageTable};
use crate::platform::{PhysAddr, Platform};
use crate::rcu::Sections;

/// A list of tables that are linked nowhere any more. Needs no memory of its own.
///
/// # Invariants
/// Word 0 of each table is the address of the next, or 0, plus [`DEAD`]: still invalid, still not empty, for an SMMU or a thread
/// that is late. Neither changes it.
#[derive(Debug, Default)]
#[must_use = "forgotten tables are never freed"]
pub(crate) struct DeadTables {
    pub(super) head: u64,
}

impl DeadTables {
    pub(crate) fn is_empty(&self) -> bool {
        self.head == 0
    }

    pub(super) fn push(&mut self, table: PhysAddr, words: &[AtomicU64]) {
        if let Some(first) = words.first() {
            first.store(self.head | DEAD, Release);
            self.head = table.0;
        }
    }
}

impl<P: Platform> PageTable<P> {
    /// Frees tables whose invalidation has completed, once no thread is in them any more. Does not wait for that: this may be an
    /// interrupt handler that interrupted such a thread. What cannot be freed now is parked for the next call.
    #[inline]
    pub(crate) fn retire(&self, tables: DeadTables, sections: &Sections<P>) {
        if !tables.is_empty() {
            self.free_or_park(tables, sections);
        }
    }

    #[inline(never)]
    fn free_or_park(&self, tables: DeadTables, sections: &Sections<P>) {
        let parked = self.take_parked();
        // litmus: parked
        if sections.try_synchronize() {
            self.free(tables);
            self.free(parked);
        } else {
            self.park(tables);
            self.park(parked);
        }
    }

    /// Moves the tables of one list to another.
    pub(crate) fn join(&self, all: &mut DeadTables, tables: DeadTables) {
        if let Some(last) = self.last(&tables) {
            last.store(all.head | DEAD, Release);
            all.head = tables.head;
        }
    }

    /// Frees the tables. Their invalidation has completed, and a grace period has passed since.
    pub(super) fn free(&self, mut tables: DeadTables) {
        while let Some(table) = self.pop(&mut tables) {
            if !self.start.is_kept() {
                self.free_table(table);
            }
        }
    }

    /// Puts tables aside whose invalidation has completed.
    fn park(&self, tables: DeadTables) {
        let Some(last) = self.last(&tables) else { return };
        let mut head = self.parked.load(Relaxed);
        loop {
            last.store(head | DEAD, Release);
            // Release: the links come before the table. Partner: the Acquire in `take_parked`. litmus: parked
            match self.parked.compare_exchange_weak(head, tables.head, Release, Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// The first word of the last table.
    fn last(&self, tables: &DeadTables) -> Option<&AtomicU64> {
        let mut word = self.first(tables.head)?;
        while let Some(next) = self.first(link(word)) {
            word = next;
        }
        Some(word)
    }

    /// The first word of a table in a list. None at the end.
    fn first(&self, table: u64) -> Option<&AtomicU64> {
        if table == 0 { None } else { self.platform.window().word(PhysAddr(table)) }
    }

    /// Takes all tables that were put aside.
    pub(super) fn take_parked(&self) -> DeadTables {
        DeadTables { head: self.parked.swap(0, Acquire) }
    }

    fn pop(&self, tables: &mut DeadTables) -> Option<PhysAddr> {
        let table = tables.head;
        tables.head = link(self.first(table)?);
        Some(PhysAddr(table))
    }
}

/// The table that comes after the one with this first word.
fn link(first: &AtomicU64) -> u64 {
    first.load(Acquire) & !DEAD
}
