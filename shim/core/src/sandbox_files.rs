// SPDX-License-Identifier: Apache-2.0
//! Writes the pod's files that containerd's CRI plugin mounts into every container. The sandbox has
//! to write them.
//!
//! ```text
//! <root_dir>/hostname      the pod's hostname, or the host's
//! <root_dir>/hosts         a copy of the host's
//! <root_dir>/resolv.conf   from the pod's DNS configuration, or a copy of the host's
//! <state_dir>/shm          /dev/shm of the pod: a tmpfs, unless the pod uses the host's IPC namespace
//! <home>/…                 the originals of all of them
//! ```
//!
//! Names, contents and modes are those of containerd's own controller
//! (internal/cri/server/podsandbox). With another sandboxer, containerd does not make the two
//! directories. But when it starts, it removes them as orphans, even those of running pods
//! (internal/cri/server/restart.go). So the originals are in a directory of ours. containerd's
//! directories get copies and a bind mount of /dev/shm, which are restored if they are missing.

use crate::config::Containerd;
use crate::error::{Context, Error, Result};
use crate::ids::SandboxId;
use crate::mount::{self, Mount};
use crate::pod_config::{Dns, NamespaceMode, PodConfig};
use crate::record::PodDir;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The size of the pod's /dev/shm: 64 MiB, as with containerd.
const SHM_SIZE: &str = "size=65536k";

/// The files by name.
const FILES: [&str; 3] = ["hostname", "hosts", "resolv.conf"];

/// Where one pod's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxFiles {
    /// The directory of the originals, which only we use.
    pub home: PathBuf,
    /// `<containerd's root>/io.containerd.grpc.v1.cri/sandboxes/<id>`: survives a reboot.
    pub root_dir: PathBuf,
    /// `<containerd's state>/io.containerd.grpc.v1.cri/sandboxes/<id>`: does not survive a reboot.
    pub state_dir: PathBuf,
}

impl SandboxFiles {
    /// The files of `sandbox`: the originals in its directory `pod`, and the copies where
    /// containerd's CRI plugin expects them.
    pub fn new(containerd: &Containerd, sandbox: &SandboxId, pod: &PodDir) -> Self {
        let below = |dir: &Path| dir.join("io.containerd.grpc.v1.cri/sandboxes").join(sandbox.as_str());
        Self { home: pod.path().join("files"), root_dir: below(&containerd.root), state_dir: below(&containerd.state) }
    }

    /// The mounts that [`create`](Self::create) makes, in the order of their removal, for the pod's
    /// record. Write the record before calling it.
    pub fn owned_mounts(&self) -> Vec<PathBuf> {
        vec![self.shm(), self.original_shm()]
    }

    /// The files that [`create`](Self::create) makes, in the directory that survives a reboot.
    pub fn owned_files(&self) -> Vec<PathBuf> {
        FILES.map(|name| self.root_dir.join(name)).into()
    }

    /// The directory that the containers get as /dev/shm: the pod's own, or the host's if the pod
    /// uses the host's IPC namespace.
    pub fn shm_for(&self, config: &PodConfig) -> PathBuf {
        match config.ipc {
            NamespaceMode::Node => PathBuf::from("/dev/shm"),
            NamespaceMode::Pod | NamespaceMode::Container => self.shm(),
        }
    }

    /// Makes the directories, the files and the mount. Existing files are overwritten.
    ///
    /// `host_etc` is the host's /etc, from which hosts and resolv.conf are copied. After an error,
    /// call [`remove`](Self::remove), because part of it may have been made.
    ///
    /// # Errors
    ///
    /// If something cannot be read, written or mounted; `FailedPrecondition` if the pod wants the
    /// host's /dev/shm and there is none.
    pub fn create(&self, config: &PodConfig, host_etc: &Path) -> Result<()> {
        make_dir(&self.home, 0o711)?;
        self.write("hostname", &format!("{}\n", hostname(config)))?;
        self.write("hosts", &read(&host_etc.join("hosts"))?)?;
        self.write("resolv.conf", &resolv_conf(config, host_etc)?)?;
        if config.ipc == NamespaceMode::Node {
            let shm = self.shm_for(config);
            if !shm.is_dir() {
                return Err(Error::precondition(format!("the pod uses the host's ipc namespace, but the host has no {}", shm.display())));
            }
        } else {
            make_dir(&self.original_shm(), 0o700)?;
            let options = ["nosuid", "nodev", "noexec", "mode=1777", SHM_SIZE].map(str::to_owned);
            Mount::parse("tmpfs", "shm", &options)?.mount_at(&self.original_shm())?;
        }
        self.publish()
    }

    /// Restores what is missing in containerd's directories. Call it before a container is made.
    ///
    /// # Errors
    ///
    /// If something cannot be copied or mounted.
    pub fn publish(&self) -> Result<()> {
        if !self.home.is_dir() {
            // There is no pod, or its containers are not made by containerd's CRI plugin.
            return Ok(());
        }
        make_dir(&self.root_dir, 0o755)?;
        make_dir(&self.state_dir, 0o755)?;
        for (name, copy) in FILES.iter().zip(self.owned_files()) {
            if !copy.exists() {
                fs::copy(self.home.join(name), &copy).context(|| format!("write {}", copy.display()))?;
            }
        }
        let (original, shm) = (self.original_shm(), self.shm());
        if !original.is_dir() || same_mount(&original, &shm) {
            return Ok(());
        }
        make_dir(&shm, 0o700)?;
        Mount::parse("bind", &original.display().to_string(), &["bind".to_owned()])?.mount_at(&shm)
    }

    /// Removes everything that [`create`](Self::create) made and that still exists. It also removes
    /// the two directories, unless they have other content.
    ///
    /// # Errors
    ///
    /// The first error, after everything was tried.
    pub fn remove(&self) -> Result<()> {
        let (original, shm) = (self.original_shm(), self.shm());
        let mut steps = vec![mount::unmount(&shm), remove_dir(&shm), mount::unmount(&original), remove_dir(&original)];
        steps.extend(self.owned_files().iter().map(|file| remove_file(file)));
        steps.extend(FILES.iter().map(|name| remove_file(&self.home.join(name))));
        steps.extend([&self.state_dir, &self.root_dir, &self.home].map(|dir| remove_dir(dir)));
        steps.into_iter().collect()
    }

    fn shm(&self) -> PathBuf {
        self.state_dir.join("shm")
    }

    fn original_shm(&self) -> PathBuf {
        self.home.join("shm")
    }

    fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.home.join(name);
        let what = || format!("write {}", path.display());
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).custom_flags(nix::libc::O_NOFOLLOW);
        let mut file = options.open(&path).context(what)?;
        // The mode is set afterwards, so that it does not depend on our umask.
        file.set_permissions(Permissions::from_mode(0o644)).context(what)?;
        file.write_all(content.as_bytes()).context(what)
    }
}

/// Whether `copy` is a mount of the filesystem at `original`.
fn same_mount(original: &Path, copy: &Path) -> bool {
    match (fs::metadata(original), fs::metadata(copy)) {
        (Ok(original), Ok(copy)) => original.dev() == copy.dev(),
        (Ok(_) | Err(_), Err(_)) | (Err(_), Ok(_)) => false,
    }
}

/// The pod's hostname, or the host's if the pod has none.
pub fn hostname(config: &PodConfig) -> String {
    match config.hostname.as_str() {
        "" => nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        own => own.to_owned(),
    }
}

fn resolv_conf(config: &PodConfig, host_etc: &Path) -> Result<String> {
    match &config.dns {
        Some(dns) => Ok(resolver_lines(dns)),
        None => read(&host_etc.join("resolv.conf")),
    }
}

/// The content of resolv.conf(5) for a configuration; empty for an empty one.
fn resolver_lines(dns: &Dns) -> String {
    let mut lines = String::new();
    if !dns.searches.is_empty() {
        lines += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        lines += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        lines += &format!("options {}\n", dns.options.join(" "));
    }
    lines
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).context(|| format!("read {}", path.display()))
}

/// Makes a directory and its parents, unless they exist.
fn make_dir(path: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).context(|| format!("make {}", path.display()))
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context(|| format!("remove {}", path.display())),
        _ => Ok(()),
    }
}

/// Removes an empty directory. One that is not empty has content that is not ours, and stays.
fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir(path) {
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
            Err(error).context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::tests::in_private_mounts;

    /// A pod's files in `scratch`, and a host's /etc.
    fn fixture(scratch: &Path) -> (SandboxFiles, PathBuf) {
        let host_etc = scratch.join("etc");
        fs::create_dir(&host_etc).unwrap();
        fs::write(host_etc.join("hosts"), "127.0.0.1 localhost\n").unwrap();
        fs::write(host_etc.join("resolv.conf"), "nameserver 9.9.9.9\n").unwrap();
        let below = |name: &str| scratch.join(name).join("pod");
        (SandboxFiles { home: below("home"), root_dir: below("root"), state_dir: below("state") }, host_etc)
    }

    #[test]
    fn resolver_lines_in_the_order_of_containerd() {
        let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let dns = Dns { servers: list(&["1.1.1.1", "::1"]), searches: list(&["a", "b.c"]), options: list(&["ndots:5", "rotate"]) };
        assert_eq!(resolver_lines(&dns), "search a b.c\nnameserver 1.1.1.1\nnameserver ::1\noptions ndots:5 rotate\n");
        assert_eq!(resolver_lines(&Dns::default()), "");
    }

    #[test]
    fn a_pod_on_the_hosts_ipc_has_files_and_no_shm() {
        let scratch = tempfile::tempdir().unwrap();
        let (files, host_etc) = fixture(scratch.path());
        let config = PodConfig { ipc: NamespaceMode::Node, dns: Some(Dns::default()), hostname: "web".into(), ..PodConfig::default() };
        files.create(&config, &host_etc).unwrap();
        let content = |name: &str| fs::read_to_string(files.root_dir.join(name)).unwrap();
        assert_eq!(
            (content("hostname"), content("hosts"), content("resolv.conf")),
            ("web\n".into(), "127.0.0.1 localhost\n".into(), "".into())
        );
        for file in files.owned_files() {
            assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o7777, 0o644);
        }
        assert_eq!(files.shm_for(&config), Path::new("/dev/shm"));
        assert!(!files.shm().exists());
        files.remove().unwrap();
        assert!(!files.root_dir.exists() && !files.state_dir.exists());
        files.remove().unwrap();
    }

    #[test]
    fn remove_keeps_files_that_create_did_not_make() {
        let scratch = tempfile::tempdir().unwrap();
        let (files, host_etc) = fixture(scratch.path());
        files.create(&PodConfig { ipc: NamespaceMode::Node, ..PodConfig::default() }, &host_etc).unwrap();
        assert_eq!(fs::read_to_string(files.root_dir.join("resolv.conf")).unwrap(), "nameserver 9.9.9.9\n");
        fs::write(files.root_dir.join("other"), "").unwrap();
        files.remove().unwrap();
        assert_eq!(fs::read_dir(&files.root_dir).unwrap().count(), 1);
    }

    #[test]
    fn a_pod_with_its_own_ipc_namespace_has_shm() {
        in_private_mounts(|scratch| {
            let (files, host_etc) = fixture(scratch);
            files.create(&PodConfig::default(), &host_etc).unwrap();
            assert_eq!(mount::mounts_below(scratch).unwrap()[..2], files.owned_mounts());
            assert_eq!(fs::metadata(files.shm()).unwrap().permissions().mode() & 0o7777, 0o1777);
            let shm = rustix::fs::statvfs(files.shm()).unwrap();
            assert_eq!(shm.f_blocks * shm.f_frsize, 64 << 20);
            fs::write(files.shm().join("in-use"), "").unwrap();
            // As if containerd restarts and takes the pod for an orphan.
            mount::unmount(&files.shm()).unwrap();
            fs::remove_dir_all(&files.state_dir).unwrap();
            fs::remove_dir_all(&files.root_dir).unwrap();
            files.publish().unwrap();
            files.publish().unwrap();
            assert!(files.shm().join("in-use").exists(), "the same /dev/shm");
            assert_eq!(mount::mounts_below(scratch).unwrap()[..2], files.owned_mounts());
            assert!(files.owned_files().iter().all(|file| file.exists()));
            files.remove().unwrap();
            assert!(!files.state_dir.exists());
            files.remove().unwrap();
        });
    }
}
