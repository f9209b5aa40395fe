// SPDX-License-Identifier: Apache-2.0
//! Huge pages, in both of their places: those that a pod asks for, which are its guest's own, and those that the handler may have
//! the guest's memory made of on the host.
//!
//! A guest's kernel has pages of 2 MiB. Larger ones it would have to set aside when it boots.

use magnetar_core::error::{Context, Error, Result};
use std::path::Path;

/// The size, as the CRI and the hugetlb controller spell it.
pub const SIZE: &str = "2MB";

/// Its length, in MiB.
pub const MIB: u32 = 2;

/// The host's, of this size.
const OF_HOST: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// How many of them these limits are: bytes, by the size of the page. A limit of nothing for other sizes is one that the kubelet
/// puts everywhere.
///
/// # Errors
/// `Unimplemented` for a size that a guest has not.
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
pub fn is_guests(size: &str) -> bool {
    size == SIZE
}

/// Whether the host has enough for a machine with so much memory: QEMU would say no more than that it has none, or be killed
/// when the guest first touches what is not there.
///
/// # Errors
/// `FailedPrecondition`, with what there is and what to do.
pub fn on_host(memory_mib: u32) -> Result<()> {
    if !Path::new(OF_HOST).exists() {
        return Err(Error::precondition(format!(
            "the host's kernel has no huge pages of {SIZE}: set huge_pages = false in the handler's options"
        )));
    }
    let read = |name: &str| {
        let file = Path::new(OF_HOST).join(name);
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
    fn limits_are_whole_pages_of_the_size_that_a_guest_has() {
        assert_eq!(pages([]).unwrap(), 0);
        assert_eq!(pages([("1GB", 0), ("2MB", 64 << 20)]).unwrap(), 32);
        assert_eq!(pages([("2MB", 1), ("2MB", 2 << 20)]).unwrap(), 2, "rounded up, and summed");
        assert_eq!(pages([("2MB", u64::MAX)]).unwrap(), u32::MAX);
        let error = pages([("1GB", 1 << 30)]).unwrap_err();
        assert_eq!((error.code(), error.to_string().contains("1GB")), (Code::Unimplemented, true));
    }

    #[test]
    fn a_host_with_too_few_is_told_how_many_it_needs() {
        assert!(enough(256, 128).is_ok());
        assert!(enough(0, 0).is_ok());
        let error = enough(257, 128).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.to_string().contains("has 128 free") && error.to_string().contains("needs 129"), "{error}");
    }
}
