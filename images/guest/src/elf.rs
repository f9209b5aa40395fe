// SPDX-License-Identifier: Apache-2.0
//! What must be true of ELF files so that a microVM can boot them.

use anyhow::{Context, Result, ensure};
use object::Endianness;
use object::elf::{FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader as _, ProgramHeader as _};

/// The note that has the address at which a hypervisor enters Linux (PVH), by its owner and its
/// type. XEN_ELFNOTE_PHYS32_ENTRY in include/xen/interface/elfnote.h in the kernel.
const ENTRY: (&[u8], u32) = (b"Xen", 18);

type Header = FileHeader64<Endianness>;

/// Fails for a kernel that a hypervisor cannot enter directly.
///
/// # Errors
/// Where it is none, or has no entry for PVH.
pub fn check_pvh_entry(kernel: &[u8]) -> Result<()> {
    let (header, endian) = header(kernel)?;
    for segment in header.program_headers(endian, kernel).context("its program headers cannot be read")? {
        let Some(mut notes) = segment.notes(endian, kernel).context("its notes cannot be read")? else { continue };
        while let Some(note) = notes.next().context("its notes cannot be read")? {
            if (note.name(), note.n_type(endian)) == ENTRY {
                return Ok(());
            }
        }
    }
    anyhow::bail!("it has no entry for PVH: it must be built with CONFIG_PVH")
}

/// Fails for a program that needs an interpreter: there is none in an initramfs, and the kernel
/// says of it only "error -2".
///
/// # Errors
/// Where it is no program, or not linked statically.
pub fn check_static(program: &[u8]) -> Result<()> {
    let (header, endian) = header(program)?;
    let segments = header.program_headers(endian, program).context("its program headers cannot be read")?;
    ensure!(segments.iter().all(|segment| segment.p_type(endian) != PT_INTERP), "it is not linked statically");
    Ok(())
}

fn header(file: &[u8]) -> Result<(&Header, Endianness)> {
    let header = Header::parse(file).context("it is no ELF file of 64 bits")?;
    let endian = header.endian().context("its byte order is unknown")?;
    Ok((header, endian))
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::elf::{PT_LOAD, PT_NOTE};

    /// An ELF file with one segment of this type, which is these bytes.
    fn file(kind: u32, segment: &[u8]) -> Vec<u8> {
        let (header, entry) = (64_u64, 56_u64);
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend([2, 0, 62, 0]);
        file.extend(1_u32.to_le_bytes());
        file.extend(0_u64.to_le_bytes());
        file.extend(header.to_le_bytes());
        file.extend(0_u64.to_le_bytes());
        file.extend(0_u32.to_le_bytes());
        for number in [header as u16, entry as u16, 1, 64, 0, 0] {
            file.extend(number.to_le_bytes());
        }
        file.extend(kind.to_le_bytes());
        file.extend(4_u32.to_le_bytes());
        for number in [header + entry, 0, 0, segment.len() as u64, segment.len() as u64, 4] {
            file.extend(number.to_le_bytes());
        }
        file.extend(segment);
        file
    }

    fn note(name: &[u8; 4], kind: u32) -> Vec<u8> {
        let mut note = Vec::new();
        for number in [4, 8, kind] {
            note.extend(number.to_le_bytes());
        }
        note.extend(name);
        note.extend(0x0100_0000_u64.to_le_bytes());
        note
    }

    #[test]
    fn the_note_with_the_entry_is_found_behind_others() {
        let notes = [note(b"GNU\0", 18), note(b"Xen\0", 6), note(b"Xen\0", 18)].concat();
        check_pvh_entry(&file(PT_NOTE, &notes)).unwrap();
        let others = [note(b"GNU\0", 18), note(b"Xen\0", 6)].concat();
        let error = check_pvh_entry(&file(PT_NOTE, &others)).unwrap_err().to_string();
        assert!(error.contains("no entry for PVH"), "{error}");
        check_pvh_entry(&file(PT_LOAD, &notes)).unwrap_err();
    }

    #[test]
    fn a_program_with_an_interpreter_is_refused() {
        check_static(&file(PT_LOAD, b"code")).unwrap();
        let error = check_static(&file(PT_INTERP, b"/lib64/ld-linux-x86-64.so.2\0")).unwrap_err().to_string();
        assert_eq!(error, "it is not linked statically");
    }

    #[test]
    fn a_script_is_no_elf_file() {
        for check in [check_static, check_pvh_entry] {
            assert!(format!("{:#}", check(b"#!/bin/sh\n").unwrap_err()).contains("no ELF file"));
        }
    }
}
