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
            Bound::AtMost(most) => write!(f, "≤ {}", (most * 1000.0).round() / 1000.0),
            Bound::AtLeast(least) => write!(f, "≥ {}", (least * 1000.0).round() / 1000.0),
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

/// Numbers that depend on another, for a plot.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// What is plotted: "unmap of a page against SMMUs".
    pub title: &'static str,
    /// What stands below.
    pub x: &'static str,
    /// What stands at the side.
    pub y: &'static str,
    /// Each with its name.
    pub series: Vec<(&'static str, Vec<(f64, f64)>)>,
}

/// What a module has measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Results {
    /// Numbers.
    pub figures: Vec<Figure>,
    /// Numbers that depend on another.
    pub curves: Vec<Curve>,
}

impl From<Vec<Figure>> for Results {
    fn from(figures: Vec<Figure>) -> Self {
        Results { figures, curves: Vec::new() }
    }
}
