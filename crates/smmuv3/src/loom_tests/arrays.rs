//! Attach, detach and unmap around a domain's invalidation array.

use alloc::sync::Arc;
use alloc::vec::Vec;
use lock_api::Mutex;
use loom::thread;

use super::{LoomMutex, LoomPlatform, Watched, explore};
use crate::arch::RawSte;
use crate::invs::{InvArray, Invs, Key, Kind};
use crate::primitive::{AtomicBool, Ordering};
use crate::rcu::Sections;
use crate::shared::Shared;
use crate::table;
use crate::tags::Tags;

const ASID: Key = Key::new(0, Kind::S1Asid, 3, 0);
const ATC: Key = Key::new(0, Kind::Ats, 0x18, 0);
const OTHER_ATC: Key = Key::new(0, Kind::Ats, 0x20, 0);

/// A domain: its array, one descriptor, and the STE of a device that may walk to it.
struct World {
    platform: LoomPlatform,
    sections: Shared<Sections<LoomPlatform>>,
    invs: Invs<LoomPlatform>,
}

const DESCRIPTOR: usize = 8;

impl World {
    fn new(attached: &[Key]) -> Arc<Self> {
        let platform = LoomPlatform::new(9);
        platform.words()[DESCRIPTOR].store(1, Ordering::Relaxed);
        let sections = Shared::try_new(Sections::new(platform.clone())).unwrap();
        let invs = Invs::try_new(sections.clone()).unwrap();
        invs.publish(invs.merge(attached).unwrap());
        invs.reclaim();
        Arc::new(World { platform, sections, invs })
    }

    fn attach(&self, keys: &[Key]) {
        self.invs.publish(self.invs.merge(keys).unwrap());
        // The target has a second word, so that the entry is written in two steps.
        let words = self.platform.words()[..8].try_into().unwrap();
        let target = RawSte([0b1011, 0, 0, 1, 0, 0, 0, 0]);
        table::write(&self.platform, words, target, || Ok::<(), ()>(())).unwrap();
    }

    /// The descriptor, if the STE lets the SMMU walk to it.
    fn walk(&self) -> Option<u64> {
        let words = self.platform.words();
        // Acquire: the dependency of addresses.
        (words[0].load(Ordering::Acquire) & 1 != 0).then(|| words[DESCRIPTOR].load(Ordering::Relaxed))
    }

    /// Clears the descriptor. Returns whether the array lists `key`, so that it is invalidated.
    fn unmap(&self, key: Key) -> bool {
        self.platform.words()[DESCRIPTOR].swap(0, Ordering::AcqRel);
        walked(self.invs.enter().load()).contains(&key)
    }
}

/// What an invalidation finds.
fn walked(array: &InvArray) -> Vec<Key> {
    let mut keys = Vec::new();
    array.runs().for_each(|run| run.extend(&mut keys, |key| key));
    keys
}

#[test]
fn either_the_unmapper_sees_the_new_array_or_the_smmu_the_new_descriptor() {
    explore(None, || {
        let world = World::new(&[]);
        let attach = thread::spawn({
            let world = world.clone();
            move || world.attach(&[ASID])
        });
        let smmu = thread::spawn({
            let world = world.clone();
            move || world.walk()
        });
        let invalidated = world.unmap(ASID);
        attach.join().unwrap();
        let cached = smmu.join().unwrap();
        assert!(invalidated || cached.is_none_or(|descriptor| descriptor == 0), "the SMMU keeps what was unmapped");
    });
}

/// The device that joins shares a TLB tag with another. Its translation request may hit the TLB entry that a thread with the old array is about to
/// invalidate: only the grace period before the STE keeps the answer from outliving the invalidation in the device's ATC.
#[test]
fn a_device_with_ats_joins_only_when_nobody_works_with_the_old_array() {
    explore(Some(3), || {
        let world = World::new(&[ASID]);
        let tlb = Arc::new(AtomicBool::new(true));
        let joined = Arc::new(AtomicBool::new(false));
        let attach = thread::spawn({
            let (world, joined) = (world.clone(), joined.clone());
            move || {
                world.invs.publish(world.invs.merge(&[ASID, ATC]).unwrap());
                world.sections.synchronize();
                joined.store(true, Ordering::Release);
            }
        });
        let device = thread::spawn({
            let (joined, tlb) = (joined.clone(), tlb.clone());
            // A translation request, answered from the TLB.
            move || joined.load(Ordering::Acquire) && tlb.load(Ordering::Acquire)
        });
        let section = world.invs.enter();
        let told = walked(section.load()).contains(&ATC);
        tlb.store(false, Ordering::Release);
        drop(section);
        attach.join().unwrap();
        let in_atc = device.join().unwrap();
        assert!(told || !in_atc, "the device's ATC keeps what was unmapped");
    });
}

/// A fence that belongs to one version of the array, such as a lock in it, would not do: the array has a new version by the time of the detach.
#[test]
fn nobody_with_an_older_array_talks_to_a_device_whose_ats_is_off() {
    explore(None, || {
        let world = World::new(&[ASID, ATC]);
        let device = Arc::new(Watched::new());
        let unmapper = thread::spawn({
            let (world, device) = (world.clone(), device.clone());
            move || {
                let section = world.invs.enter();
                if walked(section.load()).contains(&ATC) {
                    // ATC_INV
                    device.use_it();
                }
            }
        });
        world.invs.publish(world.invs.merge(&[ASID, OTHER_ATC]).unwrap());
        world.invs.leave(&[ASID, ATC], |_| panic!("another device uses the tag"));
        world.sections.synchronize();
        // ATS off
        device.destroy();
        unmapper.join().unwrap();
    });
}

/// What is trash since long ago is not sent anything, also when the array gets shorter meanwhile, and with it the count of its trash: the two
/// are one word.
///
///     unmapping thread                  detaching thread
///     load length and trash             the last entry goes: shorter, and no trash before its end any more
///     skip trash, if there is any
#[test]
fn length_and_trash_are_of_the_same_moment() {
    explore(None, || {
        let world = World::new(&[ASID, ATC, OTHER_ATC]);
        world.invs.leave(&[ATC], |_| panic!("a tag is left"));
        world.sections.synchronize();
        let detach = thread::spawn({
            let world = world.clone();
            move || world.invs.leave(&[OTHER_ATC], |_| panic!("a tag is left"))
        });
        let told = walked(world.invs.enter().load());
        assert!(told.contains(&ASID) && !told.contains(&ATC), "a device that has left is sent an ATC_INV");
        detach.join().unwrap();
    });
}

#[test]
fn a_tag_is_clean_when_it_is_given_out_again() {
    explore(None, || {
        let world = World::new(&[ASID]);
        // All tags are taken, the last of them by this domain.
        let mut all = Tags::new(6).unwrap();
        let mine = core::iter::from_fn(|| all.take()).last().unwrap();
        let tags = Arc::new(Mutex::<LoomMutex, _>::new(all));
        // Whether the TLB holds entries of the old domain under the tag.
        let tlb = Arc::new(AtomicBool::new(true));
        let attach = thread::spawn({
            let (tags, tlb) = (tags.clone(), tlb.clone());
            move || {
                let tag = tags.lock().take();
                assert!(tag.is_none() || !tlb.load(Ordering::Relaxed), "another domain's entries stand under the tag");
            }
        });
        world.invs.leave(&[ASID], |_| {
            tlb.store(false, Ordering::Relaxed);
            tags.lock().give_back(mine);
        });
        attach.join().unwrap();
    });
}
