// SPDX-License-Identifier: Apache-2.0
//! Makes the files that a microVM boots, from what Debian packages. `images/guest/build` calls it;
//! people do not.
//!
//! ```text
//! guest-image kernel BZIMAGE VMLINUX         the ELF kernel that a bzImage holds          bzimage.rs
//! guest-image enterable VMLINUX              fails if no hypervisor can enter it directly elf.rs
//! guest-image modules DIR FILE.ko.xz…        modules, unpacked, named in loading order    modules.rs
//! guest-image initramfs INIT MODULES OUT     the archive of the first program and modules initramfs.rs, cpio.rs
//! ```
//!
//! The same input gives the same bytes. Deliberately absent: fetching packages (apt does it) and
//! which module needs which others (kmod knows it).

mod bzimage;
mod cpio;
mod elf;
mod initramfs;
mod modules;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "Makes the files that a microVM boots")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Writes the ELF kernel that a bzImage holds.
    Kernel {
        /// The kernel as Debian packages it.
        bzimage: PathBuf,
        /// The file to write.
        vmlinux: PathBuf,
    },
    /// Fails if a hypervisor cannot enter an ELF kernel directly.
    Enterable {
        /// The kernel.
        vmlinux: PathBuf,
    },
    /// Unpacks kernel modules, and numbers them in the order in which they are given.
    Modules {
        /// The directory to write to.
        out: PathBuf,
        /// Modules packed by xz.
        files: Vec<PathBuf>,
    },
    /// Writes an initramfs.
    Initramfs {
        /// The guest's first program, linked statically.
        init: PathBuf,
        /// The directory with modules, and with those for later in its directory `later`.
        modules: PathBuf,
        /// The file to write.
        out: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Kernel { bzimage, vmlinux } => {
            let kernel = bzimage::unpack(&read(&bzimage)?).with_context(|| format!("cannot unpack the kernel {}", bzimage.display()))?;
            elf::check_pvh_entry(&kernel).with_context(|| format!("cannot use the kernel {}", bzimage.display()))?;
            write(&vmlinux, |file| Ok(file.write_all(&kernel)?))
        }
        Verb::Enterable { vmlinux } => {
            elf::check_pvh_entry(&read(&vmlinux)?).with_context(|| format!("cannot use the kernel {}", vmlinux.display()))
        }
        Verb::Modules { out, files } => modules::unpack(&out, &files),
        Verb::Initramfs { init, modules, out } => {
            elf::check_static(&read(&init)?).with_context(|| format!("{} cannot be a guest's first program", init.display()))?;
            write(&out, |file| initramfs::write(&init, &modules, file))
        }
    }
}

/// The content of a file.
fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a file, with all of its content or an error.
fn write(path: &Path, content: impl FnOnce(&mut BufWriter<fs::File>) -> Result<()>) -> Result<()> {
    let what = || format!("cannot write {}", path.display());
    let mut file = BufWriter::new(fs::File::create(path).with_context(what)?);
    content(&mut file).with_context(what)?;
    file.flush().with_context(what)
}
