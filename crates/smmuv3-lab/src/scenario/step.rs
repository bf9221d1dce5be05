//! The steps of a scenario: a table whose first key is the verb, with what it acts on as its value.
//!
//! `{ map = "net", iova = 0x1000, buffer = "a" }`

use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use toml::Spanned;

use super::file::{AccessRights, Name, OwedKind};

/// What to do, and to what.
#[derive(Debug)]
pub(super) struct Step {
    pub verb: &'static str,
    pub target: Name,
    pub action: Action,
}

#[derive(Debug)]
pub(super) enum Action {
    /// Maps a buffer in a stage 1 or 2 domain.
    Map(Map),
    /// Unmaps from a stage 1 or 2 domain. Buffers with no mapping left are freed.
    Unmap(Unmap),
    /// Changes a table that is not the driver's: of an SVA or nested domain. Nothing is invalidated.
    Set(Set),
    /// The same, to take a mapping away.
    Clear(Clear),
    /// The owner of an SVA domain's table tells the driver of a change.
    Invalidate(Invalidate),
    /// The owner of an SVA domain's table says that it goes; the table is freed.
    Release(Nothing),
    /// A guest's TLBI_NH_VA by ASID, and ATC_INV for a stream of its own.
    GuestInvalidate(GuestInvalidate),
    /// Commands of a guest as they stand in its queue.
    GuestCommands(GuestCommands),
    /// A device accesses memory.
    Dma(Dma),
    Attach(Attach),
    AttachIdentity(Nothing),
    Detach(Nothing),
    AttachPasid(AttachPasid),
    DetachPasid(DetachPasid),
    /// The device goes, with all that it is attached to.
    RemoveDevice(Nothing),
    RemoveSmmu(Nothing),
    /// Prints a domain's invalidation array.
    Show(Nothing),
    /// A domain's invalidation array is exactly this.
    ExpectOwed(ExpectOwed),
    /// Runs the threads of a group until all are through.
    RunThreads(Nothing),
}

/// The verbs.
const VERBS: [&str; 19] = [
    "map",
    "unmap",
    "set",
    "clear",
    "invalidate",
    "release",
    "guest_invalidate",
    "guest_commands",
    "dma",
    "attach",
    "attach_identity",
    "detach",
    "attach_pasid",
    "detach_pasid",
    "remove_device",
    "remove_smmu",
    "show",
    "expect_owed",
    "run_threads",
];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Map {
    pub iova: u64,
    pub buffer: Name,
    #[serde(default)]
    pub access: AccessRights,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Unmap {
    pub iova: u64,
    /// Of 4 KiB. Left out: the buffer that is mapped there.
    pub pages: Option<Spanned<usize>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Clear {
    pub iova: Spanned<u64>,
    /// Of 4 KiB.
    #[serde(default = "one_page")]
    pub pages: Spanned<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Invalidate {
    /// Left out: everything.
    pub iova: Option<Spanned<u64>>,
    /// Of 4 KiB.
    #[serde(default = "one_page")]
    pub pages: Spanned<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Set {
    pub iova: Spanned<u64>,
    /// Where an SVA domain's page shall lead.
    pub buffer: Option<Name>,
    /// Where a nested domain's page shall lead.
    pub ipa: Option<Spanned<u64>>,
    #[serde(default)]
    pub access: AccessRights,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GuestInvalidate {
    pub asid: u16,
    pub iova: Spanned<u64>,
    /// The guest's StreamID of a device whose ATC shall forget the page, too.
    pub stream: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GuestCommands {
    pub raw: Vec<[u64; 2]>,
    /// The first command that is refused. Left out: none is.
    pub refused: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Dma {
    pub op: Op,
    /// Left out: the buffer's own address, for a device that is not translated.
    pub iova: Option<u64>,
    /// What is read or written, all of it. Needed unless a fault is expected.
    pub buffer: Option<Name>,
    /// Left out: the device's first.
    pub sid: Option<Spanned<u32>>,
    pub pasid: Option<u32>,
    #[serde(default)]
    pub ats: bool,
    /// How it is refused. Left out: it works, and the contents are compared.
    pub fault: Option<Spanned<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Op {
    Read,
    Write,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Attach {
    pub domain: Name,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AttachPasid {
    pub pasid: u32,
    pub domain: Name,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DetachPasid {
    pub pasid: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExpectOwed {
    pub entries: Vec<Entry>,
}

/// An entry of an invalidation array.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// May be left out where there is one.
    pub smmu: Option<Name>,
    pub kind: OwedKind,
    /// ASID, VMID or StreamID. Left out: any.
    pub id: Option<u32>,
    #[serde(default)]
    pub ssid: u32,
    #[serde(default = "one_user")]
    pub users: u32,
}

fn one_user() -> u32 {
    1
}

fn one_page() -> Spanned<usize> {
    Spanned::new(0..0, 1)
}

impl Action {
    /// Whether other steps may go on at the same moment.
    pub(super) fn may_run_in_threads(&self) -> bool {
        !matches!(
            self,
            Action::RemoveDevice(_)
                | Action::RemoveSmmu(_)
                | Action::Release(_)
                | Action::Show(_)
                | Action::ExpectOwed(_)
                | Action::RunThreads(_)
        )
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.verb, self.target.get_ref())
    }
}

impl<'de> Deserialize<'de> for Step {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(StepVisitor)
    }
}

struct StepVisitor;

impl<'de> Visitor<'de> for StepVisitor {
    type Value = Step;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a step, a table whose first key is its verb")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Step, A::Error> {
        let verb: String = map.next_key()?.ok_or_else(|| A::Error::custom("an empty step, expected a verb"))?;
        let Some(verb) = VERBS.into_iter().find(|known| *known == verb) else {
            let verbs = VERBS.join(", ");
            return Err(A::Error::custom(format!("a step begins with `{verb}`, expected its verb: one of {verbs}")));
        };
        let target = map.next_value()?;
        let rest = MapAccessDeserializer::new(map);
        let action = match verb {
            "map" => Action::Map(Map::deserialize(rest)?),
            "unmap" => Action::Unmap(Unmap::deserialize(rest)?),
            "set" => Action::Set(Set::deserialize(rest)?),
            "clear" => Action::Clear(Clear::deserialize(rest)?),
            "invalidate" => Action::Invalidate(Invalidate::deserialize(rest)?),
            "release" => Action::Release(Nothing::deserialize(rest)?),
            "guest_invalidate" => Action::GuestInvalidate(GuestInvalidate::deserialize(rest)?),
            "guest_commands" => Action::GuestCommands(GuestCommands::deserialize(rest)?),
            "dma" => Action::Dma(Dma::deserialize(rest)?),
            "attach" => Action::Attach(Attach::deserialize(rest)?),
            "attach_identity" => Action::AttachIdentity(Nothing::deserialize(rest)?),
            "detach" => Action::Detach(Nothing::deserialize(rest)?),
            "attach_pasid" => Action::AttachPasid(AttachPasid::deserialize(rest)?),
            "detach_pasid" => Action::DetachPasid(DetachPasid::deserialize(rest)?),
            "remove_device" => Action::RemoveDevice(Nothing::deserialize(rest)?),
            "remove_smmu" => Action::RemoveSmmu(Nothing::deserialize(rest)?),
            "show" => Action::Show(Nothing::deserialize(rest)?),
            "expect_owed" => Action::ExpectOwed(ExpectOwed::deserialize(rest)?),
            _ => Action::RunThreads(Nothing::deserialize(rest)?),
        };
        Ok(Step { verb, target, action })
    }
}
