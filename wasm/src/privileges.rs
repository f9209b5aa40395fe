// SPDX-License-Identifier: Apache-2.0
//! Reduces the capabilities of a module's process to those that a native program would have.
//!
//! The maker of a container has capabilities that the container's user must not have, and relies on
//! `execve` to drop them. A module runs without an `execve`, so this does the same. AppArmor
//! profiles and SELinux labels, which also take effect at `execve`, do not apply.

use magnetar_core::error::{Context, Result};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Drops the capabilities that `execve` would drop (capabilities(7), "Transformation of
/// capabilities during execve", for a file without capabilities of its own). Root keeps those in
/// the bounding or the inheritable set; other users keep the ambient ones. The process must have
/// one thread, and have the container's user already.
///
/// # Errors
/// The kernel's error.
pub fn drop_as_execve_would() -> Result<()> {
    let what = || "cannot give up capabilities".to_string();
    let before = rustix::thread::capabilities(None).context(what)?;
    let root = rustix::process::geteuid().is_root() || rustix::process::getuid().is_root();
    let mut allowed = CapabilitySet::empty();
    for capability in CapabilitySet::all().iter() {
        let kept = if root {
            before.inheritable.contains(capability) || rustix::thread::capability_is_in_bounding_set(capability).unwrap_or(false)
        } else {
            rustix::thread::capability_is_in_ambient_set(capability).unwrap_or(false)
        };
        allowed.set(capability, kept);
    }
    // The process gains none: capabilities that the specification left out of the permitted set
    // stay out.
    let after = before.permitted.intersection(allowed);
    rustix::thread::set_capabilities(None, CapabilitySets { effective: after, permitted: after, inheritable: before.inheritable })
        .context(what)
}
