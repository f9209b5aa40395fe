// SPDX-License-Identifier: Apache-2.0
//! `check`: what this host has for each kind of sandbox, and what each missing thing would cost.
//!
//! It only looks: nothing is loaded, created or changed, and what cannot be told without that is
//! told from what the kernel says of itself.

mod companions;
mod kernel;
mod programs;
mod table;

use crate::launch::Places;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// How much of a thing there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// All of it.
    Yes,
    /// It is there, with a limit.
    Partly,
    /// It is missing.
    No,
}

/// One thing that was looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is.
    pub name: String,
    /// Whether it is there.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What its absence, or its limit, costs; empty where there is nothing to say.
    pub cost: String,
}

/// Things of a sort.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Section {
    /// What they are.
    pub title: &'static str,
    /// Each of them.
    pub findings: Vec<Finding>,
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The kinds of sandbox that can be made here.
    pub usable: Vec<&'static str>,
    /// What keeps pods of kind `runc` from being made.
    pub obstacles: Vec<String>,
    /// Everything.
    pub sections: Vec<Section>,
}

impl Finding {
    /// Something that is all there.
    pub fn yes(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Yes, found: found.into(), cost: String::new() }
    }

    /// Something with a limit, and what that costs.
    pub fn partly(name: &str, found: impl Into<String>, cost: &str) -> Self {
        Self { name: name.into(), state: State::Partly, found: found.into(), cost: cost.into() }
    }

    /// Something that is missing, and what that costs.
    pub fn no(name: &str, found: impl Into<String>, cost: &str) -> Self {
        Self { name: name.into(), state: State::No, found: found.into(), cost: cost.into() }
    }
}

/// Looks, prints, and says by the exit code whether pods of kind `runc` can be made.
pub fn run(json: bool, libexec: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let places = Places::new(libexec.as_deref());
    let kernel = kernel::findings();
    let kernel_vsock = kernel.iter().any(|finding| finding.name == "vhost-vsock" && finding.state == State::Yes);
    let report = report(vec![
        Section { title: "sandboxers", findings: programs::sandboxers(&places) },
        Section { title: "OCI runtimes", findings: programs::oci_runtimes() },
        Section { title: "VMMs", findings: programs::vmms(&places) },
        Section { title: "Wasm engines", findings: programs::engines(&places) },
        Section { title: "kernel", findings: kernel },
        Section { title: "helpers", findings: companions::findings(kernel_vsock) },
    ]);
    let text = if json { serde_json::to_string_pretty(&report)? + "\n" } else { table::render(&report) };
    crate::cli::say(&text)?;
    Ok(if report.obstacles.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// An error of the operating system in its own words, without its number.
fn words(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// What follows from the findings.
fn report(sections: Vec<Section>) -> Report {
    let state = |title: &str, name: &str| {
        let section = sections.iter().find(|section| section.title == title);
        section.and_then(|section| section.findings.iter().find(|finding| finding.name == name)).map_or(State::No, |finding| finding.state)
    };
    let any = |title: &str| sections.iter().any(|s| s.title == title && s.findings.iter().any(|finding| finding.state != State::No));
    let mut obstacles = Vec::new();
    let mut need = |met: bool, why: &str| {
        if !met {
            obstacles.push(why.to_string());
        }
    };
    need(state("sandboxers", "runc") != State::No, "magnetar-runc is not installed");
    need(any("OCI runtimes"), "there is no OCI runtime: install crun or runc");
    need(state("kernel", "root") != State::No, "this is not root");
    need(state("kernel", "cgroups") != State::No, "no cgroup hierarchy is mounted");
    need(state("kernel", "pidfd") != State::No, "the kernel is older than 5.3 and has no pidfd");
    let kernel_fits = ["root", "cgroups", "pidfd"].iter().all(|name| state("kernel", name) != State::No);
    let mut usable = Vec::new();
    if obstacles.is_empty() {
        usable.push("runc");
    }
    if kernel_fits && state("sandboxers", "wasm") != State::No {
        usable.push("wasm");
    }
    // QEMU is the one hypervisor that there is a handler for.
    let vmm = [
        ("sandboxers", "vmm"),
        ("VMMs", "qemu"),
        ("VMMs", "guest"),
        ("kernel", "tun"),
        ("kernel", "traffic control"),
        ("helpers", "virtiofsd"),
    ];
    // Whether the kernel has a module that is not loaded is known when it is: only what is there counts.
    let vsock = state("kernel", "vhost-vsock") == State::Yes || state("helpers", "vhost-device-vsock") != State::No;
    if kernel_fits && vsock && vmm.iter().all(|(title, name)| state(title, name) != State::No) {
        usable.push("vmm");
    }
    if kernel_fits && state("sandboxers", "quark") != State::No && state("kernel", "KVM") == State::Yes {
        usable.push("quark");
    }
    Report { usable, obstacles, sections }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(missing: &str) -> Report {
        let finding = |name: &str| if name == missing { Finding::no(name, "", "much") } else { Finding::yes(name, "") };
        let section = |title, names: &[&str]| Section { title, findings: names.iter().map(|name| finding(name)).collect() };
        report(vec![
            section("sandboxers", &["runc"]),
            section("OCI runtimes", &["crun"]),
            section("kernel", &["root", "cgroups", "pidfd", "KVM", "overlayfs"]),
        ])
    }

    #[test]
    fn a_host_is_usable_or_it_is_said_why_not() {
        assert_eq!(host("").usable, ["runc"]);
        assert_eq!(host("overlayfs").usable, ["runc"]);
        for (missing, word) in
            [("runc", "magnetar-runc"), ("crun", "OCI runtime"), ("root", "root"), ("cgroups", "cgroup"), ("pidfd", "5.3")]
        {
            let report = host(missing);
            assert!(report.usable.is_empty(), "{missing}");
            assert!(report.obstacles.iter().any(|obstacle| obstacle.contains(word)), "{missing}: {:?}", report.obstacles);
        }
    }

    #[test]
    fn a_kind_needs_its_sandboxer() {
        let sections = vec![
            Section { title: "sandboxers", findings: vec![Finding::yes("vmm", ""), Finding::yes("wasm", "")] },
            Section { title: "VMMs", findings: vec![Finding::no("qemu", "", "")] },
            Section { title: "kernel", findings: ["root", "cgroups", "pidfd"].map(|name| Finding::yes(name, "")).to_vec() },
        ];
        assert_eq!(report(sections).usable, ["wasm"]);
    }

    #[test]
    fn a_microvm_needs_all_that_it_is_made_of() {
        let host = |missing: &[&str]| {
            let finding = |name: &&str| if missing.contains(name) { Finding::no(name, "", "much") } else { Finding::yes(name, "") };
            let section = |title, names: &[&str]| Section { title, findings: names.iter().map(finding).collect() };
            report(vec![
                section("sandboxers", &["vmm"]),
                section("VMMs", &["qemu", "guest", "firecracker"]),
                section("kernel", &["root", "cgroups", "pidfd", "tun", "traffic control", "KVM", "vhost-vsock"]),
                section("helpers", &["virtiofsd", "vhost-device-vsock"]),
            ])
        };
        for dispensable in ["", "KVM", "firecracker", "vhost-vsock", "vhost-device-vsock"] {
            assert_eq!(host(&[dispensable]).usable, ["vmm"], "{dispensable}");
        }
        for missing in ["vmm", "qemu", "guest", "tun", "traffic control", "virtiofsd", "root"] {
            assert!(host(&[missing]).usable.is_empty(), "{missing}");
        }
        assert!(host(&["vhost-vsock", "vhost-device-vsock"]).usable.is_empty(), "one of the two vsocks");
    }
}
