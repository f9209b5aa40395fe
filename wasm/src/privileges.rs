// SPDX-License-Identifier: Apache-2.0
//! The capabilities of a module's process: those that a native program would have.
//!
//! What makes a container has all that it needs for it, and leaves it to `execve` to take away what the container's user is not
//! to have. A module is run without one, so the same is done here. Rules of AppArmor and SELinux, which begin with it too, are
//! not taken on.

use magnetar_core::error::{Context, Result};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Gives up what `execve` would take away (capabilities(7), "Transformation of capabilities during execve", for a file without
/// capabilities of its own): root keeps what the bounding and the inheritable set allow, other users what is ambient. For a
/// process with one thread, whose user is the container's already.
///
/// # Errors
/// What the kernel says.
pub fn of_program() -> Result<()> {
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
    // Nothing is gained: what the specification left out of the permitted set stays out.
    let after = before.permitted.intersection(allowed);
    rustix::thread::set_capabilities(None, CapabilitySets { effective: after, permitted: after, inheritable: before.inheritable })
        .context(what)
}
