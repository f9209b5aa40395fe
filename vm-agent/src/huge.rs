// SPDX-License-Identifier: Apache-2.0
//! Huge pages of 2 MiB, as this kernel sets them aside: memory that nobody else gets (Documentation/admin-guide/mm/hugetlbpage.rst in
//! the kernel).

use magnetar_core::error::{Code, Context, Error, Result};
use std::fs;

const COUNT: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// Sees to it that there are `pages`, at least. They are never given back: they are the pod's until it ends.
///
/// # Errors
/// `ResourceExhausted` where there is not enough memory in one piece; then there are as many as before.
pub fn set_aside(pages: u32) -> Result<()> {
    if pages == 0 {
        return Ok(());
    }
    let before = count()?;
    if before >= pages {
        return Ok(());
    }
    set(pages)?;
    let there = count()?;
    if there >= pages {
        return Ok(());
    }
    set(before)?;
    Err(Error::new(
        Code::ResourceExhausted,
        format!(
            "the pod's containers may use {pages} huge pages, and its virtual machine has memory for {there}: \
             raise memory_mib in the handler's options, or the pod's memory limit"
        ),
    ))
}

fn count() -> Result<u32> {
    let text = fs::read_to_string(COUNT).context(|| format!("cannot read {COUNT}"))?;
    text.trim().parse().map_err(|_| Error::internal(format!("{COUNT} has no number: {text:?}")))
}

/// The kernel may set aside fewer.
fn set(pages: u32) -> Result<()> {
    fs::write(COUNT, pages.to_string()).context(|| format!("cannot write {pages} to {COUNT}"))
}
