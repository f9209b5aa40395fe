// SPDX-License-Identifier: Apache-2.0
//! The protocol between the host and the agent in a guest.
//!
//! ```text
//! host ──vsock, port 1024──> agent
//!      Opening, secret ────>            the connection's purpose and version, and the proof that it is the host's
//!      <──────────── Opened             accepted, or the reason why not
//!      then, by purpose:
//!        Control   Request ──> <── Answer, one after the other
//!        Events    <── Event, Event, …
//!        Tasks     containerd's Task API (ttrpc)
//!        Stream    bytes of one process's input or output
//!        Forward   bytes of a TCP connection to a port in the guest
//! ```
//!
//! The host makes every connection but one, to [`READY_PORT`], which the guest makes only if the
//! host waits for it. So the guest cannot ask for anything. Messages are JSON in frames
//! ([`frame`]); bytes are sent in chunks ([`chunk`]). The [`secret`] is 32 bytes.
//! [`Request::Bundle`] sends the bundle of a container; all else about containers is the Task API.
//!
//! Deliberately absent: paths of the host, and any call that makes the host act.

pub mod chunk;
pub mod frame;
pub mod network;
pub mod secret;

use network::Network;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// The version of this protocol. Raise it with each change that the other side may not understand.
pub const VERSION: u32 = 4;

/// The vsock port on which the agent listens.
pub const PORT: u32 = 1024;

/// The vsock port on which the host waits for the agent's first connection. It has no content: it
/// only shows that the agent listens. Only a guest with [`HELLO`] on its command line makes it.
pub const READY_PORT: u32 = 1025;

/// The message that the agent writes to the console when it ends the machine, followed by `error=`
/// and the reason.
pub const GIVES_UP: &str = "the guest cannot go on";

/// A word of the guest's kernel command line: the host waits at [`READY_PORT`]. It does so if the
/// guest's vsock leads to a socket of this guest alone. If all guests of a host could connect to
/// the port, the host instead connects to the agent until that answers.
pub const HELLO: &str = "magnetar.hello";

/// A word of the guest's kernel command line: the guest becomes a template, from which the machines
/// of pods begin. Its agent writes [`TEMPLATE_READY`] to the console, and waits until the machine
/// has a vsock. Only then is it a pod's, and the share has the pod's secret and [`secret::SEED`].
pub const TEMPLATE: &str = "magnetar.template";

/// The line that the agent of a template writes to the console before it waits.
pub const TEMPLATE_READY: &str = "magnetar: this guest is a template";

/// The tag of the file system that the host shares.
pub const SHARE_TAG: &str = "magnetar";

/// The guest's mount point of the host's share: `<SHARE>/<container>/…`.
pub const SHARE: &str = "/run/magnetar/share";

/// Where the guest has the bundles of containers.
pub const BUNDLES: &str = "/run/magnetar/bundles";

/// Where the guest has the FIFOs of processes.
pub const STREAMS: &str = "/run/magnetar/streams";

/// Where the guest has volumes that live in its memory.
pub const MEMORY: &str = "/run/magnetar/memory";

/// The pod's /dev/shm in the guest.
pub const SHM: &str = "/run/magnetar/shm";

/// The PID namespace of a pod whose containers share one.
pub const PID_NAMESPACE: &str = "/run/magnetar/pid";

/// The cgroup of all containers in the guest.
pub const CGROUP: &str = "/pod";

/// How long the guest's kernel may take to find an attached disk, in software emulation on a busy
/// host. A bundle may take that much longer for each of its disks.
pub const DISK_FOUND: Duration = Duration::from_secs(15);

/// How long the guest's kernel may take to find a processor that the machine got, in software
/// emulation on a busy host.
pub const PROCESSOR_FOUND: Duration = Duration::from_secs(15);

/// The first message on a connection. The secret follows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opening {
    /// [`VERSION`] of the host.
    pub version: u32,
    /// What the connection is for.
    pub purpose: Purpose,
}

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Purpose {
    /// [`Request`]s, one after the other. Two connections last for the guest's life: one for
    /// [`Request::Ping`] alone and one for all others. Each [`Request::Release`] and each
    /// [`Request::Resize`] has a connection of its own, because it may take long.
    Control,
    /// [`Event`]s. One connection for the guest's life.
    Events,
    /// containerd's Task API.
    Tasks,
    /// One stream of a process.
    Stream(StreamName),
    /// A connection to a TCP port on the guest's loopback.
    Forward {
        /// The port.
        port: u16,
    },
}

/// Names a stream. Open it before its process is made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamName {
    /// The container.
    pub container: String,
    /// The exec; the container's first process if there is none.
    pub exec: Option<String>,
    /// Which of its streams.
    pub kind: StreamKind,
}

/// A process's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum StreamKind {
    /// From the host to the process.
    Stdin,
    /// From the process to the host.
    Stdout,
    /// From the process to the host.
    Stderr,
}

impl StreamName {
    /// The stream's file in the guest, as the Task API names it. Both sides check that ids have no
    /// slash and do not begin with a dot.
    pub fn path(&self) -> String {
        let kind = match self.kind {
            StreamKind::Stdin => "stdin",
            StreamKind::Stdout => "stdout",
            StreamKind::Stderr => "stderr",
        };
        match &self.exec {
            None => format!("{STREAMS}/{}/{kind}", self.container),
            Some(exec) => format!("{STREAMS}/{}/.{exec}.{kind}", self.container),
        }
    }
}

/// The answer to an [`Opening`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Opened {
    /// The connection is accepted.
    Ready,
    /// The connection ends here.
    Refused {
        /// [`VERSION`] of the agent.
        version: u32,
        /// The reason.
        reason: String,
    },
}

/// A request of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Request {
    /// Sets the guest up as the pod. Sent once.
    SetUp(Box<Setup>),
    /// Writes the bundle of a container, to be created by the Task API.
    Bundle(Bundle),
    /// Removes a process's streams; for a container, also everything else that was made for it.
    Forget {
        /// The container.
        container: String,
        /// The exec; the container itself if there is none.
        exec: Option<String>,
    },
    /// A disk is about to be detached. Waits until nothing in the guest uses it.
    Release {
        /// Its serial number.
        serial: String,
    },
    /// The machine's size changes. The agent waits until the machine has this number of processors,
    /// and uses exactly so many. It makes the kernel take the memory that the machine gets, as long
    /// as it runs.
    Resize {
        /// The number of processors, at least one.
        vcpus: u32,
    },
    /// Checks that the agent lives. The agent sets its clock, which stood still if the machine was
    /// paused.
    Ping {
        /// Nanoseconds since the epoch.
        now: u64,
    },
    /// Ends all processes and switches the guest off. There may be no answer.
    SwitchOff,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Answer {
    /// It is done.
    Done,
    /// It failed: the number of a gRPC status code, a space, and a message.
    Failed(String),
}

/// The settings of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// The pod's id, for the log.
    pub sandbox: String,
    /// Nanoseconds since the epoch.
    pub now: u64,
    /// The hostname; if empty, the kernel's default stays.
    pub hostname: String,
    /// Sysctls, by their paths below /proc/sys.
    pub sysctls: BTreeMap<PathBuf, String>,
    /// The least number of huge pages of 2 MiB to set aside.
    pub huge_pages: u32,
    /// Its interfaces, routes and neighbours.
    pub network: Network,
}

/// A container to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// The container.
    pub container: String,
    /// Its OCI runtime specification, as JSON, for the guest: `config.json`.
    pub spec: String,
    /// Volumes in memory that it uses. Those that do not exist yet are made.
    pub memory: Vec<Memory>,
    /// How many huge pages of 2 MiB all containers of the pod, including this one, may use
    /// together. At least so many are set aside.
    pub huge_pages: u32,
    /// Disks that it uses. All are attached already.
    pub disks: Vec<Disk>,
    /// Directories below [`SHARE`] that are mount points on the host. In the guest they are file
    /// systems of their own as well.
    pub submounts: Vec<String>,
    /// Whether it joins the pod's PID namespace, [`PID_NAMESPACE`], which is made for the first
    /// container that does.
    pub shared_pid: bool,
}

/// A disk of the machine, for a container. The specification has the host's device numbers, in
/// `linux.devices` and in the rules of `linux.resources.devices`; the agent replaces them by the
/// guest's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The disk's serial number, from the SCSI page "Unit Serial Number" (SPC-4, page 0x80).
    pub serial: String,
    /// The host's major number of the device.
    pub major: u32,
    /// The host's minor number.
    pub minor: u32,
}

/// A volume in the guest's memory: a tmpfs, or a hugetlbfs with pages of 2 MiB, at
/// `<MEMORY>/<name>`, for the pod's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Its name: a number.
    pub name: u32,
    /// Its size in bytes. If not given, half of the guest's memory, or all huge pages.
    pub size: Option<u64>,
    /// The mode of its directory.
    pub mode: u32,
    /// Whether it is made of huge pages.
    pub huge: bool,
}

/// An event that the guest reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Event {
    /// The kernel's OOM killer has killed a process of a container.
    OutOfMemory {
        /// The container.
        container: String,
    },
    /// A process has ended.
    Exited {
        /// The container.
        container: String,
        /// The exec; the container's first process if there is none.
        exec: Option<String>,
        /// Its exit code, or 128 plus the signal that ended it.
        code: u32,
    },
}
