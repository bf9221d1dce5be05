//! Deliberate faults, by the command line: `sabotage=NAME`. Each must be noticed, or what the image says otherwise is worth nothing.

use spin::Once;

use crate::println;

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Devices are given addresses where nothing is mapped.
    Unmapped,
    /// The device of the test for use after unmap is given a page that is still mapped.
    StillMapped,
    /// Devices are attached by another device's StreamID.
    WrongStream,
    /// The event interrupt is not enabled.
    DeafToEvents,
    /// The interrupt for global errors is not enabled.
    DeafToErrors,
}

static CHOSEN: Once<Sabotage> = Once::new();

/// Reads the command line.
pub fn init(command_line: &str) {
    let name = command_line.split_whitespace().find_map(|word| word.strip_prefix("sabotage="));
    let Some(name) = name else { return };
    let sabotage = CHOSEN.call_once(|| match name {
        "unmapped" => Sabotage::Unmapped,
        "still-mapped" => Sabotage::StillMapped,
        "wrong-stream" => Sabotage::WrongStream,
        "deaf-to-events" => Sabotage::DeafToEvents,
        "deaf-to-errors" => Sabotage::DeafToErrors,
        other => panic!("no sabotage is called {other}"),
    });
    println!("sabotage: {sabotage:?}");
}

/// Whether this is to be done wrong.
pub fn is(sabotage: Sabotage) -> bool {
    CHOSEN.get() == Some(&sabotage)
}
