// SPDX-License-Identifier: Apache-2.0
//! What executes a guest's code: the processor through KVM where possible, or an emulator.

use crate::machine::spec::Acceleration;
use magnetar_core::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;

/// The setting in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// KVM if it works, otherwise emulation if the hypervisor has it.
    #[default]
    Auto,
    /// KVM only.
    Kvm,
    /// Emulation, even if KVM works.
    Tcg,
}

/// KVM's device.
const DEVICE: &str = "/dev/kvm";

/// The version of KVM's interface.
const VERSION: i32 = 12;

/// Decides for a `hypervisor`, which may have emulation (`emulates`), after checking this node.
/// Logs a warning if the result is slow.
///
/// # Errors
/// As [`decide`].
pub fn choose(choice: Choice, hypervisor: &str, emulates: bool) -> Result<Acceleration> {
    let kvm = if choice == Choice::Tcg { Ok(()) } else { probe() };
    let chosen = decide(choice, hypervisor, emulates, kvm.as_ref().map_err(String::as_str).copied())?;
    if let (Acceleration::Tcg, Err(reason)) = (chosen, kvm) {
        tracing::warn!("{hypervisor} emulates the processor, which is many times slower than KVM: {reason}");
    }
    Ok(chosen)
}

/// The decision, given whether KVM works or why it does not.
///
/// # Errors
/// `FailedPrecondition` if the requested one is not available, with the reason and a remedy.
pub fn decide(choice: Choice, hypervisor: &str, emulates: bool, kvm: Result<(), &str>) -> Result<Acceleration> {
    match (choice, kvm) {
        (Choice::Auto | Choice::Kvm, Ok(())) => Ok(Acceleration::Kvm),
        (Choice::Auto | Choice::Tcg, _) if emulates => Ok(Acceleration::Tcg),
        (Choice::Tcg, _) => Err(Error::precondition(format!("{hypervisor} cannot emulate a processor: set acceleration = \"kvm\""))),
        (Choice::Kvm, Err(reason)) if emulates => Err(Error::precondition(format!(
            "{hypervisor} is configured to use KVM, but {reason}; switch virtualisation on, or set acceleration = \"tcg\" to emulate"
        ))),
        (Choice::Auto | Choice::Kvm, Err(reason)) => Err(Error::precondition(format!(
            "{hypervisor} needs KVM, but {reason}; switch virtualisation on, or use a handler whose hypervisor emulates, such as QEMU"
        ))),
    }
}

/// Whether KVM works here, or why not.
fn probe() -> Result<(), String> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").map_err(|error| format!("/proc/cpuinfo cannot be read: {error}"))?;
    // The device alone proves nothing: some kernels have a KVM that opens without processor
    // support, and a standard guest hangs on it.
    if !has_virtualisation(&cpuinfo) {
        return Err("the processor shows neither vmx nor svm".into());
    }
    let device = std::fs::OpenOptions::new().read(true).write(true).open(DEVICE).map_err(|error| format!("{DEVICE}: {error}"))?;
    match magnetar_sys::kvm::api_version(device.as_fd()) {
        Ok(VERSION) => Ok(()),
        Ok(other) => Err(format!("{DEVICE} has version {other} of the interface, not {VERSION}")),
        Err(error) => Err(format!("{DEVICE} is not KVM: {error}")),
    }
}

/// Whether /proc/cpuinfo shows Intel's or AMD's virtualisation extensions.
fn has_virtualisation(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == "flags");
    flags.is_some_and(|(_, flags)| flags.split_ascii_whitespace().any(|flag| matches!(flag, "vmx" | "svm")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use magnetar_core::error::Code;

    #[test]
    fn cpu_flags_match_as_whole_words() {
        let info =
            |flags: &str| format!("processor\t: 0\nmodel name\t: A vmx CPU\nflags\t\t: fpu {flags} sse2\nvmx flags\t: vnmi\nbugs\t\t:\n");
        assert!(has_virtualisation(&info("vmx")));
        assert!(has_virtualisation(&info("svm")));
        assert!(!has_virtualisation(&info("svm_lock")));
        assert!(!has_virtualisation(&info("")));
        assert!(!has_virtualisation(""));
    }

    #[test]
    fn kvm_is_used_if_it_works() {
        for choice in [Choice::Auto, Choice::Kvm] {
            assert_eq!(decide(choice, "QEMU", true, Ok(())).unwrap(), Acceleration::Kvm);
            assert_eq!(decide(choice, "Firecracker", false, Ok(())).unwrap(), Acceleration::Kvm);
        }
        assert_eq!(decide(Choice::Tcg, "QEMU", true, Ok(())).unwrap(), Acceleration::Tcg);
    }

    #[test]
    fn without_kvm_only_auto_emulates() {
        let missing = Err("there is none");
        assert_eq!(decide(Choice::Auto, "QEMU", true, missing).unwrap(), Acceleration::Tcg);
        assert_eq!(decide(Choice::Tcg, "QEMU", true, missing).unwrap(), Acceleration::Tcg);
        for (choice, emulates) in [(Choice::Kvm, true), (Choice::Kvm, false), (Choice::Auto, false)] {
            let error = decide(choice, "it", emulates, missing).unwrap_err();
            assert_eq!(error.code(), Code::FailedPrecondition);
            assert!(error.to_string().contains("there is none"), "{error}");
        }
        assert!(decide(Choice::Tcg, "Firecracker", false, Ok(())).is_err());
    }

    #[test]
    fn the_setting_has_three_values() {
        for (word, choice) in [("\"auto\"", Choice::Auto), ("\"kvm\"", Choice::Kvm), ("\"tcg\"", Choice::Tcg)] {
            assert_eq!(serde_json::from_str::<Choice>(word).unwrap(), choice);
        }
        assert!(serde_json::from_str::<Choice>("\"KVM\"").is_err());
    }
}
