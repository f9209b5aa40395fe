// SPDX-License-Identifier: Apache-2.0
//! A hypervisor for the tests: a shell whose guest is a task of the test. Its abilities are the
//! opposite of QEMU's: no virtiofs, its own vsock, no disks. No other file of this program knows
//! it.

use super::*;
use crate::host::vsock::Vsock;
use crate::machine::spec::Users;
use crate::machine::{BootContext, Machine};
use magnetar_core::cgroup::devices::Exceptions;
use magnetar_core::cgroup::{Cgroup, OwnedCgroup};
use magnetar_core::error::{Code, Context};
use magnetar_core::events::Events;
use magnetar_core::idle::Idle;
use magnetar_core::program::Program;
use magnetar_core::reaper::Reaper;
use magnetar_core::server::Parts;
use magnetar_vm_agent_api::secret::{LENGTH, Secret};
use magnetar_vm_agent_api::{Answer, Event, Opened, Opening, Purpose, READY_PORT, Request, frame};
use std::io::Write;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::task::TaskTracker;

const SHELL: Program = Program { name: "sh", places: &[], remedy: "install Debian's package dash" };

/// The exit code that means that the guest has ended.
const GUEST_ENDED: u32 = 7;

struct Shell {
    /// What the shell runs, which also decides how it ends.
    script: &'static str,
    /// Whether its guest stays silent.
    is_mute: bool,
    tasks: TaskTracker,
}

/// A control connection that cannot attach disks.
struct Bare;

impl Control for Bare {
    fn state(&mut self) -> Promise<'_, MachineState> {
        Box::pin(async { Ok(MachineState::Running) })
    }

    fn disks(&mut self) -> Option<&mut dyn HotPlug> {
        None
    }
}

impl Hypervisor for Shell {
    fn name(&self) -> &'static str {
        "the tests' own"
    }

    fn traits(&self) -> Traits {
        Traits {
            emulates: true,
            sharing: Sharing::BlockOnly,
            vsocks: VsockSupport { kernel: false, user: false, own: true },
            guests: &["guest-of-tests"],
        }
    }

    fn plan<'a>(&self, _spec: &'a VmSpec, vsock: VsockAttachment<'a>) -> Invocation<'a> {
        let VsockAttachment::Own(socket) = vsock else { panic!("{vsock:?} is none of its traits") };
        let mut invocation = Invocation::new(&SHELL.find("").unwrap());
        invocation.arguments(["-c".into(), self.script.into(), "sh".into(), socket.as_os_str().to_owned()]);
        invocation
    }

    /// Its guest sends the first message, and answers every connection.
    fn begin<'a>(&'a self, spec: &'a VmSpec) -> Promise<'a, Box<dyn Control>> {
        Box::pin(async {
            let directory = spec.vsock_directory().unwrap();
            let listener = UnixListener::bind(directory.host()).context(|| "cannot listen".into())?;
            if self.is_mute {
                return std::future::pending().await;
            }
            UnixStream::connect(directory.path().join(format!("host_{READY_PORT}"))).await.context(|| "cannot say hello".into())?;
            self.tasks.spawn(async move {
                let connections = TaskTracker::new();
                while let Ok((stream, _)) = listener.accept().await {
                    connections.spawn(answer(stream));
                }
            });
            Ok(Box::new(Bare) as Box<dyn Control>)
        })
    }

    fn verdict(&self, exit: Exit) -> Verdict {
        if exit.code == GUEST_ENDED { Verdict::Guest } else { Verdict::Hypervisor }
    }
}

/// An agent that answers every request with success.
async fn answer(mut host: UnixStream) -> std::io::Result<()> {
    while host.read_u8().await? != b'\n' {}
    host.write_all(b"OK 1\n").await?;
    let opening: Opening = frame::read(&mut host, frame::FROM_HOST).await?;
    assert!(Secret::new([7; LENGTH]).is_said(&mut host).await?);
    frame::write(&mut host, &Opened::Ready).await?;
    if opening.purpose == Purpose::Events {
        frame::write(&mut host, &Event::OutOfMemory { container: "c".into() }).await?;
        return std::future::pending().await;
    }
    loop {
        let _request: Request = frame::read(&mut host, frame::FROM_HOST).await?;
        frame::write(&mut host, &Answer::Done).await?;
    }
}

/// Runs `test` with a machine of this hypervisor, and the events of its guest.
async fn with_machine(cgroup: &Cgroup, shell: Shell, test: impl AsyncFnOnce(Result<Machine>, Arc<Mutex<Vec<Event>>>)) {
    let dir = tempfile::tempdir().unwrap();
    let me = rustix::process::geteuid().as_raw();
    let spec = VmSpec {
        share: None,
        vsock: Vsock::Own,
        dir: dir.path().to_owned(),
        users: Users { hypervisor: me, vsock: me },
        ..VmSpec::of_tests(0)
    };
    let (reaper, reap) = Reaper::start().unwrap();
    let tasks = shell.tasks.clone();
    let ((events, _events), (idle, _give_back)) = (Events::queue(), Idle::new());
    let parts = Parts { reaper, events, idle, tasks: tasks.clone() };
    let received = Arc::<Mutex<Vec<Event>>>::default();
    let sink = received.clone();
    let context = BootContext { secret: Secret::new([7; LENGTH]), cgroup, exceptions: Arc::new(Exceptions::Folder(None)), template: None };
    let run = async {
        let machine = Machine::boot(Arc::new(shell), spec, &context, &parts, move |event| sink.lock().unwrap().push(event), || {}).await;
        test(machine, received).await;
    };
    tokio::select! {
        () = reap => unreachable!("reaping does not end"),
        () = run => {}
    }
}

async fn reason(machine: &Machine) -> String {
    let mut death = machine.death.clone();
    let reason = tokio::time::timeout(Duration::from_secs(20), death.wait_for(Option::is_some)).await.expect("it does not end");
    reason.unwrap().as_deref().unwrap().to_owned()
}

/// All cases in one test, in its own process: machines need the process's one reaper, which would
/// reap other tests' children.
#[test]
fn a_second_hypervisor_boots_a_machine_and_says_how_it_ended() {
    const ALONE: &str = "MAGNETAR_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name = "hypervisor::tests::a_second_hypervisor_boots_a_machine_and_says_how_it_ended";
        let mut alone = Command::new(std::env::current_exe().unwrap());
        assert!(alone.args([name, "--exact", "--nocapture"]).env(ALONE, "").status().unwrap().success());
        return;
    }
    let name = format!("magnetar-test-{}", std::process::id());
    let cgroup = Cgroup::at(&format!("/{name}")).unwrap();
    if let Err(error) = cgroup.create() {
        // Written past libtest's capture, so that a skipped test is seen.
        let _unheard = writeln!(std::io::stderr(), "skipped: a cgroup of our own needs root ({error})");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        is_switched_off(&cgroup).await;
        has_a_verdict(&cgroup).await;
        fails_to_start(&cgroup).await;
        OwnedCgroup::recorded(&format!("/{name}"), &name, false).unwrap().remove(Duration::from_secs(5)).await.unwrap();
    });
}

fn shell(script: &'static str) -> Shell {
    Shell { script, is_mute: false, tasks: TaskTracker::new() }
}

async fn is_switched_off(cgroup: &Cgroup) {
    with_machine(cgroup, shell("exec sleep 1000"), async |machine, received| {
        let machine = machine.unwrap();
        machine.guest.ask(Request::Ping { now: 0 }, Duration::from_secs(5)).await.unwrap();
        assert_eq!(machine.hypervisor.state().await.unwrap(), MachineState::Running);
        while received.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        // The shell does not end by itself, so it is killed when its time is up.
        machine.switch_off().await;
        assert_eq!(reason(&machine).await, "it was stopped");
    })
    .await;
}

async fn has_a_verdict(cgroup: &Cgroup) {
    for (script, wanted) in [
        ("echo last words; sleep 0.5; exit 7", "the guest has switched itself off; the last line on its console: last words"),
        ("echo wrong >&2; sleep 0.5; exit 1", "the hypervisor ended with code 1: wrong"),
    ] {
        with_machine(cgroup, shell(script), async |machine, _| assert_eq!(reason(&machine.unwrap()).await, wanted)).await;
    }
}

async fn fails_to_start(cgroup: &Cgroup) {
    with_machine(cgroup, Shell { is_mute: true, ..shell("exit 3") }, async |machine, _| {
        let error = machine.err().expect("it has booted");
        assert_eq!((error.code(), error.to_string().contains("ended with code 3")), (Code::Internal, true), "{error}");
    })
    .await;
}

#[test]
fn attaching_a_disk_without_hot_plug_is_refused() {
    let (connection, serve) = connection::Connection::new(Box::new(Bare), None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let refused = async {
        let wanted = connection::WantedDisk { device: crate::host::block::DeviceNumbers { major: 7, minor: 0 }, read_only: true };
        let container = magnetar_core::ids::ContainerId::parse("c").unwrap();
        connection.attach(wanted, &container).await.unwrap_err()
    };
    let error = runtime.block_on(async {
        tokio::select! {
            error = refused => error,
            () = serve => unreachable!("it serves as long as somebody asks"),
        }
    });
    // The other codes are for hosts without this device.
    assert!(matches!(error.code(), Code::Unimplemented | Code::NotFound | Code::PermissionDenied), "{error}");
}

#[test]
fn resizing_a_machine_of_a_fixed_size_is_refused() {
    let (connection, serve) = connection::Connection::new(Box::new(Bare), None);
    assert!(!connection.can_resize());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(async {
        tokio::select! {
            answer = connection.resize(Size { memory_mib: 1, vcpus: 1 }) => answer.unwrap_err(),
            () = serve => unreachable!("it serves as long as somebody asks"),
        }
    });
    assert_eq!(error.code(), Code::Unimplemented);
}
