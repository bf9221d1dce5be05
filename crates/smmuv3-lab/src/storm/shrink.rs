//! A failing history made short: steps are left out, and what is left is made simpler, for as long as it fails in the same way.

use std::time::Instant;

use super::machine::Machine;
use super::op::Step;
use super::round::{Failure, replay};

/// A history that fails.
#[derive(Clone)]
pub(super) struct Failing {
    pub machine: Machine,
    pub failure: Failure,
    pub steps: Vec<Step>,
}

/// Shortens a history until `end`. `look` is called with its length after each try.
pub(super) fn shrink(failing: Failing, end: Instant, mut look: impl FnMut(usize)) -> Failing {
    let mut shrinking = Shrinking { best: failing, in_order: Vec::new(), end };
    shrinking.make_alone();
    loop {
        let before = shrinking.best.steps.clone();
        shrinking.leave_out(&mut look);
        shrinking.make_simpler(&mut look);
        shrinking.make_alone();
        if shrinking.best.steps == before || Instant::now() >= end {
            // Easier to read.
            let in_order = std::mem::take(&mut shrinking.in_order);
            shrinking.fails(&in_order);
            return shrinking.best;
        }
    }
}

struct Shrinking {
    best: Failing,
    /// The best steps in the order in which they began.
    in_order: Vec<Step>,
    end: Instant,
}

impl Shrinking {
    /// Whether these steps fail in the same way, with some luck of the model; then they are the best so far.
    ///
    /// What the model does at random changes with everything that comes before: a failure that needs luck must be looked for again.
    fn fails(&mut self, steps: &[Step]) -> bool {
        let tries = match steps.len() {
            // One thread by itself races with nobody.
            _ if steps.iter().all(|step| step.thread == 0) => 1,
            0..=12 => 24,
            13..=50 => 12,
            _ => 4,
        };
        let luck = self.best.machine.luck;
        (0..tries).any(|more| self.fails_with(luck.wrapping_add(more), steps))
    }

    fn fails_with(&mut self, luck: u64, steps: &[Step]) -> bool {
        if Instant::now() >= self.end {
            return false;
        }
        let machine = Machine { luck, ..self.best.machine.clone() };
        let Ok(outcome) = replay(&machine, steps) else { return false };
        let Some(failure) = outcome.failure.filter(|failure| failure.kind == self.best.failure.kind) else {
            return false;
        };
        // What was not begun is not needed.
        self.best = Failing { machine, failure, steps: outcome.steps };
        self.in_order = outcome.in_order;
        true
    }

    /// Leaves out more and more of the steps, in ever smaller pieces.
    fn leave_out(&mut self, look: &mut impl FnMut(usize)) {
        let mut piece = self.best.steps.len().div_ceil(2);
        while piece > 0 {
            // From the end: what came last is what failed, so it is what comes before that is not needed.
            let mut at = self.best.steps.len();
            while at > 0 {
                at = at.saturating_sub(piece);
                let steps = &self.best.steps;
                let end = (at + piece).min(steps.len());
                let without: Vec<Step> = steps.iter().take(at).chain(&steps[end..]).cloned().collect();
                if without.len() < steps.len() {
                    self.fails(&without);
                }
                at = at.min(self.best.steps.len());
                look(self.best.steps.len());
            }
            piece = if piece == 1 { 0 } else { piece.div_ceil(2) };
        }
    }

    /// One thread.
    fn make_alone(&mut self) {
        let alone: Vec<Step> = self.best.steps.iter().cloned().map(|step| Step { thread: 0, ..step }).collect();
        if alone != self.best.steps {
            self.fails(&alone);
        }
    }

    /// Nothing that happens in between; smaller operations.
    fn make_simpler(&mut self, look: &mut impl FnMut(usize)) {
        let mut index = 0;
        while index < self.best.steps.len() {
            let step = self.best.steps[index].clone();
            let quiet = (step.seed != 0).then(|| Step { seed: 0, ..step.clone() });
            let simpler = step.op.simpler().into_iter().map(|op| Step { op, ..step.clone() });
            for step in quiet.into_iter().chain(simpler) {
                let mut steps = self.best.steps.clone();
                if let Some(place) = steps.get_mut(index) {
                    *place = step;
                    if self.fails(&steps) {
                        break;
                    }
                }
            }
            look(self.best.steps.len());
            index += 1;
        }
    }
}
