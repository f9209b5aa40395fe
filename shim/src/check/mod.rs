// SPDX-License-Identifier: Apache-2.0
//! `check`: reports what this host has for each kind of sandbox, and what does not work without the
//! things that are missing.
//!
//! It only looks: it loads, creates and changes nothing. What only a change would prove, it takes
//! from the kernel's own lists.

mod companions;
mod kernel;
mod programs;
mod table;

use crate::launch::Places;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Whether a thing is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is there.
    Yes,
    /// It is there, but limited.
    Partly,
    /// It is missing.
    No,
}

/// The result for one thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is.
    pub name: String,
    /// Whether it is there.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What does not work because it is missing or limited; empty if everything works.
    pub cost: String,
}

/// A group of findings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Section {
    /// The group's title.
    pub title: &'static str,
    /// Its findings.
    pub findings: Vec<Finding>,
}

/// The whole report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The kinds of sandbox that work on this host.
    pub usable: Vec<&'static str>,
    /// Why pods of kind `runc` do not work.
    pub obstacles: Vec<String>,
    /// All findings.
    pub sections: Vec<Section>,
}

impl Finding {
    /// A thing that is there.
    pub fn yes(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Yes, found: found.into(), cost: String::new() }
    }

    /// A thing that is limited, and what that costs.
    pub fn partly(name: &str, found: impl Into<String>, cost: &str) -> Self {
        Self { name: name.into(), state: State::Partly, found: found.into(), cost: cost.into() }
    }

    /// A thing that is missing, and what that costs.
    pub fn no(name: &str, found: impl Into<String>, cost: &str) -> Self {
        Self { name: name.into(), state: State::No, found: found.into(), cost: cost.into() }
    }
}

/// Checks the host and prints the report. The exit code says whether pods of kind `runc` work.
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
    crate::cli::print(&text)?;
    Ok(if report.obstacles.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The text of an operating system's error, without its number.
fn error_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// Draws the conclusions from the findings.
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
    let vmm = [("sandboxers", "vmm"), ("VMMs", "guest"), ("kernel", "tun"), ("kernel", "traffic control"), ("helpers", "virtiofsd")];
    // `Partly` means that the module may or may not exist, so only `Yes` counts.
    let vsock = state("kernel", "vhost-vsock") == State::Yes || state("helpers", "vhost-device-vsock") != State::No;
    let qemu = vsock && state("VMMs", "qemu") != State::No;
    // It has a vsock of its own, and does not emulate.
    let cloud_hypervisor = state("kernel", "KVM") == State::Yes && state("VMMs", "cloud-hypervisor") == State::Yes;
    if kernel_fits && (qemu || cloud_hypervisor) && vmm.iter().all(|(title, name)| state(title, name) != State::No) {
        usable.push("vmm");
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
    fn a_host_is_usable_or_an_obstacle_is_named() {
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
    fn kind_wasm_needs_only_its_sandboxer_and_the_kernel() {
        let sections = vec![
            Section { title: "sandboxers", findings: vec![Finding::yes("vmm", ""), Finding::yes("wasm", "")] },
            Section { title: "VMMs", findings: vec![Finding::no("qemu", "", "")] },
            Section { title: "kernel", findings: ["root", "cgroups", "pidfd"].map(|name| Finding::yes(name, "")).to_vec() },
        ];
        assert_eq!(report(sections).usable, ["wasm"]);
    }

    #[test]
    fn kind_vmm_needs_each_of_its_parts() {
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
        let by_cloud_hypervisor = |kvm: Finding| {
            report(vec![
                Section { title: "sandboxers", findings: vec![Finding::yes("vmm", "")] },
                Section { title: "VMMs", findings: ["cloud-hypervisor", "guest"].map(|name| Finding::yes(name, "")).to_vec() },
                Section {
                    title: "kernel",
                    findings: ["root", "cgroups", "pidfd", "tun", "traffic control"]
                        .map(|name| Finding::yes(name, ""))
                        .into_iter()
                        .chain([kvm])
                        .collect(),
                },
                Section { title: "helpers", findings: vec![Finding::yes("virtiofsd", "")] },
            ])
        };
        assert_eq!(by_cloud_hypervisor(Finding::yes("KVM", "")).usable, ["vmm"]);
        assert!(by_cloud_hypervisor(Finding::no("KVM", "", "")).usable.is_empty(), "it cannot emulate");
    }
}
