// SPDX-License-Identifier: Apache-2.0
//! How large this host is.

use crate::machine::size::Size;

/// The host's memory and processors. No machine grows beyond them unless it is configured to.
pub fn of_host() -> Size {
    let info = rustix::system::sysinfo();
    // The unit is a byte on every 64-bit kernel, but sysinfo(2) does not promise it.
    let bytes = info.totalram * u64::from(info.mem_unit);
    let vcpus = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
    Size { memory_mib: u32::try_from(bytes >> 20).unwrap_or(u32::MAX), vcpus }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_host_has_memory_and_processors() {
        let host = super::of_host();
        assert!(host.memory_mib > 64 && host.vcpus > 0, "{host:?}");
    }
}
