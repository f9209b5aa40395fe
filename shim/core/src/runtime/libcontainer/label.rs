// SPDX-License-Identifier: Apache-2.0
//! The SELinux label of a program, which libcontainer does not know.

use crate::error::{Context, Result};
use std::path::Path;
use std::sync::OnceLock;

static ENABLED: OnceLock<bool> = OnceLock::new();

/// Looks whether this host has SELinux. To be called where the host's files are still in sight.
pub fn look() {
    let _the_first_counts = ENABLED.set(Path::new("/sys/fs/selinux/enforce").exists());
}

/// Whether this host has SELinux.
pub fn is_enabled() -> bool {
    ENABLED.get().copied().unwrap_or_default()
}

/// Has the kernel give `label` to the next program that this process runs.
///
/// # Errors
/// Where the policy does not know or allow it: a container must not run with less than it was given.
pub fn for_next_program(label: Option<&str>) -> Result<()> {
    match label {
        Some(label) if !label.is_empty() && is_enabled() => {
            std::fs::write("/proc/thread-self/attr/exec", label).context(|| format!("cannot set the SELinux label {label:?}"))
        }
        Some(_) | None => Ok(()),
    }
}
