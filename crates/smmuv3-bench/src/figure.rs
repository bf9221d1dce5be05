//! What was measured, and what it should be.

use std::fmt;

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// At most so much.
    AtMost(f64),
    /// At least so much.
    AtLeast(f64),
}

impl Bound {
    /// Whether a value is as it should be.
    pub fn holds(self, value: f64) -> bool {
        match self {
            Bound::AtMost(most) => value <= most,
            Bound::AtLeast(least) => value >= least,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::AtMost(most) => write!(f, "≤ {most}"),
            Bound::AtLeast(least) => write!(f, "≥ {least}"),
        }
    }
}

/// One measured number.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Which part of the driver: "array", "queue".
    pub part: &'static str,
    /// What was measured.
    pub name: String,
    /// The number.
    pub value: f64,
    /// What it counts: "ns", "instructions", "× memcpy".
    pub unit: &'static str,
    /// What it should be.
    pub bound: Option<Bound>,
}

impl Figure {
    /// A figure that nothing is asked of.
    pub fn new(part: &'static str, name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Figure { part, name: name.into(), value, unit, bound: None }
    }

    /// The same with a bound.
    pub fn bounded(self, bound: Bound) -> Self {
        Figure { bound: Some(bound), ..self }
    }

    /// Whether it keeps its bound.
    pub fn holds(&self) -> bool {
        self.bound.is_none_or(|bound| bound.holds(self.value))
    }
}
