// SPDX-License-Identifier: Apache-2.0
//! A pod as a virtual machine: its cgroup, files and network on the host, and the machine itself.
//!
//! This process and the machine's processes share the pod's network namespace. They also have a
//! mount namespace of their own, so the pod's mounts disappear with it. The machine's processes are
//! in the pod's cgroup, which accounts for what they use.

mod cleanup;
mod devices;
mod refusals;
mod template;

use crate::config::{ExtraNeeds, VmConfig};
use crate::host::forward::{self, Forwarder};
use crate::host::share::Share;
use crate::host::vsock::{self, Vsock};
use crate::host::{acceleration, capacity, huge_pages, network};
use crate::hypervisor::{Hypervisor, Sharing};
use crate::machine::devices::VIRTIOFSD;
use crate::machine::spec::{Nic, Users, Virtiofs, VmSpec};
use crate::machine::{BootContext, Machine, files};
use crate::relay::{Relay, Running, guest};
use cleanup::Cleanup;
use magnetar_core::cgroup::devices::Exceptions;
use magnetar_core::cgroup::stats::{self, Metrics};
use magnetar_core::cgroup::{Cgroup, OwnedCgroup, oom};
use magnetar_core::confined::confinement;
use magnetar_core::error::{Code, Context, Error, Result};
use magnetar_core::home::{self, Home, namespace};
use magnetar_core::hooks::{self, Hooks};
use magnetar_core::pod_config::{NamespaceMode, PodConfig, Resources};
use magnetar_core::reaper::Exit;
use magnetar_core::record::{PodDir, PodRecord};
use magnetar_core::sandbox::{Death, PodRequest, Sandboxer, Single, reply};
use magnetar_core::sandbox_files::{SandboxFiles, hostname};
use magnetar_core::server::Parts;
use magnetar_vm_agent_api::network::Network;
use magnetar_vm_agent_api::{HELLO, Purpose, Request, Setup};
use nix::sched::{CloneFlags, setns, unshare};
use refusals::{no_host_network, refuse};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use template::Templates;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How long the agent may take to set up the pod in the guest, in software emulation on a busy
/// host.
const SET_UP_TIMEOUT: Duration = Duration::from_secs(60);

/// The one pod of this process.
pub struct VmPod {
    hypervisor: Arc<dyn Hypervisor>,
    config: VmConfig,
    dir: PodDir,
    record: PodRecord,
    relay: Relay,
    parts: Parts,
    state: State,
    /// What to remove when the pod ends, oldest first.
    cleanups: Vec<Cleanup>,
    templates: Templates,
    /// The block devices that the machine's processes may open.
    exceptions: Arc<Exceptions>,
}

/// The pod's phase.
enum State {
    /// Not created yet.
    New,
    /// Everything on the host is made.
    Created {
        /// The request to create it.
        request: Box<PodRequest>,
        /// The host's files that the guest will see.
        share: Share,
    },
    /// The machine has booted.
    Running {
        /// The machine.
        machine: Machine,
        /// Forwards connections to the pod's loopback. `None` until the guest is set up, and where
        /// the host's kernel cannot do it.
        forwarder: Option<Forwarder>,
    },
    /// Stopped.
    Gone,
}

impl VmPod {
    /// A new pod. Makes nothing on the host yet.
    pub fn new(hypervisor: Arc<dyn Hypervisor>, config: VmConfig, dir: PodDir, record: PodRecord, relay: Relay, parts: Parts) -> Self {
        Self {
            hypervisor,
            config,
            dir,
            record,
            relay,
            parts,
            state: State::New,
            cleanups: Vec::new(),
            templates: Templates::default(),
            exceptions: Arc::new(Exceptions::Folder(None)),
        }
    }

    /// Whether the host's kernel has killed a process because the pod's cgroup was full.
    fn ran_out_of_memory(&self) -> bool {
        self.cgroup().is_ok_and(|cgroup| oom::oom_kills(&cgroup) > 0)
    }

    /// The cgroup of the machine's processes.
    fn cgroup(&self) -> Result<Cgroup> {
        let path = self.record.cgroup.as_deref().ok_or_else(|| Error::precondition("the sandbox was not created"))?;
        Cgroup::at(path)
    }

    /// The directory of the machine's sockets and console log.
    fn vm_dir(&self) -> PathBuf {
        self.dir.path().join("vm")
    }

    fn spec(&self, pod: &PodConfig, huge_pages: u32, nics: Vec<Nic>, vsock: Vsock, share: Virtiofs) -> Result<VmSpec> {
        let (traits, name) = (self.hypervisor.traits(), self.hypervisor.name());
        let program = std::env::current_exe().context(|| "cannot find the path of this program".into())?;
        let [kernel, initramfs] = self.config.guest_files(traits.guests, &program);
        for file in [&kernel, &initramfs] {
            if !file.is_file() {
                return Err(Error::precondition(format!("there is no {}, which the virtual machine starts from", file.display())));
            }
        }
        let beyond = ExtraNeeds { has_unlimited_container: has_unlimited_container(pod)?, huge_pages };
        let host = capacity::of_host();
        let size = self.config.size(pod, beyond, host);
        if self.config.huge_pages {
            huge_pages::check_host(size.memory_mib)?;
        }
        let dir = self.vm_dir();
        let mut parameters = vec![format!("magnetar.log={}", self.record.config.log_level)];
        match vsock {
            Vsock::User { .. } | Vsock::Own => parameters.push(HELLO.into()),
            Vsock::Kernel(_) => {}
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
            most: self.config.most(size, host),
            acceleration: acceleration::choose(self.config.acceleration, name, traits.emulates)?,
            share: Some(share),
            vsock,
            nics,
            dir,
            users: Users::of(std::process::id()),
        })
    }

    async fn create_pod(&mut self, request: &PodRequest) -> Result<Share> {
        let config = &request.config;
        let netns = request.netns.as_deref().ok_or_else(no_host_network)?;
        let netns = namespace(netns)?;
        let files = SandboxFiles::new(&self.record.config.containerd, &self.record.sandbox, &self.dir);
        let cgroup = home::pod_cgroup(self.record.sandbox.as_str(), config.cgroup_parent.as_deref());
        let home = self.make_cgroup(cgroup, config)?;
        self.cleanups.push(Cleanup::Files(files.clone()));
        // /dev/shm is in the guest, so nothing is mounted for it here.
        files.create(&PodConfig { ipc: NamespaceMode::Node, ..config.clone() }, Path::new("/etc"))?;
        self.relay.keep_published(files);
        let share = self.make_share()?;
        self.cleanups.push(Cleanup::InNetwork(home));
        setns(netns, CloneFlags::CLONE_NEWNET).context(|| "cannot enter the pod's network namespace".into())?;
        Ok(share)
    }

    /// The sandbox of a container without a pod. The client sets up its network before Start: in
    /// hooks, or once it knows the process id.
    async fn create_single(&mut self, request: &PodRequest, single: &Single) -> Result<Share> {
        let Hooks { prestart, create_runtime, create_container, start_container, poststart, poststop: _ } = &single.hooks;
        let inside = [("createContainer", create_container), ("startContainer", start_container), ("poststart", poststart)];
        if let Some((name, _)) = inside.into_iter().find(|(_, hooks)| !hooks.is_empty()) {
            return Err(Error::unimplemented(format!("the container has {name} hooks, which cannot run outside its virtual machine")));
        }
        let netns = request.netns.as_deref().map(namespace).transpose()?;
        let cgroup = single.sandbox_cgroup();
        // The client chose the name. Processes that are already in that cgroup would be killed with
        // this container.
        OwnedCgroup::claim(&cgroup)?;
        let home = self.make_cgroup(cgroup, &request.config)?;
        self.cleanups.push(Cleanup::InNetwork(home.clone()));
        match netns {
            Some(netns) => setns(netns, CloneFlags::CLONE_NEWNET).context(|| "cannot enter the container's network namespace".into())?,
            None => {
                unshare(CloneFlags::CLONE_NEWNET).context(|| "cannot make a network namespace".into())?;
                network::raise_loopback().await?;
            }
        }
        self.relay.set_single();
        self.cleanups.push(Cleanup::Hooks(home.clone(), Box::new(single.clone())));
        let state = single.state("creating", std::process::id());
        hooks::run(prestart, &state, home.network(), &self.parts.reaper).await?;
        hooks::run(create_runtime, &state, home.network(), &self.parts.reaper).await?;
        // The hooks above must run in the host's mount namespace, so this comes after them.
        self.make_share()
    }

    /// Makes the cgroup of the machine's processes. Returns the network namespace to go back to.
    fn make_cgroup(&mut self, path: String, config: &PodConfig) -> Result<Arc<Home>> {
        (self.record.cgroup, self.record.parent) = (Some(path.clone()), config.cgroup_parent.clone());
        self.record.name = config.full_name();
        self.dir.write_pod(&self.record)?;
        self.cleanups.push(Cleanup::Cgroup);
        let home = Home::remember()?;
        let cgroup = Cgroup::at(&path)?;
        cgroup.create()?;
        self.exceptions = Arc::new(devices::confine(&cgroup)?);
        Ok(Arc::new(home))
    }

    fn make_share(&mut self) -> Result<Share> {
        let share = Share::make(self.dir.path())?;
        self.cleanups.push(Cleanup::Share(share.clone()));
        Ok(share)
    }

    /// Boots the pod's machine. If a later step fails, [`stop`](Sandboxer::stop) switches the
    /// machine off.
    async fn boot(&mut self, request: &PodRequest, share: &Share, huge_pages: u32) -> Result<(Machine, Network)> {
        let (traits, name) = (self.hypervisor.traits(), self.hypervisor.name());
        match traits.sharing {
            Sharing::Virtiofs => {}
            Sharing::BlockOnly => {
                return Err(Error::unimplemented(format!("{name} has no virtiofs, which pods need so far")));
            }
        }
        let virtiofsd = VIRTIOFSD.find("")?;
        // Called in the pod's network namespace, where its connections are made later.
        let vsock = vsock::choose(self.config.vsock, name, traits.vsocks)?;
        let moved = Home::move_in(&self.record, Vec::new())?;
        self.parts.tasks.spawn(async move {
            if let Ok(Err(error)) = moved.await {
                warn!(%error, "cannot move the sandbox process to its own cgroup; it stays in the cgroup where it was started");
            }
        });
        let cgroup = self.cgroup()?;
        self.cleanups.push(Cleanup::Taps);
        let network::Attached { mut network, nics } = network::attach().await?;
        let dir = self.vm_dir();
        std::fs::DirBuilder::new().mode(0o700).create(&dir).context(|| format!("cannot make {}", dir.display()))?;
        let (directory, socket) = (share.dir().to_owned(), dir.join(files::SHARE));
        let shared = Virtiofs { program: virtiofsd, directory, socket, is_cached: self.config.cache_files };
        let spec = self.spec(&request.config, huge_pages, nics, vsock, shared)?;
        let template = self.find_template(&spec, &mut network, share)?;
        let context = BootContext {
            secret: share.write_secret()?,
            cgroup: &cgroup,
            exceptions: self.exceptions.clone(),
            template: template.as_ref(),
        };
        let (on_event, on_end) = (self.relay.clone(), self.relay.clone());
        let hypervisor = self.hypervisor.clone();
        let machine =
            Machine::boot(hypervisor, spec, &context, &self.parts, move |event| on_event.handle_event(event), move || on_end.end_all())
                .await?;
        self.state = State::Running { machine: machine.clone(), forwarder: None };
        share.remove_secret()?;
        Ok((machine, network))
    }

    /// Starts forwarding connections from the pod's loopback to the guest. Where the host's kernel
    /// cannot do that, the pod runs without it.
    fn forward(&self, machine: &Machine) -> Result<Option<Forwarder>> {
        let guest = machine.guest.clone();
        let dial = move |port| {
            let guest = guest.clone();
            async move { guest.dial(Purpose::Forward { port }).await }
        };
        match forward::start(&self.parts.tasks, &CancellationToken::new(), dial) {
            Err(error) if error.code() == Code::Unimplemented => {
                warn!(%error, "port-forward does not work for this pod");
                Ok(None)
            }
            forwarder => forwarder.map(Some),
        }
    }
}

impl Sandboxer for VmPod {
    async fn create(&mut self, request: &PodRequest) -> Result<()> {
        refuse(&request.config)?;
        let share = match &request.single {
            None => self.create_pod(request).await?,
            Some(single) => self.create_single(request, single).await?,
        };
        self.state = State::Created { request: Box::new(request.clone()), share };
        Ok(())
    }

    async fn start(&mut self) -> Result<u32> {
        let State::Created { request, share } = &self.state else {
            return Err(Error::precondition("the sandbox was not created, or was started before"));
        };
        let (request, share) = (request.clone(), share.clone());
        // Computed once, so that the machine's memory fits the pages that its agent reserves.
        let huge_pages = huge_pages(&request.config)?;
        let (machine, network) = self.start_machine(&request, &share, huge_pages).await?;
        let config = &request.config;
        let setup = Setup {
            sandbox: self.record.sandbox.to_string(),
            now: guest::now(),
            hostname: hostname(config),
            sysctls: config.sysctl_files(true),
            huge_pages,
            network,
        };
        machine.guest.ask(Request::SetUp(Box::new(setup)), SET_UP_TIMEOUT).await?;
        let forwarder = self.forward(&machine)?;
        confinement::confine_this_process()?;
        let Machine { guest, hypervisor, start, most, pid, death, condemn, .. } = machine.clone();
        let sizing = self.config.sizing(start, most, huge_pages);
        self.relay.set_running(Running { guest, share, hypervisor, sizing, pid, death, condemn });
        self.state = State::Running { machine, forwarder };
        self.make_template();
        Ok(std::process::id())
    }

    async fn stop(&mut self) -> Result<()> {
        self.relay.close().await;
        self.leave_template().await;
        if let State::Running { machine, forwarder } = &mut self.state {
            *forwarder = None;
            machine.switch_off().await;
        }
        self.state = State::Gone;
        while let Some(cleanup) = self.cleanups.last() {
            cleanup.run(&self.record, &self.parts.reaper).await?;
            self.cleanups.pop();
        }
        Ok(())
    }

    fn metrics(&self) -> Result<Metrics> {
        let cgroup = home::accounted(&self.record)?;
        stats::metrics(&cgroup.ok_or_else(|| Error::precondition("the sandbox has no cgroup: it was not created"))?)
    }

    fn resize(&mut self, resources: Resources, outcome: oneshot::Sender<Result<()>>) {
        match home::check_parent(&self.record, &resources) {
            Ok(()) => self.relay.resize_pod(resources, outcome),
            Err(error) => reply(outcome, Err(error)),
        }
    }

    async fn died(&mut self) -> Death {
        let State::Running { machine, .. } = &self.state else { return std::future::pending().await };
        let mut death = machine.death.clone();
        let reason = match death.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(reason)) => reason.clone(),
            Ok(None) | Err(_) => "the reason is unknown".into(),
        };
        let reason = if self.ran_out_of_memory() {
            format!("{reason}; the host has killed a process of the pod for memory: its RuntimeClass needs more overhead").into()
        } else {
            reason
        };
        Death { exit: Exit::killed(), reason }
    }
}

/// How many huge pages the pod asks for. The kubelet does not state it, but sets the limit of the
/// pod's cgroup to it (zero for a pod that asks for none). With its default configuration,
/// containerd does not pass on what containers ask for.
fn huge_pages(config: &PodConfig) -> Result<u32> {
    let limits = config.resources.iter().flat_map(|limits| &limits.hugepage_limits);
    let said = huge_pages::pages(limits.map(|(size, limit)| (size.as_str(), *limit)))?;
    let parent = config.cgroup_parent.as_deref().filter(|_| said == 0);
    let limit = parent.map(Cgroup::at).transpose()?.and_then(|parent| parent.huge_page_limit(huge_pages::SIZE));
    limit.map_or(Ok(said), |limit| huge_pages::pages([(huge_pages::SIZE, limit)]))
}

/// Whether a pod has containers with and without a memory limit. The sum of limits does not show
/// that. But the kubelet limits a pod's cgroup only if all containers have a limit
/// (`ResourceConfigForPod`). Without a kubelet's cgroup, only the sum is known.
fn has_unlimited_container(pod: &PodConfig) -> Result<bool> {
    match &pod.cgroup_parent {
        Some(parent) => Ok(Cgroup::at(parent)?.memory_limit().is_none()),
        None => Ok(false),
    }
}
