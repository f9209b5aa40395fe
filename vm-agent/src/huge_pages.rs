// SPDX-License-Identifier: Apache-2.0
//! Huge pages of 2 MiB, as this kernel sets them aside: memory that nobody else gets (Documentation/admin-guide/mm/hugetlbpage.rst in
//! the kernel).

use magnetar_core::error::{Code, Context, Error, Result};
use std::fs;

/// How long one is, in KiB.
const KIB: u64 = 2 << 10;

const COUNT: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// How many are set aside at a time: the kernel may have to move what is in their place, and meanwhile nobody is answered.
const AT_A_TIME: u32 = 16;

/// What must be left of the memory, in KiB: less, and the kernel would end processes to have some.
const LEFT: u64 = 32 << 10;

/// Sees to it that there are `pages`, at least. They are never given back: they are the pod's until it ends.
///
/// # Errors
/// `ResourceExhausted` where there is not enough memory, or none in one piece; then there are as many as before.
pub async fn set_aside(pages: u32) -> Result<()> {
    let before = if pages == 0 { return Ok(()) } else { count()? };
    let mut there = before;
    let lacking = u64::from(pages.saturating_sub(before)) * KIB;
    while there < pages && lacking + LEFT <= available()? + u64::from(there - before) * KIB {
        let next = pages.min(there.saturating_add(AT_A_TIME));
        set(next)?;
        there = count()?;
        if there < next {
            break;
        }
        tokio::task::yield_now().await;
    }
    if there >= pages {
        return Ok(());
    }
    set(before)?;
    Err(Error::new(
        Code::ResourceExhausted,
        format!(
            "the pod's containers may use {pages} huge pages, for which its virtual machine has not the memory: \
             raise memory_mib in the handler's options, or the pod's memory limit"
        ),
    ))
}

/// What the kernel could give, in KiB (proc(5)).
fn available() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context(|| "cannot read /proc/meminfo".into())?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    number.ok_or_else(|| Error::internal("/proc/meminfo does not say what is available"))
}

fn count() -> Result<u32> {
    let text = fs::read_to_string(COUNT).context(|| format!("cannot read {COUNT}"))?;
    text.trim().parse().map_err(|_| Error::internal(format!("{COUNT} has no number: {text:?}")))
}

/// The kernel may set aside fewer.
fn set(pages: u32) -> Result<()> {
    fs::write(COUNT, pages.to_string()).context(|| format!("cannot write {pages} to {COUNT}"))
}
