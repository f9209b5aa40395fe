// SPDX-License-Identifier: Apache-2.0
//! Limits the devices that a container may use, with cgroup v2.
//!
//! libcontainer 0.7 can do that only with a C library for BPF programs (its feature
//! `cgroupsv2_devices`). Without the limit, a container with CAP_MKNOD, which is a default, could
//! read the host's disks. The program is short, so we write it ourselves. It is attached while init
//! waits for Start.

use crate::cgroup::Cgroup;
use crate::cgroup::devices::{self, BLOCK, CHARACTER, MAKE, READ, Rule, WRITE};
use crate::error::{Error, Result};
use libcontainer::oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, Spec};

/// The rules of every container, as with runc: it may make any node, and use the standard devices.
const ALWAYS: [Rule; 11] = [
    Rule::any_node(CHARACTER),
    Rule::any_node(BLOCK),
    Rule::character(1, Some(3)), // null
    Rule::character(1, Some(5)), // zero
    Rule::character(1, Some(7)), // full
    Rule::character(1, Some(8)), // random
    Rule::character(1, Some(9)), // urandom
    Rule::character(5, Some(0)), // tty
    Rule::character(5, Some(1)), // console
    Rule::character(5, Some(2)), // ptmx
    Rule::character(136, None),  // terminals
];

/// Limits a container that waits for Start to the devices of its specification. With v1
/// libcontainer has done it.
///
/// # Errors
/// `InvalidArgument` for invalid rules, or the kernel's error. The container must not run then.
pub fn confine(spec: &Spec) -> Result<()> {
    let cgroup = match cgroup_of(spec)? {
        Some(cgroup @ Cgroup::V2 { .. }) => cgroup,
        Some(Cgroup::V1 { .. }) => return Ok(()),
        None if matches!(Cgroup::at("/")?, Cgroup::V1 { .. }) => return Ok(()),
        None => {
            return Err(Error::invalid("the specification names no cgroup, without which the container cannot be confined to its devices"));
        }
    };
    let given = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()).and_then(|resources| resources.devices().as_ref());
    let mut rules = given.into_iter().flatten().map(rule).collect::<Result<Vec<_>>>()?;
    rules.extend(ALWAYS);
    devices::confine(&cgroup, &rules)
}

/// The cgroup in the specification, into which libcontainer has put the container.
pub fn cgroup_of(spec: &Spec) -> Result<Option<Cgroup>> {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref()).and_then(|path| path.to_str());
    path.filter(|path| !path.is_empty()).map(Cgroup::at).transpose()
}

/// A rule of the specification.
fn rule(rule: &LinuxDeviceCgroup) -> Result<Rule> {
    let kind = match rule.typ().unwrap_or_default() {
        LinuxDeviceType::A => None,
        LinuxDeviceType::B => Some(BLOCK),
        LinuxDeviceType::C | LinuxDeviceType::U => Some(CHARACTER),
        LinuxDeviceType::P => return Err(Error::invalid("a device rule is about a FIFO, which is not a device")),
    };
    // Negative numbers are the wildcard in old specifications.
    let number = |number: Option<i64>| match number.filter(|number| *number >= 0) {
        None => Ok(None),
        Some(number) => i32::try_from(number).map(Some).map_err(|_| Error::invalid(format!("{number} is not a device number"))),
    };
    let letters = rule.access().as_deref().unwrap_or("rwm");
    let access = letters.chars().try_fold(0, |access, letter| match letter {
        'r' => Ok(access | READ),
        'w' => Ok(access | WRITE),
        'm' => Ok(access | MAKE),
        other => Err(Error::invalid(format!("{other:?} is not an access to a device: use r, w or m"))),
    })?;
    Ok(Rule { kind, major: number(rule.major())?, minor: number(rule.minor())?, access, allow: rule.allow() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::devices::program;
    use crate::cgroup::devices::tests::run;

    fn rules(json: &str) -> Vec<Rule> {
        let given: Vec<LinuxDeviceCgroup> = serde_json::from_str(json).unwrap();
        given.iter().map(|given| rule(given).unwrap()).collect()
    }

    #[test]
    fn containerd_s_default_rules_do_not_allow_disks() {
        let mut rules = rules(r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"r"}]"#);
        rules.extend(ALWAYS);
        let program = program(&rules);
        assert!(!run(&program, BLOCK, READ, 254, 0));
        assert!(run(&program, BLOCK, MAKE, 254, 0), "a node alone is harmless");
        assert!(run(&program, CHARACTER, READ | WRITE, 1, 3));
        assert!(!run(&program, CHARACTER, READ, 1, 1), "memory");
        assert!(run(&program, CHARACTER, READ, 10, 229));
        assert!(!run(&program, CHARACTER, READ | WRITE, 10, 229), "more than was allowed");
        assert!(run(&program, CHARACTER, WRITE, 136, 77));
    }

    #[test]
    fn invalid_rules_are_refused() {
        let nonsense: LinuxDeviceCgroup = serde_json::from_str(r#"{"allow":true,"access":"x"}"#).unwrap();
        assert!(rule(&nonsense).is_err());
    }
}
