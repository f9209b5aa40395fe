// SPDX-License-Identifier: Apache-2.0
//! The pod that is a virtual machine: its cgroup, files and network on the host, and the machine.
//!
//! This process and all of the machine's are in the pod's network namespace, and in a mount namespace of their own, so that what
//! the pod has mounted goes with it. The machine's are in the pod's cgroup too, and what they cost is accounted to it.

use crate::acceleration;
use crate::config::{Beyond, VmConfig};
use crate::confinement;
use crate::devices::{VIRTIOFSD, VSOCK_SOCKET};
use crate::forward::{self, Forwarder};
use crate::guest;
use crate::huge;
use crate::hypervisor::Hypervisor;
use crate::machine::{Machine, Making, files};
use crate::network;
use crate::relay::{Relay, Running};
use crate::share::Share;
use crate::spec::{Nic, Users, VmSpec};
use crate::vsock::{self, Vsock};
use magnetar_core::cgroup::devices::{self, BLOCK, CHARACTER, Rule};
use magnetar_core::cgroup::stats::{self, Metrics};
use magnetar_core::cgroup::{Cgroup, OwnedCgroup, oom};
use magnetar_core::error::{Code, Context, Error, Result};
use magnetar_core::home::{self, Home, namespace};
use magnetar_core::hooks::{self, Hooks};
use magnetar_core::pod_config::{NamespaceMode, PodConfig};
use magnetar_core::reaper::Exit;
use magnetar_core::record::{PodDir, PodRecord};
use magnetar_core::sandbox::{Death, PodRequest, Sandboxer, Single};
use magnetar_core::sandbox_files::{SandboxFiles, hostname};
use magnetar_core::server::Parts;
use magnetar_vm_agent_api::{HELLO, Purpose, Request, Setup};
use nix::sched::{CloneFlags, setns, unshare};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How long the agent may take to make the guest the pod, in software emulation on a busy host.
const SET_UP: Duration = Duration::from_secs(60);

/// The devices of the host that a machine's processes may open. Taps, the kernel's vsock and disks they are given open. A guest may
/// have nodes made in its files, as any container may; whoever opens one is stopped here.
const DEVICES: [Rule; 6] = [
    Rule::any_node(CHARACTER),
    Rule::any_node(BLOCK),
    Rule::character(1, Some(3)),    // null
    Rule::character(1, Some(8)),    // random
    Rule::character(1, Some(9)),    // urandom
    Rule::character(10, Some(232)), // kvm
];

/// The one pod of this process.
pub struct VmPod<H> {
    hypervisor: H,
    config: VmConfig,
    dir: PodDir,
    record: PodRecord,
    relay: Relay,
    parts: Parts,
    request: Option<PodRequest>,
    home: Option<Home>,
    files: Option<SandboxFiles>,
    share: Option<Share>,
    machine: Option<Machine>,
    forwarder: Option<Forwarder>,
    /// The container without a pod whose first hooks were run, until its last ones are.
    ran_hooks: Option<Single>,
}

impl<H: Hypervisor> VmPod<H> {
    /// A pod that nothing was made for yet.
    pub fn new(hypervisor: H, config: VmConfig, dir: PodDir, record: PodRecord, relay: Relay, parts: Parts) -> Self {
        let (request, home, files, share, machine) = (None, None, None, None, None);
        Self { hypervisor, config, dir, record, relay, parts, request, home, files, share, machine, forwarder: None, ran_hooks: None }
    }

    /// Whether the host has killed a process of the machine because the pod's cgroup was full.
    fn ran_out_of_memory(&self) -> bool {
        self.cgroup().is_ok_and(|cgroup| oom::oom_kills(&cgroup) > 0)
    }

    /// The cgroup of the machine's processes.
    fn cgroup(&self) -> Result<Cgroup> {
        let path = self.record.cgroup.as_deref().ok_or_else(|| Error::precondition("the sandbox was not created"))?;
        Cgroup::at(path)
    }

    /// Where the machine's sockets and its console's log are.
    fn vm_dir(&self) -> PathBuf {
        self.dir.path().join("vm")
    }

    fn spec(&self, pod: &PodConfig, huge_pages: u32, nics: Vec<Nic>, vsock: Vsock) -> Result<VmSpec> {
        let program = std::env::current_exe().context(|| "cannot tell where this program is".into())?;
        let kernel = self.config.guest_file(self.config.kernel.as_deref(), "vmlinux", &program);
        let initramfs = self.config.guest_file(self.config.initramfs.as_deref(), "initramfs", &program);
        for file in [&kernel, &initramfs] {
            if !file.is_file() {
                return Err(Error::precondition(format!("there is no {}, which the virtual machine starts from", file.display())));
            }
        }
        let beyond = Beyond { some_unlimited: some_unlimited(pod)?, huge_pages };
        let size =
            self.config.size(pod, beyond, std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)));
        if self.config.huge_pages {
            huge::on_host(size.memory_mib)?;
        }
        let dir = self.vm_dir();
        let mut parameters = vec![format!("magnetar.log={}", self.record.config.log_level)];
        if let Vsock::User { .. } = vsock {
            parameters.push(HELLO.into());
        }
        parameters.extend(self.config.kernel_parameters.split_ascii_whitespace().map(String::from));
        Ok(VmSpec {
            sandbox: self.record.sandbox.clone(),
            kernel,
            initramfs,
            parameters,
            memory_mib: size.memory_mib,
            huge_pages: self.config.huge_pages,
            vcpus: size.vcpus,
            acceleration: acceleration::choose(self.config.acceleration, self.hypervisor.name(), self.hypervisor.capabilities().emulates)?,
            share: dir.join(files::SHARE),
            vsock,
            nics,
            dir,
            users: Users::of(std::process::id()),
        })
    }

    async fn create_pod(&mut self, request: &PodRequest) -> Result<()> {
        let config = &request.config;
        let netns = request.netns.as_deref().ok_or_else(no_host_network)?;
        let netns = namespace(netns)?;
        let files = SandboxFiles::new(&self.record.config.containerd, &self.record.sandbox, &self.dir);
        self.make_cgroup(home::pod_cgroup(self.record.sandbox.as_str(), config.cgroup_parent.as_deref()), config)?;
        self.files = Some(files.clone());
        // /dev/shm is in the guest: nothing is mounted for it here.
        files.create(&PodConfig { ipc: NamespaceMode::Node, ..config.clone() }, Path::new("/etc"))?;
        self.relay.keep_published(files);
        self.share = Some(Share::make(self.dir.path())?);
        setns(netns, CloneFlags::CLONE_NEWNET).context(|| "cannot enter the pod's network namespace".into())
    }

    /// The sandbox of a container without a pod. Its client gives it a network by hooks, or when it knows its process, in both
    /// cases before Start.
    async fn create_single(&mut self, request: &PodRequest, single: &Single) -> Result<()> {
        let Hooks { prestart, create_runtime, create_container, start_container, poststart, poststop: _ } = &single.hooks;
        let inside = [("createContainer", create_container), ("startContainer", start_container), ("poststart", poststart)];
        if let Some((name, _)) = inside.into_iter().find(|(_, hooks)| !hooks.is_empty()) {
            return Err(Error::unimplemented(format!(
                "the container has {name} hooks, which have no place outside of its virtual machine"
            )));
        }
        let netns = request.netns.as_deref().map(namespace).transpose()?;
        let cgroup = single.sandbox_cgroup();
        // Its client has named it, and whoever is in there already would be killed with this container.
        OwnedCgroup::claim(&cgroup)?;
        self.make_cgroup(cgroup, &request.config)?;
        match netns {
            Some(netns) => setns(netns, CloneFlags::CLONE_NEWNET).context(|| "cannot enter the container's network namespace".into())?,
            None => {
                unshare(CloneFlags::CLONE_NEWNET).context(|| "cannot make a network namespace".into())?;
                network::raise_loopback().await?;
            }
        }
        self.relay.is_for_a_single_container();
        if let Some(home) = &self.home {
            // What the first has made the last ones remove, also where a later one fails.
            self.ran_hooks = Some(single.clone());
            let state = single.state("creating", std::process::id());
            hooks::run(prestart, &state, home.network(), &self.parts.reaper).await?;
            hooks::run(create_runtime, &state, home.network(), &self.parts.reaper).await?;
        }
        // Not before: hooks run in the host's mount namespace.
        self.share = Some(Share::make(self.dir.path())?);
        Ok(())
    }

    /// Makes the cgroup of the machine's processes, and remembers where this process is at home.
    fn make_cgroup(&mut self, path: String, config: &PodConfig) -> Result<()> {
        (self.record.cgroup, self.record.parent) = (Some(path.clone()), config.cgroup_parent.clone());
        self.dir.write_pod(&self.record)?;
        self.home = Some(Home::remember()?);
        let cgroup = Cgroup::at(&path)?;
        cgroup.create()?;
        devices::confine(&cgroup, &DEVICES)
    }

    /// Runs the last hooks of a container without a pod. That one fails must not keep it from being removed
    /// (runtime-spec, config.md, "Poststop").
    async fn run_last_hooks(&mut self) {
        let (Some(single), Some(home)) = (self.ran_hooks.take(), &self.home) else { return };
        let state = single.state("stopped", 0);
        if let Err(error) = hooks::run(&single.hooks.poststop, &state, home.network(), &self.parts.reaper).await {
            warn!(%error, "not all that was made for the container may have been removed");
        }
    }
}

impl<H: Hypervisor> Sandboxer for VmPod<H> {
    const FIXED_SIZE: Option<&'static str> =
        Some("a virtual machine keeps the processors and the memory that it was started with: make the pod anew with other limits");

    async fn create(&mut self, request: &PodRequest) -> Result<()> {
        refuse(&request.config)?;
        match &request.single {
            None => self.create_pod(request).await?,
            Some(single) => self.create_single(request, single).await?,
        }
        self.request = Some(request.clone());
        Ok(())
    }

    async fn start(&mut self) -> Result<u32> {
        let (Some(request), Some(share)) = (self.request.clone(), self.share.clone()) else {
            return Err(Error::precondition("the sandbox was not created"));
        };
        if !self.hypervisor.capabilities().virtiofs {
            let what = format!("{} has no virtiofs, without which there are no pods yet", self.hypervisor.name());
            return Err(Error::unimplemented(what));
        }
        let virtiofsd = VIRTIOFSD.find("")?;
        // In the pod's network namespace, where its connections will be made.
        let socket = self.vm_dir().join(files::VSOCK).join(VSOCK_SOCKET);
        let vsock = vsock::choose(self.config.vsock, self.hypervisor.name(), self.hypervisor.capabilities().vsocks, socket)?;
        let moved = Home::move_in(&self.record, Vec::new())?;
        self.parts.tasks.spawn(async move {
            if let Ok(Err(error)) = moved.await {
                warn!(%error, "the sandbox process has no cgroup of its own, and stays where it was started");
            }
        });
        let cgroup = self.cgroup()?;
        let network::Attached { network, nics } = network::attach().await?;
        let dir = self.vm_dir();
        std::fs::DirBuilder::new().mode(0o700).create(&dir).context(|| format!("cannot make {}", dir.display()))?;
        // Asked once: the machine is to have the memory for as many as its agent sets aside.
        let huge_pages = huge_pages(&request.config)?;
        let spec = self.spec(&request.config, huge_pages, nics, vsock)?;
        let making = Making { virtiofsd, share: share.dir(), secret: share.tell_secret()?, cgroup: &cgroup };
        let (told, ended) = (self.relay.clone(), self.relay.clone());
        let machine =
            Machine::boot(&self.hypervisor, spec, &making, &self.parts, move |event| told.told(event), move || ended.all_ended()).await?;
        self.machine = Some(machine.clone());
        share.forget_secret()?;
        let config = &request.config;
        let setup = Setup {
            sandbox: self.record.sandbox.to_string(),
            now: guest::now(),
            hostname: hostname(config),
            sysctls: config.sysctl_files(true),
            huge_pages,
            network,
        };
        machine.guest.ask(Request::SetUp(Box::new(setup)), SET_UP).await?;
        let guest = machine.guest.clone();
        let dial = move |port| {
            let guest = guest.clone();
            async move { guest.dial(Purpose::Forward { port }).await }
        };
        self.forwarder = match forward::start(&self.parts.tasks, &CancellationToken::new(), dial) {
            Ok(forwarder) => Some(forwarder),
            // The pod does without it.
            Err(error) if error.code() == Code::Unimplemented => {
                warn!(%error, "ports of this pod cannot be forwarded");
                None
            }
            Err(error) => return Err(error),
        };
        let disks = self.hypervisor.capabilities().hot_plug.then_some(machine.disks);
        confinement::of_this_process()?;
        self.relay.runs(Running { guest: machine.guest, share, disks, pid: machine.pid, death: machine.death, condemn: machine.condemn });
        Ok(std::process::id())
    }

    async fn stop(&mut self) -> Result<()> {
        self.relay.close().await;
        self.forwarder = None;
        if let Some(machine) = &self.machine {
            machine.switch_off().await;
            // Its end was no death.
            self.machine = None;
        }
        if self.request.is_some() {
            network::detach().await?;
            // Once more would be in the namespace that this process goes back to.
            self.request = None;
        }
        if let Some(share) = &self.share {
            share.remove()?;
        }
        if let Some(files) = &self.files {
            files.remove()?;
        }
        if let Some(home) = &self.home {
            home.leave_network()?;
        }
        self.run_last_hooks().await;
        home::remove_pod_cgroup(&self.record).await?;
        // Not sooner: what has failed is tried again.
        (self.share, self.files, self.home) = (None, None, None);
        Ok(())
    }

    fn metrics(&self) -> Result<Metrics> {
        let cgroup = home::accounted(&self.record)?;
        stats::metrics(&cgroup.ok_or_else(|| Error::precondition("the sandbox has no cgroup: it was not created"))?)
    }

    async fn died(&mut self) -> Death {
        let Some(machine) = &self.machine else { return std::future::pending().await };
        let mut death = machine.death.clone();
        let reason = match death.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(reason)) => reason.clone(),
            Ok(None) | Err(_) => "nobody knows why".into(),
        };
        let reason = if self.ran_out_of_memory() {
            format!("{reason}; the host has killed a process of the pod for memory: its RuntimeClass needs more overhead").into()
        } else {
            reason
        };
        Death { exit: Exit::killed(), reason }
    }
}

/// What a pod in a virtual machine cannot be, said before anything is made.
fn refuse(config: &PodConfig) -> Result<()> {
    if config.network == NamespaceMode::Node {
        return Err(no_host_network());
    }
    let kept = |what: &str| Error::unimplemented(format!("a pod in a virtual machine cannot have {what}: its kernel is not the host's"));
    if config.pid == NamespaceMode::Node {
        return Err(kept("the host's process ids (hostPID)"));
    }
    if config.ipc == NamespaceMode::Node {
        return Err(kept("the host's IPC namespace (hostIPC)"));
    }
    if config.userns.is_some() {
        return Err(kept("a user namespace of the host (hostUsers: false)"));
    }
    huge_pages(config).map(drop)
}

/// How many huge pages the pod is said to want. The kubelet does not say it, but limits the pod's cgroup to them (to none where a pod
/// asks for none). What containers ask for does not come through a containerd that is configured as it comes.
fn huge_pages(config: &PodConfig) -> Result<u32> {
    let limits = config.resources.iter().flat_map(|limits| &limits.hugepage_limits);
    let said = huge::pages(limits.map(|(size, limit)| (size.as_str(), *limit)))?;
    let parent = config.cgroup_parent.as_deref().filter(|_| said == 0);
    let limit = parent.map(Cgroup::at).transpose()?.and_then(|parent| parent.huge_page_limit(huge::SIZE));
    limit.map_or(Ok(said), |limit| huge::pages([(huge::SIZE, limit)]))
}

/// Whether some containers of a pod have no memory limit, though others have. The sum of limits does not tell; but the kubelet
/// limits a pod's cgroup only where all have one (`ResourceConfigForPod`). Where there is no kubelet's cgroup, all that is known is
/// the sum.
fn some_unlimited(pod: &PodConfig) -> Result<bool> {
    match &pod.cgroup_parent {
        Some(parent) => Ok(Cgroup::at(parent)?.memory_limit().is_none()),
        None => Ok(false),
    }
}

fn no_host_network() -> Error {
    Error::unimplemented(
        "a pod in a virtual machine cannot have the host's network (hostNetwork): its kernel has one of its own; use magnetar-runc for this pod",
    )
}
