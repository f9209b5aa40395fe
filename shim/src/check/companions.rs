// SPDX-License-Identifier: Apache-2.0
//! Checks the programs that Magnetar works with: containerd and its configuration, CNI, the helpers
//! of microVMs.

use super::programs::{first, number, version};
use super::{Finding, error_text};
use crate::cli::DEFAULT_LISTEN;
use magnetar_core::config::Containerd;
use magnetar_core::runtime::cli;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

/// The CNI plugins of the usual configuration.
const CNI: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];

/// The findings. `kernel_vsock` says whether the kernel has vhost-vsock.
pub fn findings(kernel_vsock: bool) -> Vec<Finding> {
    let helper = |name: &str, usual: &[&str], cost: &str| match cli::in_path(name).or_else(|| first(usual)) {
        Some(path) => Finding::yes(name, version(&path)),
        None => Finding::no(name, "not installed", cost),
    };
    vec![
        containerd(),
        socket(),
        handlers(),
        in_path(),
        serve(),
        cni(&["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"]),
        helper(
            "virtiofsd",
            &["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd"],
            "no pods in microVMs: it gives them their images and volumes",
        ),
        helper(
            "vhost-device-vsock",
            &["/usr/libexec/vhost-device-vsock", "/usr/lib/qemu/vhost-device-vsock"],
            if kernel_vsock {
                "nothing: microVMs use the kernel's vhost-vsock"
            } else {
                "no pods in microVMs: it connects the host and the guest"
            },
        ),
    ]
}

fn containerd() -> Finding {
    let name = "containerd";
    let Some(path) = cli::in_path(name) else {
        return Finding::no(name, "not in PATH", "no pods at all: containerd asks for them");
    };
    let said = Command::new(&path).arg("--version").stdin(Stdio::null()).output().map(|output| output.stdout).unwrap_or_default();
    match number(&String::from_utf8_lossy(&said)) {
        Some(number) => containerd_of(number),
        None => Finding::partly(name, path.display().to_string(), "its version is not known; 2.0 or later is needed"),
    }
}

fn containerd_of(number: &str) -> Finding {
    let mut parts = number.split(['.', '~', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    match (parts.next(), parts.next()) {
        (Some(2), Some(..=2)) => Finding::partly("containerd", number, "sandboxer = \"shim\" needs 2.3; the proxy plugin works"),
        (Some(2..), _) => Finding::yes("containerd", number),
        _ => Finding::no("containerd", number, "no pods at all: 2.0 or later is needed"),
    }
}

fn socket() -> Finding {
    let path = Containerd::default().state.join("containerd.sock");
    match UnixStream::connect(&path) {
        Ok(_) => Finding::yes("its socket", path.display().to_string()),
        Err(e) => Finding::no(
            "its socket",
            format!("{}: {}", path.display(), error_text(&e)),
            "containerd does not run, or keeps its state elsewhere",
        ),
    }
}

/// The handlers of Magnetar in containerd's configuration.
fn handlers() -> Finding {
    let name = "its handlers";
    let cost = "pods cannot pick a kind: import conf.d/magnetar.toml into containerd's configuration";
    let Some(path) = cli::in_path("containerd") else {
        return Finding::no(name, "no containerd", cost);
    };
    let dump = Command::new(path).args(["config", "dump"]).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let handlers = dump.map(|output| handlers_in(&String::from_utf8_lossy(&output.stdout))).unwrap_or_default();
    if handlers.is_empty() { Finding::no(name, "none of ours", cost) } else { Finding::yes(name, handlers.join(", ")) }
}

fn handlers_in(dump: &str) -> Vec<String> {
    let tables = dump
        .lines()
        .filter_map(|line| line.trim().strip_prefix('[')?.strip_suffix(']')?.split_once("containerd.runtimes.").map(|(_, name)| name));
    let mut names: Vec<String> = tables
        .map(|name| name.trim_matches(['"', '\'']).to_string())
        .filter(|name| name.starts_with("magnetar-") && !name.contains('.'))
        .collect();
    names.sort();
    names.dedup();
    names
}

fn in_path() -> Finding {
    let name = "containerd-shim-magnetar-v2";
    match cli::in_path(name) {
        Some(path) => Finding::yes("the shim", path.display().to_string()),
        None => Finding::no("the shim", format!("{name} is not in PATH"), "containerd cannot start containers, nor clean up after them"),
    }
}

fn serve() -> Finding {
    match UnixStream::connect(Path::new(DEFAULT_LISTEN)) {
        Ok(_) => Finding::yes("serve", DEFAULT_LISTEN),
        Err(e) => Finding::no(
            "serve",
            format!("{DEFAULT_LISTEN}: {}", error_text(&e)),
            "no pods of handlers with a proxy plugin: start magnetar.service",
        ),
    }
}

fn cni(folders: &[&str]) -> Finding {
    let name = "CNI plugins";
    let cost = "no pod networks: only pods in the host's network";
    let Some(folder) = folders.iter().find(|folder| CNI.iter().any(|plugin| Path::new(folder).join(plugin).exists())) else {
        return Finding::no(name, format!("none in {}", folders.join(", ")), cost);
    };
    let missing: Vec<&str> = CNI.into_iter().filter(|plugin| !Path::new(folder).join(plugin).exists()).collect();
    if missing.is_empty() {
        return Finding::yes(name, *folder);
    }
    Finding::partly(name, format!("{folder} without {}", missing.join(", ")), "no pod networks that are configured with these")
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn containerd_before_2_0_is_refused_and_2_0_to_2_2_are_limited() {
        for (number, state) in [
            ("1.7.24", State::No),
            ("2.1.9~ds1", State::Partly),
            ("2.2.0", State::Partly),
            ("2.3.0-rc.1", State::Yes),
            ("2.10.0", State::Yes),
            ("3.0.0", State::Yes),
            ("dev", State::No),
        ] {
            assert_eq!(containerd_of(number).state, state, "{number}");
        }
    }

    #[test]
    fn our_handlers_are_found_in_containerd_s_configuration() {
        let dump = "[plugins]\n  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes]\n    \
            [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.magnetar-runc]\n      \
            [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.magnetar-runc.options]\n    \
            [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc]\n    \
            [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'magnetar-clh']\n";
        assert_eq!(handlers_in(dump), ["magnetar-clh", "magnetar-runc"]);
    }

    #[test]
    fn missing_plugins_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        assert_eq!(cni(&["/nonexistent", path]).state, State::No);
        std::fs::write(folder.path().join("bridge"), "").unwrap();
        assert!(cni(&["/nonexistent", path]).found.contains("host-local"));
        for plugin in CNI {
            std::fs::write(folder.path().join(plugin), "").unwrap();
        }
        assert_eq!(cni(&[path]).state, State::Yes);
    }
}
