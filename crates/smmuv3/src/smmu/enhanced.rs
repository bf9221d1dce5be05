//! Enhanced Command queues (§3.5.6): where they are, how they begin, and how they end.

use allocator_api2::vec::Vec;

use super::AddSmmuError;
use super::reset::wait_for;
use crate::arch::regs::{CMDQ_CONTROL_PAGE_SIZE, CmdqControlPageBase, EcmdqCons, EcmdqProd, Idr6, offset};
use crate::platform::{Mmio, Platform};
use crate::queue::{CommandQueue, QueueOptions};

/// Where the registers of each queue start, of all that can be reached. The SMMU has such queues.
fn registers<M: Mmio>(mmio: &M) -> impl Iterator<Item = usize> {
    let idr6 = Idr6::new_with_raw_value(mmio.read32(offset::IDR6));
    let page = |n| {
        let base = mmio.read64(offset::cmdq_control_page_base(n));
        let page = usize::try_from(CmdqControlPageBase::new_with_raw_value(base).offset()).ok()?;
        (page.checked_add(CMDQ_CONTROL_PAGE_SIZE)? <= mmio.size()).then_some(page)
    };
    let queues = move |page| (0..idr6.queues_per_page()).map(move |n| page + idr6.queue(n));
    (0..idr6.pages()).filter_map(page).flat_map(queues)
}

/// Enables up to `count` queues, which are off and have what [`CommandQueue::new`] is told. There are fewer where memory is short, or a queue
/// does not answer.
pub(super) fn enable<P: Platform>(
    count: u8,
    platform: &P,
    mmio: &P::Mmio,
    options: QueueOptions,
) -> Vec<CommandQueue<P>> {
    let mut queues = Vec::new();
    if queues.try_reserve_exact(count.into()).is_err() {
        return queues;
    }
    for at in registers(mmio).take(count.into()) {
        let Some(queue) = CommandQueue::enhanced(at, platform, options) else { break };
        if !queue.enable(mmio) {
            // It may be enabled one day.
            queue.keep_forever();
            break;
        }
        queues.extend([queue]);
    }
    queues
}

/// Disables all queues, whoever has enabled them.
pub(super) fn disable<P: Platform>(platform: &P, mmio: &P::Mmio, timeout_ns: u64) -> Result<(), AddSmmuError> {
    for at in registers(mmio) {
        let prod = || EcmdqProd::new_with_raw_value(mmio.read32(at + offset::ECMDQ_PROD));
        let acknowledged = |en| {
            let done = || EcmdqCons::new_with_raw_value(mmio.read32(at + offset::ECMDQ_CONS)).enack() == en;
            wait_for(platform, timeout_ns, "ECMDQ_PROD", prod().raw_value(), done)
        };
        // Until an earlier hand-shake is over, PROD cannot be written.
        acknowledged(prod().en())?;
        if prod().en() {
            mmio.write32(at + offset::ECMDQ_PROD, prod().with_en(false).raw_value());
            acknowledged(false)?;
        }
    }
    Ok(())
}
