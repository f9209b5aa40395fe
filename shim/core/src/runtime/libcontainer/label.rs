// SPDX-License-Identifier: Apache-2.0
//! Sets the SELinux label of a program, which libcontainer does not support.

use crate::error::{Context, Result};
use std::path::Path;
use std::sync::OnceLock;

static ENABLED: OnceLock<bool> = OnceLock::new();

/// Checks whether this host has SELinux. Call it while the host's files are still visible.
pub fn look() {
    let _the_first_counts = ENABLED.set(Path::new("/sys/fs/selinux/enforce").exists());
}

/// Whether this host has SELinux.
pub fn is_enabled() -> bool {
    ENABLED.get().copied().unwrap_or_default()
}

/// Makes the kernel give `label` to the next program that this process executes.
///
/// # Errors
/// When the policy does not know the label or does not allow it: a container must not run with less
/// confinement than it was given.
pub fn for_next_program(label: Option<&str>) -> Result<()> {
    match label {
        Some(label) if !label.is_empty() && is_enabled() => {
            std::fs::write("/proc/thread-self/attr/exec", label).context(|| format!("cannot set the SELinux label {label:?}"))
        }
        Some(_) | None => Ok(()),
    }
}
