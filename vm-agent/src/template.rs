// SPDX-License-Identifier: Apache-2.0
//! A guest that becomes a template: it is saved while it waits here, and each machine of a pod that
//! begins as its copy goes on from here.
//!
//! ```text
//! boot ──> says on the console that it waits ──> [saved] ──> [restored] ──> a vsock appears ──> new random numbers ──> serve
//! ```
//!
//! This program waits before it reads a secret or a random number, and before it has a second
//! thread: whatever is in its memory by then is the same in all pods that begin so. The places of
//! code and stack in its memory are.

use crate::{boot, uevents};
use magnetar_core::error::{Context, Error, Result};
use magnetar_sys::{random, vsock};
use magnetar_vm_agent_api::secret::SEED;
use magnetar_vm_agent_api::{SHARE, TEMPLATE, TEMPLATE_READY};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, recv};
use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;

/// The device that knows this guest's address on the vsock.
const VSOCK: &str = "/dev/vsock";

/// In a template: waits until this machine is a pod's, and makes its random numbers differ from
/// those of all others. In any other guest it does nothing.
///
/// # Errors
/// The kernel's error, or if the host has left no seed.
pub fn wait_if_template() -> Result<()> {
    if !boot::has_word(TEMPLATE)? {
        return Ok(());
    }
    // Listen first, so that the vsock cannot appear unnoticed.
    let events = uevents::open(SocketFlags::empty()).context(|| "cannot listen for the kernel's device events".into())?;
    let ready = format!("{TEMPLATE_READY}\n");
    std::io::stdout().write_all(ready.as_bytes()).context(|| "cannot write to the console".into())?;
    let mut message = [0; 64];
    while !has_vsock()? {
        match recv(&events, &mut message, RecvFlags::empty()) {
            // NOBUFS: some messages were lost because there were too many.
            Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
            Err(error) => return Err(error).context(|| "cannot receive the kernel's device events".into()),
        }
    }
    reseed()
}

/// Whether the kernel's driver can use a vsock. The kernel's last event for a device comes after
/// that.
fn has_vsock() -> Result<bool> {
    let device = fs::File::open(VSOCK).context(|| format!("cannot open {VSOCK}"))?;
    let address = vsock::guest_cid(device.as_fd()).context(|| "cannot ask for this guest's address on the vsock".into())?;
    Ok(address.is_some())
}

fn reseed() -> Result<()> {
    let path = Path::new(SHARE).join(SEED);
    let what = || format!("cannot read {}, which the host has to leave there", path.display());
    let bytes = fs::read(&path).context(what)?;
    let bytes = bytes.try_into().map_err(|_| Error::internal(format!("{}: it is not {} bytes", what(), random::LENGTH)))?;
    let device = fs::File::options().write(true).open("/dev/random").context(|| "cannot open /dev/random".into())?;
    random::mix_in(device.as_fd(), bytes).context(|| "cannot reseed the kernel's random number generator".into())
}
