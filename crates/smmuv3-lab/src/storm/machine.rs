//! The machine of a round: what is in its history file, and what the model is built from.

use serde::{Deserialize, Serialize};
use smmuv3::{Completion, SmmuOptions};
use smmuv3_model::{Ecmdqs, Laziness, ModelConfig, ModelSmmuConfig, Sabotage};

use super::rng::{Rng, derive};

/// SMMUs that the model can have.
pub(super) const MAX_SMMUS: usize = 16;
/// Devices have StreamIDs from 0x100 on; the smallest stream table has 1024 entries.
pub(super) const MAX_DEVICES: usize = 512;
pub(super) const MAX_DOMAINS: usize = 256;

/// Long enough for a thread that gets no CPU time for a while.
const TIMEOUT_NS: u64 = 20_000_000_000;

/// A machine. What is not said here follows from the seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Machine {
    pub seed: u64,
    /// What the model does at random follows from it.
    pub luck: u64,
    pub ram_mib: usize,
    pub smmus: usize,
    pub devices: usize,
    pub domains: usize,
    /// vSMMUs, spread over the SMMUs; there are none without a stage 2 domain.
    pub guests: usize,
    /// Names of what the SMMUs are lazy in.
    pub laziness: Vec<String>,
    /// What the SMMUs ignore, to see the storm find it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sabotage: Option<String>,
}

impl Machine {
    /// Whether the numbers make a machine.
    pub(super) fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: usize, max: usize| match value {
            0 => Err(format!("{name} = 0, expected 1 to {max}")),
            value if value > max => Err(format!("{name} = {value}, expected 1 to {max}")),
            _ => Ok(()),
        };
        within("smmus", self.smmus, MAX_SMMUS)?;
        within("devices", self.devices, MAX_DEVICES)?;
        within("domains", self.domains, MAX_DOMAINS)?;
        within("ram_mib", self.ram_mib, 1024)?;
        if self.guests > MAX_SMMUS {
            return Err(format!("guests = {}, expected 0 to {MAX_SMMUS}", self.guests));
        }
        laziness(&self.laziness)?;
        self.sabotage.as_deref().map_or(Ok(()), |name| sabotage(name).map(drop))
    }

    /// What the model is built from. `check` was well.
    pub(super) fn config(&self) -> Result<ModelConfig, String> {
        let laziness = laziness(&self.laziness)?;
        let smmus = (0..self.smmus)
            .map(|index| {
                let mut rng = self.rng(index);
                let st_two_level = !rng.one_in(3);
                let config = ModelSmmuConfig {
                    range_inv: !rng.one_in(3),
                    asid16: rng.one_in(3),
                    vmid16: rng.one_in(3),
                    ats: index == 0 || !rng.one_in(4),
                    cd_two_level: !rng.one_in(3),
                    st_two_level,
                    sid_bits: if st_two_level { 16 } else { 10 },
                    bbm_level: rng.below(3) as u8,
                    laziness: laziness.clone(),
                    // Behind what was drawn before there were such queues.
                    ecmdqs: rng.one_in(3).then_some(Ecmdqs { log2_pages: 1, log2_queues: 1 }),
                    ..ModelSmmuConfig::default()
                };
                // They need coherent accesses.
                ModelSmmuConfig { coherent: config.ecmdqs.is_some() || !rng.one_in(3), ..config }
            })
            .collect();
        Ok(ModelConfig { ram_size: self.ram_mib << 20, smmus, seed: self.luck, ..ModelConfig::default() })
    }

    /// Commands that an SMMU consumes each time that somebody looks; `None` is all there are.
    pub(super) fn commands_per_look(&self, smmu: usize) -> Option<u32> {
        let mut rng = Rng::new(derive(self.seed, 1000 + smmu as u64));
        rng.one_in(2).then(|| 1 + rng.below(3) as u32)
    }

    /// How the driver sets an SMMU up. Short queues are full sooner; CMD_SYNCs tell of themselves in each way.
    pub(super) fn options(&self, smmu: usize) -> SmmuOptions {
        let mut rng = Rng::new(derive(self.seed, 2000 + smmu as u64));
        SmmuOptions {
            cmdq_log2: 2 + rng.below(7) as u8,
            eventq_log2: 3 + rng.below(6) as u8,
            timeout_ns: TIMEOUT_NS,
            completion: rng.pick(&[Completion::Message, Completion::Event, Completion::Register]),
            ..SmmuOptions::default()
        }
    }

    /// The domain that most happens to.
    pub(super) fn favourite(&self) -> usize {
        derive(self.seed, 6000) as usize % self.domains
    }

    fn rng(&self, smmu: usize) -> Rng {
        Rng::new(derive(self.seed, smmu as u64))
    }

    /// Whether a domain is stage 2; one in four is, and the last of few.
    pub(super) fn is_stage2(&self, domain: usize) -> bool {
        domain % 4 == 3 || (self.domains < 4 && domain > 0 && domain == self.domains - 1)
    }

    /// The stage 2 domain under a guest.
    pub(super) fn parent(&self, guest: usize) -> Option<usize> {
        let stage2: Vec<usize> = (0..self.domains).filter(|&domain| self.is_stage2(domain)).collect();
        stage2.get(guest % stage2.len().max(1)).copied()
    }

    /// Whether a domain has guests on top.
    pub(super) fn is_parent(&self, domain: usize) -> bool {
        (0..self.guests).any(|guest| self.parent(guest) == Some(domain))
    }

    /// The guests that there really are.
    pub(super) fn real_guests(&self) -> usize {
        if self.parent(0).is_some() { self.guests } else { 0 }
    }
}

/// The names in an argument: `all`, `none`, or some with commas between.
pub(super) fn lazy_names(argument: &str) -> Result<Vec<String>, String> {
    let names: Vec<String> = match argument {
        "all" => Laziness::LIST.iter().map(|freedom| freedom.name.to_owned()).collect(),
        "none" => Vec::new(),
        some => some.split(',').map(|name| name.trim().to_owned()).collect(),
    };
    laziness(&names)?;
    Ok(names)
}

/// Laziness in what is named, and in nothing else.
fn laziness(names: &[String]) -> Result<Laziness, String> {
    names.iter().try_fold(Laziness::none(), |mut laziness, name| {
        if laziness.set(name, true) {
            return Ok(laziness);
        }
        let known: Vec<_> = Laziness::LIST.iter().map(|freedom| freedom.name).collect();
        Err(format!("no laziness is called {name:?}, expected all, none or some of {}", known.join(", ")))
    })
}

const SABOTAGES: [(&str, Sabotage); 8] = [
    ("IgnoreTlbiByAddress", Sabotage::IgnoreTlbiByAddress),
    ("IgnoreTlbiByTag", Sabotage::IgnoreTlbiByTag),
    ("TreatTlbiAsLeaf", Sabotage::TreatTlbiAsLeaf),
    ("IgnoreNhAll", Sabotage::IgnoreNhAll),
    ("IgnoreCfgi", Sabotage::IgnoreCfgi),
    ("IgnoreSync", Sabotage::IgnoreSync),
    ("IgnoreInnerSync", Sabotage::IgnoreInnerSync),
    ("IgnoreAtcInv", Sabotage::IgnoreAtcInv),
];

/// The sabotage of this name.
pub(super) fn sabotage(name: &str) -> Result<Sabotage, String> {
    SABOTAGES.iter().find(|(known, _)| *known == name).map(|(_, what)| *what).ok_or_else(|| {
        let known: Vec<_> = SABOTAGES.iter().map(|(name, _)| *name).collect();
        format!("no sabotage is called {name:?}, expected one of {}", known.join(", "))
    })
}
