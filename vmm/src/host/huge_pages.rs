// SPDX-License-Identifier: Apache-2.0
//! Huge pages, in two roles: those that a pod asks for are inside the guest; those that the handler
//! configures are the host's, and back the guest's memory.
//!
//! A guest's kernel has pages of 2 MiB. It would have to reserve larger ones at boot.

use magnetar_core::error::{Context, Error, Result};
use std::path::Path;

/// The size as the CRI and the hugetlb controller write it.
pub const SIZE: &str = "2MB";

/// The size in MiB.
pub const MIB: u32 = 2;

/// The host's directory of counters for this size.
const HOST_COUNTERS: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// The number of pages for these limits, which are bytes by page size. The kubelet sets a limit of
/// zero for sizes that a pod does not ask for, so those are ignored.
///
/// # Errors
/// `Unimplemented` for a size that guests do not have.
pub fn pages<'a>(limits: impl IntoIterator<Item = (&'a str, u64)>) -> Result<u32> {
    let mut bytes = 0_u64;
    for (size, limit) in limits {
        match size {
            SIZE => bytes = bytes.saturating_add(limit),
            _ if limit == 0 => {}
            _ => return Err(Error::unimplemented(format!("a virtual machine has huge pages of {SIZE}, not of {size}"))),
        }
    }
    Ok(u32::try_from(bytes.div_ceil(u64::from(MIB) << 20)).unwrap_or(u32::MAX))
}

/// Whether a guest's kernel can limit pages of this size.
pub fn guest_has(size: &str) -> bool {
    size == SIZE
}

/// Checks that the host has enough huge pages for a machine with this much memory. Without the
/// check, QEMU would give no reason, or be killed when the guest first touches a missing page.
///
/// # Errors
/// `FailedPrecondition`, with the number of pages and a remedy.
pub fn check_host(memory_mib: u32) -> Result<()> {
    if !Path::new(HOST_COUNTERS).exists() {
        return Err(Error::precondition(format!(
            "the host's kernel has no huge pages of {SIZE}: set huge_pages = false in the handler's options"
        )));
    }
    let read = |name: &str| {
        let file = Path::new(HOST_COUNTERS).join(name);
        let text = std::fs::read_to_string(&file).context(|| format!("cannot read {}", file.display()))?;
        text.trim().parse::<u64>().map_err(|_| Error::internal(format!("{} has no number: {text:?}", file.display())))
    };
    let (free, reserved) = (read("free_hugepages")?, read("resv_hugepages")?);
    enough(memory_mib, free.saturating_sub(reserved))
}

fn enough(memory_mib: u32, free: u64) -> Result<()> {
    let needed = u64::from(memory_mib.div_ceil(MIB));
    if needed <= free {
        return Ok(());
    }
    Err(Error::precondition(format!(
        "the host has {free} free huge pages of {SIZE}, and this pod needs {needed}: raise vm.nr_hugepages, or set huge_pages = false \
         in the handler's options"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use magnetar_core::error::Code;

    #[test]
    fn limits_become_whole_pages_of_the_guests_size() {
        assert_eq!(pages([]).unwrap(), 0);
        assert_eq!(pages([("1GB", 0), ("2MB", 64 << 20)]).unwrap(), 32);
        assert_eq!(pages([("2MB", 1), ("2MB", 2 << 20)]).unwrap(), 2, "rounded up, and summed");
        assert_eq!(pages([("2MB", u64::MAX)]).unwrap(), u32::MAX);
        let error = pages([("1GB", 1 << 30)]).unwrap_err();
        assert_eq!((error.code(), error.to_string().contains("1GB")), (Code::Unimplemented, true));
    }

    #[test]
    fn too_few_free_pages_are_refused_with_the_number_needed() {
        assert!(enough(256, 128).is_ok());
        assert!(enough(0, 0).is_ok());
        let error = enough(257, 128).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.to_string().contains("has 128 free") && error.to_string().contains("needs 129"), "{error}");
    }
}
