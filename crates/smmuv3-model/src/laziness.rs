//! The freedom that the specification leaves to an SMMU and to the functions behind it, one switch for each use of it.
//!
//! Sections with § are of the Arm SMMU architecture specification, IHI 0070.

use std::fmt;

/// A freedom that a specification leaves, and what the model makes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freedom {
    /// The name of the switch, as the field of [`Laziness`] is called.
    pub name: &'static str,
    /// Where it is granted.
    pub section: &'static str,
    /// What the model does with it.
    pub what: &'static str,
}

impl fmt::Display for Freedom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.name, self.section, self.what)
    }
}

/// Declares [`Laziness`]: its switches, the list of them, and their names.
macro_rules! freedoms {
    ($($name:ident: $section:literal, $what:literal;)*) => {
        /// How the SMMU uses the freedom that the specification leaves.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Laziness {
            $(
                #[doc = $what]
                #[doc = concat!("(", $section, ")")]
                pub $name: bool,
            )*
            /// Entries that a TLB holds before it evicts one at random.
            pub tlb_entries: usize,
        }

        impl Laziness {
            /// All switches.
            pub const LIST: &'static [Freedom] =
                &[$(Freedom { name: stringify!($name), section: $section, what: $what }),*];

            fn with_all(on: bool) -> Self {
                Laziness { $($name: on,)* tlb_entries: 1 << 16 }
            }

            fn switch(&mut self, name: &str) -> Option<&mut bool> {
                match name {
                    $(stringify!($name) => Some(&mut self.$name),)*
                    _ => None,
                }
            }
        }
    };
}

freedoms! {
    junk_at_reset: "§3.11", "Caches hold junk at reset, until they are invalidated.";
    late_acks: "§6.3.9", "CR0ACK, IRQ_CTRLACK and GBPA show an update only when they have been read a few times.";
    config_cache: "§3.21.3",
        "Every configuration structure that was fetched is cached until a command names it: L1STD, STE, L1CD, CD.";
    invalid_config_cache: "§3.21.3", "That holds for invalid and illegal structures, too.";
    any_word_order: "§3.21.3", "The words of an STE or CD are read in any order, and so may be a mix of old and new.";
    tlb: "§3.21.1", "Translations are cached until a command names them.";
    walk_cache: "§3.21.1", "Table descriptors of every level are cached, and a walk starts at the deepest of them.";
    global_entries: "§3.17.1", "An entry from a global descriptor serves every ASID of the same ASET.";
    nested_entries: "§4.4.3.1",
        "Entries of both stages go from VA to PA, where an invalidation of stage 2 by IPA does not reach them.";
    nested_walk_cache: "§4.4.3.1",
        "The same holds for table descriptors of stage 1: what is cached of them has the PA of the next table.";
    nested_refill: "§4.7.3",
        "When invalidations of both stages complete together, stage 1 comes first, and is walked again at once with what stage 2 still has.";
    exact_hints: "§4.4.1.1",
        "A TLBI reaches only entries of the granule (TG) and level (TTL) that it gives, and with Leaf no table entries.";
    late_invalidations: "§4.8", "An invalidation takes effect only when a CMD_SYNC after it completes.";
    early_invalidations: "§4.8",
        "Every other invalidation takes effect as soon as it is consumed. This finds drivers that invalidate before they change the table.";
    prefetch_configs: "§3.21.3", "STEs and CDs that valid configuration leads to are fetched unasked, at random.";
    prefetch_translations: "§3.21.1",
        "Translations that valid configuration leads to are walked unasked, at random, cached or not.";
    split_entries: "§3.21.1", "A translation of a block is cached as a piece of it every other time.";
    tlb_conflicts: "§3.20.1",
        "Where several entries match, as after a change without break-before-make, one is used at random, or it is an F_TLB_CONFLICT.";
    late_writes: "§3.21.1",
        "A posted write that was translated reaches memory as late as when a CMD_SYNC completes an invalidation of what translated it: TLB entry, STE, CD.";
    late_translated_writes: "§3.9.1",
        "A posted translated write reaches memory as late as when a CMD_SYNC completes an ATC_INV of what translated it.";
    atc_prefetch: "§3.9.1", "A function whose ATS is on asks for translations at random.";
    atc_pieces: "§3.9.1", "A function keeps a piece of what a translation completion covers every other time.";
    atc_refill: "§3.9.1",
        "A function asks again for what an ATC_INV took from it, as soon as it is gone, before the TLBIs of the same CMD_SYNC are complete.";
    atc_timeout_loses_all: "§4.7.3",
        "When an ATC_INV is not answered, all that no CMD_SYNC has completed come to nothing, those for other functions included.";
}

impl Laziness {
    /// The laziest legal SMMU: everything is on.
    pub fn all() -> Self {
        Self::with_all(true)
    }

    /// An eager SMMU, with caches for nothing: everything is off.
    pub fn none() -> Self {
        Self::with_all(false)
    }

    /// Sets the switch of this name; false if there is none.
    pub fn set(&mut self, name: &str, on: bool) -> bool {
        self.switch(name).map(|switch| *switch = on).is_some()
    }

    /// Whether the switch of this name is on; `None` if there is none.
    pub fn get(&self, name: &str) -> Option<bool> {
        self.clone().switch(name).map(|switch| *switch)
    }
}

impl Default for Laziness {
    fn default() -> Self {
        Self::all()
    }
}
