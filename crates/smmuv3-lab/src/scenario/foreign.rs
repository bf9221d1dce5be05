//! The memory of tables that are not the driver's: a process's, or a guest's.

use smmuv3::PagingDomain;
use smmuv3::arch::Prot;
use smmuv3::platform::{Iova, PhysAddr};

use super::hardware::Hardware;
use super::table::{Memory, TablePage};
use crate::session::PAGE;

/// Pages for tables. A guest's are mapped in the parent domain.
pub(super) struct Foreign<'h, H: Hardware> {
    pub hardware: &'h H,
    pub guest: Option<GuestSpace<H>>,
    pub pages: Vec<PhysAddr>,
}

/// Where the next page of a guest goes.
pub(super) struct GuestSpace<H: Hardware> {
    pub parent: PagingDomain<H::Platform>,
    pub next: u64,
}

impl<H: Hardware> Memory for Foreign<'_, H> {
    fn table_page(&mut self) -> Result<TablePage, String> {
        let at = self.hardware.alloc(1, PAGE).ok_or("out of memory for a table")?;
        self.hardware.write(at, &[0; PAGE]).map_err(|error| error.to_string())?;
        self.pages.push(at);
        let seen = match &mut self.guest {
            None => at.0,
            Some(GuestSpace { parent, next }) => {
                let ipa = *next;
                parent
                    .map(Iova(ipa), at, PAGE as u64, Prot::READ | Prot::WRITE)
                    .map_err(|error| format!("a table of the guest: {error}"))?;
                *next += PAGE as u64;
                ipa
            }
        };
        Ok(TablePage { seen, at })
    }

    fn write_word(&mut self, at: PhysAddr, word: u64) -> Result<(), String> {
        self.hardware.write(at, &word.to_le_bytes()).map_err(|error| error.to_string())
    }
}
