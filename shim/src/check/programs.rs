// SPDX-License-Identifier: Apache-2.0
//! Checks programs: sandboxers, OCI runtimes, hypervisors, Wasm engines.

use super::Finding;
use crate::launch::Places;
use crate::options::{CONFIG_DIR, of_kind};
use magnetar_core::config::LEAST_CLOUD_HYPERVISOR;
use magnetar_core::program::LLAMA_SERVER;
use magnetar_core::runtime::cli;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where distributions put shared libraries.
const LIBRARIES: [&str; 5] = ["/usr/local/lib", "/usr/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];

/// Our own sandboxers.
pub fn sandboxers(places: &Places) -> Vec<Finding> {
    let kinds = [
        ("runc", "no pods in plain namespaces (magnetar-runc)"),
        ("wasm", "no pods with WebAssembly modules (magnetar-wasm)"),
        ("vmm", "no pods in microVMs (magnetar-vmm)"),
    ];
    let look = |(kind, cost): (&str, &str)| match places.find(kind) {
        Ok(path) => Finding::yes(kind, path.display().to_string()),
        Err(error) if places.folders().iter().any(|folder| folder.join(format!("magnetar-{kind}")).exists()) => {
            Finding::no(kind, error.to_string(), cost)
        }
        Err(_) => Finding::no(kind, "not installed", cost),
    };
    kinds.into_iter().map(look).collect()
}

/// The OCI runtimes, which make containers in the pod's namespaces.
pub fn oci_runtimes() -> Vec<Finding> {
    let auto = cli::find("auto").ok();
    let look = |(name, cost): (&str, &str)| match cli::in_path(name) {
        Some(path) if auto.as_ref() == Some(&path) => Finding::yes(name, format!("{} (what `auto` takes)", version(&path))),
        Some(path) if name == "crun" => {
            Finding::partly(name, version(&path), "it refuses a hybrid cgroup hierarchy, so `auto` takes runc, which takes twice the time")
        }
        Some(path) => Finding::yes(name, version(&path)),
        None => Finding::no(name, "not in PATH", cost),
    };
    let runtimes = [
        ("crun", "containers are made by runc, which takes twice the time"),
        ("runc", "containers are made by crun, which cannot work on a hybrid cgroup hierarchy"),
    ];
    runtimes.into_iter().map(look).collect()
}

/// The hypervisors, and the kernel and initramfs that guests boot.
pub fn vmms(places: &Places) -> Vec<Finding> {
    let qemu = format!("qemu-system-{}", std::env::consts::ARCH);
    let vmm = match cli::in_path(&qemu) {
        Some(path) => Finding::yes("qemu", version(&path)),
        None => Finding::no("qemu", "not in PATH", "no pods in microVMs (magnetar-qemu)"),
    };
    // magnetar-vmm is PREFIX/libexec/magnetar/magnetar-vmm, and the guest's files are below the
    // same PREFIX.
    let prefix = places.find("vmm").ok().and_then(|program| program.ancestors().nth(3).map(Path::to_path_buf));
    vec![vmm, cloud_hypervisor(), guest(prefix.as_deref())]
}

fn cloud_hypervisor() -> Finding {
    let (name, cost) = ("cloud-hypervisor", "no pods in microVMs by Cloud Hypervisor (magnetar-clh)");
    match cli::in_path(name) {
        Some(path) => judged(name, version(&path), cost),
        None => Finding::no(name, "not in PATH", cost),
    }
}

/// Whether this version of Cloud Hypervisor can be used. One that is unknown may work.
fn judged(name: &'static str, version: String, cost: &'static str) -> Finding {
    match version.split('.').next().and_then(|major| major.parse::<u32>().ok()) {
        Some(major) if major < LEAST_CLOUD_HYPERVISOR => {
            Finding::no(name, format!("{version} is older than {LEAST_CLOUD_HYPERVISOR}"), cost)
        }
        _ => Finding::yes(name, version),
    }
}

/// The kernel and the initramfs of guests.
fn guest(prefix: Option<&Path>) -> Finding {
    let (name, cost) = ("guest", "no pods in microVMs, unless [vm] of their handlers names other files");
    let Some(prefix) = prefix else {
        return Finding::no(name, "magnetar-vmm is not installed", "no pods in microVMs");
    };
    let missing_in = |folder: &Path| ["vmlinux", "initramfs"].into_iter().filter(|file| !folder.join(file).is_file()).collect::<Vec<_>>();
    let [own, debians] = ["guest-own", "guest"].map(|guest| prefix.join("share/magnetar").join(guest));
    // As magnetar-vmm chooses.
    let folder = if missing_in(&own).is_empty() { own } else { debians };
    let missing = missing_in(&folder);
    if missing.is_empty() {
        Finding::yes(name, folder.display().to_string())
    } else {
        Finding::partly(name, format!("{} without {}", folder.display(), missing.join(", ")), cost)
    }
}

/// The engines that run Wasm modules.
pub fn engines(places: &Places) -> Vec<Finding> {
    // The engine's programs are not sandboxers, but are in the same folder.
    let built_in = match (places.find("wasmtime"), places.find("wasmtime-compiler")) {
        (Ok(path), Ok(_)) => Finding::yes("wasmtime", path.display().to_string()),
        (Ok(_), Err(_)) => Finding::no("wasmtime", "magnetar-wasmtime-compiler is not installed", "no handler magnetar-wasmtime"),
        (Err(_), _) => Finding::no("wasmtime", "magnetar-wasmtime is not installed", "no handler magnetar-wasmtime"),
    };
    let library = LIBRARIES.iter().find_map(|folder| {
        let names = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.file_name());
        names.into_iter().find(|name| name.to_string_lossy().starts_with("libwasmedge.so")).map(|name| Path::new(folder).join(name))
    });
    vec![
        built_in,
        match (places.find("wasmedge"), library) {
            (Ok(_), Some(path)) => Finding::yes("wasmedge", path.display().to_string()),
            (Ok(_), None) => Finding::no("wasmedge", "no libwasmedge", "no handler magnetar-wasmedge"),
            (Err(_), _) => Finding::no("wasmedge", "magnetar-wasmedge is not installed", "no handler magnetar-wasmedge"),
        },
        llama_server(Path::new(CONFIG_DIR)),
    ]
}

/// The engine of language models, as the handlers of Wasm modules would find it.
fn llama_server(config: &Path) -> Finding {
    let found = ["wasmtime", "wasmedge"].map(|kind| {
        let of_kind = of_kind(config, Some(kind)).and_then(|options| LLAMA_SERVER.find(&options.runtime.llama_server));
        of_kind.map(|path| path.display().to_string()).map_err(|error| error.to_string())
    });
    let cost = "no language models for Wasm modules (wasi_ephemeral_nn)";
    match found {
        [Ok(one), Ok(other)] if one == other => Finding::yes(LLAMA_SERVER.name, one),
        [Ok(one), Ok(other)] => Finding::yes(LLAMA_SERVER.name, format!("{one} for magnetar-wasmtime, {other} for magnetar-wasmedge")),
        [Ok(found), Err(why)] => Finding::partly(LLAMA_SERVER.name, found, &format!("{cost} of magnetar-wasmedge: {why}")),
        [Err(why), Ok(found)] => Finding::partly(LLAMA_SERVER.name, found, &format!("{cost} of magnetar-wasmtime: {why}")),
        [Err(why), Err(_)] => Finding::no(LLAMA_SERVER.name, why, cost),
    }
}

/// A program's version, from the first line of its `--version`, and its path.
pub fn version(path: &Path) -> String {
    let said = Command::new(path).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
    let first = said.ok().and_then(|output| String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned));
    match first.as_deref().and_then(number) {
        Some(number) => format!("{number} ({})", path.display()),
        None => path.display().to_string(),
    }
}

/// The first word of a line that looks like a version.
pub fn number(line: &str) -> Option<&str> {
    let candidate = |word: &&str| word.contains('.') && word.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit());
    line.split([' ', ',', '(', ')']).find(candidate).map(|word| word.trim_start_matches('v'))
}

/// The first of these files that exists.
pub fn first(paths: &[&str]) -> Option<PathBuf> {
    paths.iter().map(PathBuf::from).find(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn a_guest_needs_a_kernel_and_an_initramfs() {
        assert_eq!(guest(None).state, State::No);
        let prefix = tempfile::tempdir().unwrap();
        let folder = prefix.path().join("share/magnetar/guest");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("vmlinux"), "").unwrap();
        assert!(guest(Some(prefix.path())).found.ends_with("guest without initramfs"));
        std::fs::write(folder.join("initramfs"), "").unwrap();
        assert_eq!(guest(Some(prefix.path())).state, State::Yes);
    }

    #[test]
    fn llama_server_is_looked_for_where_the_handlers_options_say() {
        let options = tempfile::tempdir().unwrap();
        let configure = |kind: &str, program: &str| {
            let text = format!("sandboxer = \"wasm\"\n[runtime]\nname = {kind:?}\nllama_server = {program:?}\n");
            std::fs::write(options.path().join(format!("{kind}.toml")), text).unwrap();
        };
        let found = || llama_server(options.path());
        configure("wasmtime", "/bin/sh");
        configure("wasmedge", "/bin/sh");
        assert_eq!((found().state, found().found), (State::Yes, "/bin/sh".to_owned()));
        configure("wasmedge", "/nowhere/llama-server");
        assert_eq!(found().state, State::Partly);
        assert!(found().cost.contains("of magnetar-wasmedge: /nowhere/llama-server, which is configured"), "{:?}", found());
        configure("wasmtime", "/nowhere/llama-server");
        assert_eq!(found().state, State::No);
    }

    #[test]
    fn an_old_cloud_hypervisor_cannot_be_used() {
        for (version, state) in
            [("53.0 (/usr/bin/cloud-hypervisor)", State::Yes), ("38.0 (/p)", State::No), ("/p/cloud-hypervisor", State::Yes)]
        {
            assert_eq!(judged("cloud-hypervisor", version.to_owned(), "").state, state, "{version}");
        }
    }

    #[test]
    fn versions_are_found_in_the_output_of_programs() {
        for (line, wanted) in [
            ("runc version 1.3.6", Some("1.3.6")),
            ("crun version 1.28", Some("1.28")),
            ("QEMU emulator version 11.1.0 (Debian 1:11.1.0+ds-2)", Some("11.1.0")),
            ("cloud-hypervisor v52.0", Some("52.0")),
            ("containerd github.com/containerd/containerd/v2 v2.1.9 1c4457e00facac03ce1d75f7b6777a7a851e5c41", Some("2.1.9")),
            ("containerd github.com/containerd/containerd/v2 2.1.9~ds1 ", Some("2.1.9~ds1")),
            ("no number here.", None),
            ("", None),
        ] {
            assert_eq!(number(line), wanted, "{line}");
        }
    }
}
