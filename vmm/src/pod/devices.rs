// SPDX-License-Identifier: Apache-2.0
//! The devices of the host that the processes of a pod's machine may open.

use magnetar_core::cgroup::Cgroup;
use magnetar_core::cgroup::devices::{BLOCK, CHARACTER, Exceptions, Rule, confine_with_exceptions};
use magnetar_core::error::Result;

/// The host devices that a machine's processes may open, besides their disks. They inherit
/// taps and the kernel's vsock as open descriptors, and disks unless the hypervisor opens those
/// itself. A guest may create device nodes in its files, as any container may,
/// but this list keeps everyone from opening them.
const DEVICES: [Rule; 6] = [
    Rule::any_node(CHARACTER),
    Rule::any_node(BLOCK),
    Rule::character(1, Some(3)),    // null
    Rule::character(1, Some(8)),    // random
    Rule::character(1, Some(9)),    // urandom
    Rule::character(10, Some(232)), // kvm
];

/// Confines the processes of a pod's cgroup. Returns what can be allowed later: disks.
///
/// # Errors
/// The kernel's error.
pub fn confine(cgroup: &Cgroup) -> Result<Exceptions> {
    confine_with_exceptions(cgroup, &DEVICES)
}
