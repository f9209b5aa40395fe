// SPDX-License-Identifier: Apache-2.0
//! Makes the stand-in for LLVM: a shared library that has the symbols which libwasmedge takes from
//! LLVM, and nothing behind them.
//!
//! Functions trap when they are called, data is zero. That does for a process that never compiles:
//! none of libwasmedge's initialisers calls LLVM.
//!
//! ```text
//!   read only   ELF header, program headers, symbols, strings, hash table, versions
//!   code        one instruction that traps
//!   data        the dynamic section; zeros for all data; zeros for each thread's data
//! ```
//!
//! The format is that of the System V ABI (chapters 4 and 5), with the GNU versions of symbols (the
//! Linux Standard Base, "Symbol Versioning").

use magnetar_core::error::{Context, Error, Result};
use object::Endianness;
use object::elf::{self, FileHeader64};
use object::read::ReadCache;
use object::read::elf::{FileHeader as _, SectionTable, Sym as _};
use object::write::elf::{FileHeader, ProgramHeader, Sym, Verdef, Writer};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

/// The start of the name of the library to stand in for.
const LLVM: &[u8] = b"libLLVM";

/// Segments begin at multiples of this, the largest page of the processor.
const PAGE: usize = if cfg!(target_arch = "x86_64") { 4 << 10 } else { 64 << 10 };

/// The alignment of each piece of data.
const ALIGNMENT: u64 = 64;

/// An instruction that traps.
#[cfg(target_arch = "x86_64")]
const TRAP: &[u8] = &[0x0f, 0x0b];
#[cfg(not(target_arch = "x86_64"))]
const TRAP: &[u8] = &[0; 4];

type Bytes = Vec<u8>;

/// A symbol that one library takes from another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Symbol {
    name: Bytes,
    version: Bytes,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Function,
    /// Data of this size in bytes.
    Data(u64),
    /// Data of this size in bytes that each thread has of its own.
    ThreadData(u64),
}

/// The stand-in for `llvm`, with which `library` is linked.
///
/// # Errors
/// When a library cannot be read, or they do not fit together.
pub fn make(library: &Path, llvm: &Path) -> Result<Bytes> {
    let (name, mut symbols) = read(library, taken)?;
    let kinds = read(llvm, kinds)?;
    for symbol in &mut symbols {
        symbol.kind = *kinds
            .get(&symbol.name)
            .ok_or_else(|| Error::precondition(format!("{} has no symbol {}", llvm.display(), String::from_utf8_lossy(&symbol.name))))?;
    }
    image(&name, &symbols).map_err(|error| Error::internal(format!("cannot make a stand-in for {}: {error}", llvm.display())))
}

type Sections<'data> = SectionTable<'data, FileHeader64<Endianness>, &'data ReadCache<File>>;

/// Reads the tables of a library.
fn read<T>(
    path: &Path,
    look: impl for<'data> FnOnce(&'data ReadCache<File>, Endianness, &Sections<'data>) -> object::read::Result<T>,
) -> Result<T> {
    let what = || format!("cannot read {}", path.display());
    let data = ReadCache::new(File::open(path).context(what)?);
    let looked = FileHeader64::<Endianness>::parse(&data).and_then(|header| {
        let endian = header.endian()?;
        look(&data, endian, &header.sections(endian, &data)?)
    });
    looked.map_err(|error| Error::precondition(format!("{}: {error}", what())))
}

/// The name of the LLVM that a library needs, and what it takes from there.
fn taken<'data>(
    data: &'data ReadCache<File>,
    endian: Endianness,
    sections: &Sections<'data>,
) -> object::read::Result<(Bytes, Vec<Symbol>)> {
    let symbols = sections.symbols(endian, data, elf::SHT_DYNSYM)?;
    let (mut library, mut taken) = (Bytes::new(), Vec::new());
    let Some(versions) = sections.versions(endian, data)? else { return Ok((library, taken)) };
    for (index, symbol) in symbols.enumerate().filter(|(_, symbol)| symbol.is_undefined(endian)) {
        let Some(version) = versions.version(versions.version_index(endian, index))? else { continue };
        let Some(file) = version.file().filter(|file| file.starts_with(LLVM)) else { continue };
        library = file.to_vec();
        let name = symbol.name(endian, symbols.strings())?.to_vec();
        taken.push(Symbol { name, version: version.name().to_vec(), kind: Kind::Function });
    }
    Ok((library, taken))
}

/// What each symbol of a library is.
fn kinds<'data>(
    data: &'data ReadCache<File>,
    endian: Endianness,
    sections: &Sections<'data>,
) -> object::read::Result<BTreeMap<Bytes, Kind>> {
    let symbols = sections.symbols(endian, data, elf::SHT_DYNSYM)?;
    let defined = symbols.iter().filter(|symbol| !symbol.is_undefined(endian));
    defined
        .map(|symbol| {
            let kind = match symbol.st_type() {
                elf::STT_TLS => Kind::ThreadData(symbol.st_size(endian)),
                elf::STT_OBJECT => Kind::Data(symbol.st_size(endian)),
                _ => Kind::Function,
            };
            Ok((symbol.name(endian, symbols.strings())?.to_vec(), kind))
        })
        .collect()
}

/// Where each thing is in the file, which is also where it is in memory.
struct Places {
    symbols: usize,
    strings: usize,
    hash: usize,
    versions_of_symbols: usize,
    versions: usize,
    read_only: usize,
    code: usize,
    dynamic: usize,
    end: usize,
}

/// A library of this name that has these symbols.
fn image(name: &[u8], symbols: &[Symbol]) -> object::write::Result<Bytes> {
    let mut versions: Vec<&Bytes> = symbols.iter().map(|symbol| &symbol.version).collect();
    versions.sort();
    versions.dedup();
    let count = symbols.len() as u32 + 1;

    let mut image = Bytes::new();
    let mut writer = Writer::new(Endianness::Little, true, &mut image);
    let soname = writer.add_dynamic_string(name);
    let names: Vec<_> = symbols.iter().map(|symbol| writer.add_dynamic_string(&symbol.name)).collect();
    let version_names: Vec<_> = versions.iter().map(|version| writer.add_dynamic_string(version)).collect();
    writer.reserve_file_header();
    writer.reserve_program_headers(SEGMENTS);
    writer.reserve_null_dynamic_symbol_index();
    for _ in symbols {
        writer.reserve_dynamic_symbol_index();
    }
    let mut places = Places {
        symbols: writer.reserve_dynsym(),
        strings: writer.reserve_dynstr(),
        hash: writer.reserve_hash(count, count),
        versions_of_symbols: writer.reserve_gnu_versym(),
        versions: writer.reserve_gnu_verdef(versions.len() + 1, versions.len() + 1),
        read_only: writer.reserved_len(),
        code: writer.reserve(TRAP.len(), PAGE),
        dynamic: 0,
        end: 0,
    };
    writer.reserve_until(writer.reserved_len().next_multiple_of(PAGE));
    places.dynamic = writer.reserve_dynamic(DYNAMIC);
    places.end = writer.reserved_len();

    // Data has no place in the file: it follows in memory.
    let mut data = (places.end as u64).next_multiple_of(ALIGNMENT);
    let mut thread_data = 0;
    let entries: Vec<_> = symbols
        .iter()
        .zip(&names)
        .map(|(symbol, name)| {
            let (kind, value, size) = match symbol.kind {
                Kind::Function => (elf::STT_FUNC, places.code as u64, TRAP.len() as u64),
                Kind::Data(size) => (elf::STT_OBJECT, take(&mut data, size), size),
                Kind::ThreadData(size) => (elf::STT_TLS, take(&mut thread_data, size), size),
            };
            let info = elf::STB_GLOBAL << 4 | kind;
            // Any section: the file describes none.
            Sym { name: Some(*name), section: None, st_info: info, st_other: elf::STV_DEFAULT, st_shndx: 1, st_value: value, st_size: size }
        })
        .collect();

    let machine = if cfg!(target_arch = "aarch64") { elf::EM_AARCH64 } else { elf::EM_X86_64 };
    writer.write_file_header(&FileHeader { os_abi: 0, abi_version: 0, e_type: elf::ET_DYN, e_machine: machine, e_entry: 0, e_flags: 0 })?;
    writer.write_align_program_headers();
    for header in segments(&places, data, thread_data) {
        writer.write_program_header(&header);
    }
    writer.write_null_dynamic_symbol();
    entries.iter().for_each(|entry| writer.write_dynamic_symbol(entry));
    writer.write_dynstr();
    let hash = |index: u32| symbols.get((index as usize).checked_sub(1)?).map(|symbol| elf::hash(&symbol.name));
    writer.write_hash(count, count, hash);
    writer.write_null_gnu_versym();
    for symbol in symbols {
        let version = versions.iter().position(|version| **version == symbol.version).unwrap_or_default();
        writer.write_gnu_versym(version as u16 + FIRST_VERSION);
    }
    writer.write_align_gnu_verdef();
    writer.write_gnu_verdef(&Verdef { version: elf::VER_DEF_CURRENT, flags: elf::VER_FLG_BASE, index: 1, aux_count: 1, name: soname });
    for (index, name) in version_names.into_iter().enumerate() {
        writer.write_gnu_verdef(&Verdef {
            version: elf::VER_DEF_CURRENT,
            flags: 0,
            index: index as u16 + FIRST_VERSION,
            aux_count: 1,
            name,
        });
    }
    writer.pad_until(places.code);
    writer.write(TRAP);
    writer.pad_until(places.dynamic);
    writer.write_dynamic_string(elf::DT_SONAME, soname)?;
    let strings = writer.dynstr_len();
    let dynamic: [(i64, usize); DYNAMIC - 1] = [
        (elf::DT_HASH, places.hash),
        (elf::DT_STRTAB, places.strings),
        (elf::DT_SYMTAB, places.symbols),
        (elf::DT_STRSZ, strings),
        (elf::DT_SYMENT, size_of::<elf::Sym64<Endianness>>()),
        (elf::DT_VERSYM, places.versions_of_symbols),
        (elf::DT_VERDEF, places.versions),
        (elf::DT_VERDEFNUM, versions.len() + 1),
        (elf::DT_NULL, 0),
    ];
    for (tag, value) in dynamic {
        writer.write_dynamic(tag, value as u64)?;
    }
    Ok(image)
}

/// How many entries the dynamic section has.
const DYNAMIC: usize = 10;

/// How many segments there are.
const SEGMENTS: u32 = 6;

/// The number of the first version of symbols. The two before it are for local symbols and for the
/// library itself.
const FIRST_VERSION: u16 = 2;

fn segments(places: &Places, data_end: u64, thread_data: u64) -> [ProgramHeader; SEGMENTS as usize] {
    let segment = |kind, flags, at: usize, in_file: usize, in_memory: u64, align| ProgramHeader {
        p_type: kind,
        p_flags: flags,
        p_offset: at as u64,
        p_vaddr: at as u64,
        p_paddr: at as u64,
        p_filesz: in_file as u64,
        p_memsz: in_memory,
        p_align: align,
    };
    let (page, writable) = (PAGE as u64, elf::PF_R | elf::PF_W);
    let dynamic = places.end - places.dynamic;
    [
        segment(elf::PT_LOAD, elf::PF_R, 0, places.read_only, places.read_only as u64, page),
        segment(elf::PT_LOAD, elf::PF_R | elf::PF_X, places.code, TRAP.len(), TRAP.len() as u64, page),
        segment(elf::PT_LOAD, writable, places.dynamic, dynamic, data_end - places.dynamic as u64, page),
        segment(elf::PT_DYNAMIC, writable, places.dynamic, dynamic, dynamic as u64, 8),
        // Its address has to be aligned, although it begins with nothing.
        segment(elf::PT_TLS, elf::PF_R, places.dynamic, 0, thread_data, ALIGNMENT),
        // No code in stacks.
        segment(elf::PT_GNU_STACK, writable, 0, 0, 0, 16),
    ]
}

/// Takes a place of this size, and returns where it begins.
fn take(next: &mut u64, size: u64) -> u64 {
    let place = *next;
    *next = (place + size).next_multiple_of(ALIGNMENT);
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stand_in_has_the_name_the_symbols_and_their_versions() {
        let symbol = |name: &str, version: &str, kind| Symbol { name: name.into(), version: version.into(), kind };
        let symbols = [
            symbol("function", "LLVM_2", Kind::Function),
            symbol("data", "LLVM_1", Kind::Data(100)),
            symbol("each", "LLVM_2", Kind::ThreadData(4)),
        ];
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), image(b"libLLVM.so.9", &symbols).unwrap()).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let file = std::fs::read(file.path()).unwrap();
        let file = file.as_slice();
        let header = FileHeader64::<Endianness>::parse(file).unwrap();
        let endian = header.endian().unwrap();
        // There are no sections, so this goes by what the loader goes by.
        let segments = object::read::elf::ProgramHeader::dynamic;
        let programs = header.program_headers(endian, file).unwrap();
        let dynamic = programs.iter().find_map(|one| segments(one, endian, file).unwrap()).unwrap();
        let value = |tag: i64| dynamic.iter().find(|entry| entry.d_tag.get(endian) == tag).unwrap().d_val.get(endian) as usize;
        let string = |offset: usize| {
            let rest = &file[value(elf::DT_STRTAB) + offset..];
            text(&rest[..rest.iter().position(|byte| *byte == 0).unwrap()])
        };
        assert_eq!(string(value(elf::DT_SONAME)), "libLLVM.so.9");
        let number = |at: usize, length: usize| file[at..at + length].iter().rev().fold(0, |all, byte| all << 8 | usize::from(*byte));
        let versions: Vec<_> = (1..=3).map(|index| number(value(elf::DT_VERSYM) + 2 * index, 2)).collect();
        assert_eq!(versions, [3, 2, 3]);
        let names: Vec<_> = (1..=3).map(|index| string(number(value(elf::DT_SYMTAB) + 24 * index, 4))).collect();
        assert_eq!(names, ["function", "data", "each"]);
    }
}
