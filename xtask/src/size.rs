//! How much code of the driver is in the image.

use std::fmt;

/// Bytes of machine code.
#[derive(Debug, PartialEq, Eq)]
pub struct CodeSize {
    /// Of functions of the crate `smmuv3`, and of generic functions that were made for its types. What was inlined into other functions is theirs.
    driver: u64,
    /// Of all functions.
    image: u64,
}

impl fmt::Display for CodeSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "driver {} bytes, all of the image {} bytes", self.driver, self.image)
    }
}

/// Sums up the functions in the symbol table of an ELF file of 64 bits, little-endian. `None` if it is not whole.
pub fn code(elf: &[u8]) -> Option<CodeSize> {
    // File header, section headers, symbols: System V ABI, chapters 4 and 5.
    const SECTION_HEADER: usize = 64;
    const SYMBOL: usize = 24;
    const SYMBOL_TABLE: u64 = 2;
    const FUNCTION: u64 = 2;
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let headers = number(elf, 0x28, 8)?;
    let header = |index: u64| part(elf, headers.checked_add(index * SECTION_HEADER as u64)?, SECTION_HEADER as u64);
    let contents = |header: &[u8]| part(elf, number(header, 0x18, 8)?, number(header, 0x20, 8)?);
    let mut size = CodeSize { driver: 0, image: 0 };
    for index in 0..number(elf, 0x3c, 2)? {
        let table = header(index)?;
        if number(table, 4, 4)? != SYMBOL_TABLE {
            continue;
        }
        let names = contents(header(number(table, 0x28, 4)?)?)?;
        for symbol in contents(table)?.chunks_exact(SYMBOL) {
            if number(symbol, 4, 1)? & 0xf != FUNCTION {
                continue;
            }
            let name = names.get(number(symbol, 0, 4)? as usize..)?.split(|&byte| byte == 0).next()?;
            let bytes = number(symbol, 16, 8)?;
            size.image += bytes;
            if is_of_driver(name) {
                size.driver += bytes;
            }
        }
    }
    Some(size)
}

/// Whether the crate's name is part of a mangled name: after its length, which is not the end of a longer length.
fn is_of_driver(name: &[u8]) -> bool {
    const CRATE: &[u8] = b"6smmuv3";
    name.windows(CRATE.len()).enumerate().any(|(at, part)| part == CRATE && !name[..at].ends_with(b"1"))
}

fn part(bytes: &[u8], at: u64, count: u64) -> Option<&[u8]> {
    bytes.get(at.try_into().ok()?..)?.get(..count.try_into().ok()?)
}

fn number(bytes: &[u8], at: u64, count: u64) -> Option<u64> {
    Some(part(bytes, at, count)?.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_of_the_driver_are_told_from_those_of_its_neighbours() {
        for (name, expected) in [
            ("_RNvMs_NtCsfWBqyp1kYyL_6smmuv35queueNtB4_5Queue4send", true),
            ("_RINvNtCs1_4core3ptr13drop_in_placeNtCsfWBqyp1kYyL_6smmuv35EventEB5_", true),
            ("_RNvCsfWBqyp1kYyL_16smmuv3_discovery5parse", false),
            ("_RNvCsfWBqyp1kYyL_16smmuv3_qemu_virt4main", false),
            ("memcpy", false),
        ] {
            assert_eq!(is_of_driver(name.as_bytes()), expected, "{name}");
        }
    }

    /// An ELF file with three sections: the symbols, their names, and the same symbols as those for dynamic linking.
    fn elf(symbols: &[(&str, u8, u64)]) -> Vec<u8> {
        let mut names = vec![0];
        let mut table = Vec::new();
        for &(name, kind, size) in symbols {
            table.extend((names.len() as u32).to_le_bytes());
            table.extend([kind, 0, 1, 0]);
            table.extend([0, size].map(u64::to_le_bytes).as_flattened());
            names.extend(name.bytes().chain([0]));
        }
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.resize(64, 0);
        elf[0x28] = 64;
        elf[0x3c] = 3;
        let start = 4 * 64;
        let strings = start + table.len();
        for (kind, offset, size, link) in
            [(2u32, start, table.len(), 1u32), (3, strings, names.len(), 0), (11, start, table.len(), 1)]
        {
            let mut header = [0; 64];
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(offset as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
            header[0x28..0x2c].copy_from_slice(&link.to_le_bytes());
            elf.extend(header);
        }
        [elf, table, names].concat()
    }

    #[test]
    fn functions_are_summed_up_and_nothing_else() {
        let elf = elf(&[("x6smmuv3", 2, 100), ("x6smmuv3", 0x12, 20), ("other", 2, 3), ("x6smmuv3", 1, 1000)]);
        assert_eq!(code(&elf), Some(CodeSize { driver: 120, image: 123 }));
        assert_eq!(code(&elf[..elf.len() - 1]), None);
        assert_eq!(code(b"MZ"), None);
    }
}
