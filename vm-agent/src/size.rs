// SPDX-License-Identifier: Apache-2.0
//! Takes in memory and processors that the machine gets while it runs, and gives them back.
//!
//! ```text
//! memory      the driver virtio_mem does it, as the host asks the device for more or less
//! processors  the kernel finds a new one ──uevent──> the agent switches it on; the last ones are switched off first
//! ```
//!
//! The kernel also tells the host which memory is free, so that the host can use it until the guest
//! touches it again: free page reporting of the driver virtio_balloon.
//!
//! New memory goes where only what can be moved is kept, as long as the rest of the memory is in
//! proportion, so that it can be given back (Documentation/admin-guide/mm/memory-hotplug.rst in the
//! kernel, "auto-movable").

use crate::{modules, uevents};
use magnetar_core::error::{Code, Context, Error, Result};
use magnetar_vm_agent_api::PROCESSOR_FOUND;
use std::convert::Infallible;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::thread::Builder;
use std::time::Duration;
use tokio::sync::oneshot;
use tracing::{debug, warn};

/// The driver for more memory.
const DRIVER: &str = "virtio_mem";

/// The driver that reports free memory.
const REPORTER: &str = "virtio_balloon";

/// How long after the boot free memory is reported for the first time. Loading the driver earlier
/// would delay the first containers.
const REPORT_AFTER: Duration = Duration::from_secs(10);

/// Files that say how the kernel uses new memory, and what they are set to.
const POLICY: [(&str, &str); 2] =
    [("/sys/devices/system/memory/auto_online_blocks", "online"), ("/sys/module/memory_hotplug/parameters/online_policy", "auto-movable")];

/// The stack of a thread that writes to a file, in bytes.
const STACK: usize = 64 << 10;

const PROCESSORS: &str = "/sys/devices/system/cpu";

/// Sets how the kernel uses new memory. A kernel with a built-in driver takes it as soon as the
/// host offers it, so this comes first. A kernel that takes no new memory lacks the files.
///
/// # Errors
/// The kernel's error.
pub fn set_policy() -> Result<()> {
    for (file, value) in POLICY {
        match fs::write(file, value) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            written => written.context(|| format!("cannot write {value} to {file}"))?,
        }
    }
    Ok(())
}

/// Makes the kernel take in and give back memory as the host asks, waits until the kernel knows
/// `vcpus` processors, and uses exactly so many.
///
/// # Errors
/// `DeadlineExceeded` if the kernel does not find the processors, or the kernel's error.
pub async fn resize(vcpus: u32) -> Result<()> {
    modules::load(DRIVER)?;
    // Listen first, so that a processor cannot appear unnoticed between the look and the wait.
    let told = uevents::listen()?;
    let found = async {
        while !use_processors(vcpus).await? {
            uevents::hear(&told).await?;
        }
        Ok(())
    };
    let late = |_| {
        let what = format!("the guest's kernel has not found {vcpus} processors within {PROCESSOR_FOUND:?}");
        Error::new(Code::DeadlineExceeded, what)
    };
    tokio::time::timeout(PROCESSOR_FOUND, found).await.map_err(late)?
}

/// Makes the kernel report its free memory to the host, once the first containers had the time to
/// start. Never returns. A failure is only logged: the pod works without.
pub async fn report_free_memory() -> Infallible {
    tokio::time::sleep(REPORT_AFTER).await;
    if let Err(error) = modules::load(REPORTER) {
        warn!(%error, "the host does not get back the memory that this guest frees");
    }
    std::future::pending().await
}

/// Switches processors on or off until `wanted` are on. Returns whether that many exist.
async fn use_processors(wanted: u32) -> Result<bool> {
    let [present, online] = ["present", "online"].map(|list| {
        let file = Path::new(PROCESSORS).join(list);
        let text = fs::read_to_string(&file).context(|| format!("cannot read {}", file.display()))?;
        numbers(&text).ok_or_else(|| Error::internal(format!("{} is no list of processors: {text:?}", file.display())))
    });
    let (present, online) = (present?, online?);
    let mut all_there = present.len() >= wanted as usize;
    for (number, on) in changes(&present, &online, wanted as usize) {
        let file = format!("{PROCESSORS}/cpu{number}/online");
        let value = if on { "1" } else { "0" };
        match switch(file.clone(), value).await {
            // The kernel lists a processor a moment before it makes its directory, and a moment
            // after it has removed it. An event follows.
            Err(error) if error.kind() == ErrorKind::NotFound => all_there &= !on,
            written => written.context(|| format!("cannot write {value} to {file}"))?,
        }
        debug!(number, on, "processor");
    }
    Ok(all_there)
}

/// Writes to a processor's file, in a thread of its own. The kernel may take seconds to start a
/// processor, on a busy host, and the agent must answer the host's pings meanwhile.
async fn switch(file: String, value: &'static str) -> io::Result<()> {
    let (written, outcome) = oneshot::channel();
    // Whoever waits for it may have gone.
    let write = move || drop(written.send(fs::write(file, value)));
    Builder::new().name("processor".into()).stack_size(STACK).spawn(write)?;
    outcome.await.map_err(io::Error::other)?
}

/// The processors to switch on (`true`) or off, so that the first `wanted` of those that exist are
/// on.
fn changes(present: &[u32], online: &[u32], wanted: usize) -> Vec<(u32, bool)> {
    let (keep, surplus) = present.split_at(wanted.max(1).min(present.len()));
    let on = keep.iter().filter(|number| !online.contains(number)).map(|number| (*number, true));
    let off = surplus.iter().rev().filter(|number| online.contains(number)).map(|number| (*number, false));
    on.chain(off).collect()
}

/// The numbers in a list of the kernel's, such as `0-2,5`.
fn numbers(list: &str) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        numbers.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::{changes, numbers};

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(numbers("0\n"), Some(vec![0]));
        assert_eq!(numbers("0-2,5,7-8\n"), Some(vec![0, 1, 2, 5, 7, 8]));
        assert_eq!((numbers(""), numbers("0-"), numbers("all")), (None, None, None));
    }

    #[test]
    fn the_first_processors_are_used_and_the_first_one_always() {
        let present = [0, 1, 2, 3];
        assert_eq!(changes(&present, &[0], 3), [(1, true), (2, true)]);
        assert_eq!(changes(&present, &present, 2), [(3, false), (2, false)]);
        assert_eq!(changes(&present, &[0, 3], 2), [(1, true), (3, false)]);
        assert_eq!(changes(&present, &present, 0), [(3, false), (2, false), (1, false)]);
        assert_eq!(changes(&[0], &[0], 4), []);
    }
}
