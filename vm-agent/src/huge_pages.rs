// SPDX-License-Identifier: Apache-2.0
//! Sets huge pages of 2 MiB aside in the guest's kernel. They cannot be used as other memory
//! (Documentation/admin-guide/mm/hugetlbpage.rst in the kernel).

use magnetar_core::error::{Code, Context, Error, Result};
use std::fs;

/// The size of a page in KiB.
const KIB: u64 = 2 << 10;

const COUNT: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// How many pages are set aside at a time: the kernel may have to move memory for them, and
/// meanwhile this thread answers no request.
const AT_A_TIME: u32 = 16;

/// How much memory must stay free, in KiB. With less, the OOM killer would kill processes.
const LEFT: u64 = 32 << 10;

/// Sets aside pages until there are at least `pages`. They stay set aside until the pod ends.
///
/// # Errors
/// `ResourceExhausted` if there is not enough memory, or not enough in one piece. The number of
/// pages is then unchanged.
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

/// The available memory in KiB (proc(5)).
fn available() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context(|| "cannot read /proc/meminfo".into())?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    number.ok_or_else(|| Error::internal("/proc/meminfo has no MemAvailable"))
}

fn count() -> Result<u32> {
    let text = fs::read_to_string(COUNT).context(|| format!("cannot read {COUNT}"))?;
    text.trim().parse().map_err(|_| Error::internal(format!("{COUNT} has no number: {text:?}")))
}

/// Sets the number of pages. The kernel may set aside fewer.
fn set(pages: u32) -> Result<()> {
    fs::write(COUNT, pages.to_string()).context(|| format!("cannot write {pages} to {COUNT}"))
}
