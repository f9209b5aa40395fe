// SPDX-License-Identifier: Apache-2.0
//! Copies a guest's memory between a file on disk and a memory file.
//!
//! A process of its own does it: memory belongs to the cgroup of whoever touches it first, and this
//! program is not in its pod's. Holes stay holes in both directions, so a guest's untouched memory
//! costs nothing.

use magnetar_core::confined::confinement::{Calls, Confinement, Pids};
use magnetar_core::confined::process::{Common, Process};
use magnetar_core::confined::program::Invocation;
use magnetar_core::error::{Context, Error, Result};
use magnetar_sys::bound::CapabilitySet;
use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, seek, sendfile};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

/// A page of the guest's memory, in bytes.
const PAGE: usize = 4096;

/// How much is read at once, in bytes.
const CHUNK: usize = 1 << 20;

/// What to do with the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Copies all that a template's file has.
    Unpack,
    /// Copies all pages that are not zero.
    Pack,
}

impl Task {
    fn word(self) -> &'static str {
        match self {
            Self::Unpack => "--unpack-memory",
            Self::Pack => "--pack-memory",
        }
    }
}

/// The descriptors of the process.
const FROM: &str = "/proc/self/fd/3";
const TO: &str = "/proc/self/fd/4";

/// A guest's memory: a file in memory, of a fixed size, that the hypervisor and its helpers map.
///
/// # Errors
/// Errors of the kernel.
pub fn memory_file(mib: u32) -> Result<OwnedFd> {
    let what = || format!("cannot make a memory file of {mib} MiB for a guest");
    let file = rustix::fs::memfd_create("ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).context(what)?;
    rustix::fs::ftruncate(&file, u64::from(mib) << 20).context(what)?;
    // Whoever has it could otherwise cut it, and the others would end by SIGBUS.
    rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL).context(what)?;
    Ok(file)
}

/// Begins to copy, in a process of its own.
///
/// # Errors
/// If the process cannot be run.
pub fn begin(task: Task, from: BorrowedFd<'_>, to: BorrowedFd<'_>, common: Common<'_>) -> Result<Process> {
    let program = std::env::current_exe().context(|| "cannot find the path of this program".into())?;
    let mut invocation = Invocation::new(&program);
    // It opens its descriptors once more, by their paths, which Landlock would not allow.
    invocation.confinement =
        Confinement { user: None, capabilities: CapabilitySet::NONE, pids: Pids::All, files: None, calls: Calls::DenyList };
    invocation.arguments([task.word()]);
    invocation.open(from);
    invocation.open(to);
    Process::run("the copy of a guest's memory", &invocation, None, common)
}

/// Waits until all is copied. Cancel-safe.
///
/// # Errors
/// `Internal` with the process's own message.
pub async fn end(mut process: Process) -> Result<()> {
    let exit = process.ended().await;
    if exit.code == 0 { Ok(()) } else { Err(Error::internal(process.describe(exit))) }
}

/// Acts as that process, if this program was run as such.
pub fn run_if_asked() -> Option<ExitCode> {
    let word = std::env::args_os().nth(1)?;
    let task = [Task::Unpack, Task::Pack].into_iter().find(|task| word == task.word())?;
    Some(match run(task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot copy a guest's memory: {error}");
            ExitCode::FAILURE
        }
    })
}

fn run(task: Task) -> io::Result<()> {
    let (from, to) = (File::open(FROM)?, File::options().write(true).open(TO)?);
    match task {
        Task::Unpack => unpack(&from, &to),
        Task::Pack => pack(&from, &to),
    }
}

/// Calls `on_range` for each range that is not a hole.
fn ranges(from: &File, mut on_range: impl FnMut(u64, u64) -> io::Result<()>) -> io::Result<()> {
    let mut at = 0;
    loop {
        let start = match seek(from, SeekFrom::Data(at)) {
            // There is nothing but a hole up to the end.
            Err(Errno::NXIO) => return Ok(()),
            start => start?,
        };
        at = seek(from, SeekFrom::Hole(start))?;
        on_range(start, at)?;
    }
}

fn unpack(from: &File, to: &File) -> io::Result<()> {
    ranges(from, |start, end| {
        seek(to, SeekFrom::Start(start))?;
        let mut at = start;
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            if sendfile(to, from, Some(&mut at), left)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    })
}

fn pack(from: &File, to: &File) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    ranges(from, |start, end| {
        let mut at = start;
        while at < end {
            let length = CHUNK.min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let chunk = &mut chunk[..length];
            from.read_exact_at(chunk, at)?;
            write_pages(chunk, at, to)?;
            at += length as u64;
        }
        Ok(())
    })
}

/// Writes the pages that are not zero, neighbours at once.
fn write_pages(chunk: &[u8], at: u64, to: &File) -> io::Result<()> {
    let mut begun = None;
    for (number, page) in chunk.chunks(PAGE).enumerate() {
        let offset = number * PAGE;
        if page.iter().any(|byte| *byte != 0) {
            begun.get_or_insert(offset);
        } else if let Some(begin) = begun.take() {
            to.write_all_at(&chunk[begin..offset], at + begin as u64)?;
        }
    }
    match begun {
        Some(begin) => to.write_all_at(&chunk[begin..], at + begin as u64),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    /// 8 MiB with some pages, one of them zero but touched.
    fn touched() -> File {
        let memory = File::from(memory_file(8).unwrap());
        for (page, byte) in [(0, 1), (1, 2), (2, 0), (3, 3), (256, 4), (2047, 5)] {
            memory.write_all_at(&[byte; PAGE], page * PAGE as u64).unwrap();
        }
        memory
    }

    fn all(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; 8 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn memory_is_the_same_after_both_copies_and_zero_pages_are_left_out() {
        let (memory, packed, copy) = (touched(), tempfile::tempfile().unwrap(), File::from(memory_file(8).unwrap()));
        packed.set_len(8 << 20).unwrap();
        pack(&memory, &packed).unwrap();
        unpack(&packed, &copy).unwrap();
        assert!(all(&memory) == all(&copy));
        assert!(copy.metadata().unwrap().blocks() < memory.metadata().unwrap().blocks());
    }

    #[test]
    fn a_file_that_was_cut_leaves_the_rest_empty() {
        let (memory, packed, copy) = (touched(), tempfile::tempfile().unwrap(), File::from(memory_file(8).unwrap()));
        pack(&memory, &packed).unwrap();
        packed.set_len(PAGE as u64).unwrap();
        unpack(&packed, &copy).unwrap();
        assert_eq!(all(&copy).iter().filter(|byte| **byte != 0).count(), PAGE);
    }

    #[test]
    fn nobody_can_cut_a_guests_memory() {
        let memory = memory_file(8).unwrap();
        assert_eq!(rustix::fs::ftruncate(memory.as_fd(), 0).unwrap_err(), Errno::PERM);
    }
}
