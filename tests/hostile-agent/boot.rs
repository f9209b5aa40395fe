// SPDX-License-Identifier: Apache-2.0
//! As much of a boot as the agent needs: modules, for the vsock, and a console.

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount};
use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;

/// Whatever goes wrong: somebody reads it on the console.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Boots, and returns the kernel's command line.
pub fn boot() -> Result<String> {
    mount("proc", "/proc", "proc", MountFlags::empty(), None)?;
    let mut modules = fs::read_dir("/modules")?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    modules.retain(|module| module.extension() == Some(OsStr::new("ko")));
    modules.sort();
    for module in modules {
        rustix::system::finit_module(fs::File::open(module)?, c"", 0)?;
    }
    // It is there, but the kernel may have opened it before it could be written to.
    let console = rustix::fs::open("/dev/console", OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
    rustix::stdio::dup2_stdout(&console)?;
    rustix::stdio::dup2_stderr(&console)?;
    Ok(fs::read_to_string("/proc/cmdline")?)
}
