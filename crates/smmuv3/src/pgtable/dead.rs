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
/// that is late.
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
    pub(crate) fn retire(&self, tables: DeadTables, sections: &Sections<P>) {
        if tables.is_empty() {
            return;
        }
        self.park(tables);
        let parked = self.take_parked();
        // litmus: parked
        if sections.try_synchronize() {
            self.free(parked);
        } else {
            self.park(parked);
        }
    }

    /// Moves the tables of one list to another.
    pub(crate) fn join(&self, all: &mut DeadTables, mut tables: DeadTables) {
        if all.is_empty() {
            *all = tables;
            return;
        }
        while let Some(table) = self.pop(&mut tables) {
            all.push(table, self.table(table));
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
    fn park(&self, mut tables: DeadTables) {
        while let Some(table) = self.pop(&mut tables) {
            let Some(first) = self.table(table).first() else { return };
            let mut head = self.parked.load(Relaxed);
            loop {
                first.store(head | DEAD, Relaxed);
                // Release: the link comes before the table. Partner: the Acquire in `take_parked`. litmus: parked
                match self.parked.compare_exchange_weak(head, table.0, Release, Relaxed) {
                    Ok(_) => break,
                    Err(now) => head = now,
                }
            }
        }
    }

    /// Takes all tables that were put aside.
    pub(super) fn take_parked(&self) -> DeadTables {
        DeadTables { head: self.parked.swap(0, Acquire) }
    }

    fn pop(&self, tables: &mut DeadTables) -> Option<PhysAddr> {
        let table = PhysAddr(tables.head);
        if table.0 == 0 {
            return None;
        }
        tables.head = self.table(table).first().map_or(0, |first| first.load(Acquire) & !DEAD);
        Some(table)
    }
}
