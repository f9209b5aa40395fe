// SPDX-License-Identifier: Apache-2.0
//! What the host and the agent in a guest say to each other.
//!
//! ```text
//! host ──vsock, port 1024──> agent
//!      Opening, secret ────>            what this connection is for, in which version, and that it is the host's
//!      <──────────── Opened             go on, or why not
//!      then, by purpose:
//!        Control   Request ──> <── Answer, one after the other
//!        Events    <── Event, Event, …
//!        Tasks     containerd's Task API (ttrpc)
//!        Stream    bytes of one process's input or output
//!        Forward   bytes of a TCP connection to a port in the guest
//! ```
//!
//! Every connection is made by the host but one, [`READY_PORT`], and that only where the host waits for it: the guest has no way
//! to ask for anything. Messages are JSON in frames ([`frame`]), bytes come in chunks ([`chunk`]). The [`secret`] is 32 bytes.
//! The bundle of a container is told by [`Request::Bundle`]; all else about containers is the Task API.
//!
//! Deliberately absent: names of files on the host, and any call that makes the host act.

pub mod chunk;
pub mod frame;
pub mod network;
pub mod secret;

use network::Network;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// The version of this protocol. A change that the other side may not understand makes it another one.
pub const VERSION: u32 = 2;

/// The vsock port on which the agent listens.
pub const PORT: u32 = 1024;

/// The vsock port on which the host waits for the agent's first connection, which says nothing: that it comes is the news
/// that the agent listens. Only a guest that is told [`HELLO`] makes it.
pub const READY_PORT: u32 = 1025;

/// What the agent says on the console when it ends the machine; behind it, `error=` and the reason.
pub const GIVES_UP: &str = "the guest cannot go on";

/// A word of the guest's kernel command line: the host waits at [`READY_PORT`]. It does where the guest's vsock leads to a socket
/// that is this guest's alone. Where all guests of a host could call the port, the host calls the agent until that answers.
pub const HELLO: &str = "magnetar.hello";

/// The tag of the file system that the host shares.
pub const SHARE_TAG: &str = "magnetar";

/// Where the guest has what the host shares: `<SHARE>/<container>/…`.
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

/// How long the guest's kernel may take to find a disk that is attached, in software emulation on a busy host. A bundle takes
/// longer by so much for each of its disks.
pub const DISK_FOUND: Duration = Duration::from_secs(15);

/// The first words on a connection. The secret follows them.
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
    /// [`Request`]s, one after the other. Connections for the guest's life: one for all, and one for [`Request::Ping`]
    /// alone; and one for each [`Request::Release`], which may take long.
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

/// Which stream. To be opened before its process is made.
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
    /// The file that stands for it in the guest, which the Task API is told. Ids have no slash and do not begin with a dot,
    /// which both sides check.
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
    /// Go on.
    Ready,
    /// The connection ends here.
    Refused {
        /// [`VERSION`] of the agent.
        version: u32,
        /// Why.
        reason: String,
    },
}

/// What the host asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Request {
    /// Makes the guest the pod. Once.
    SetUp(Box<Setup>),
    /// Writes the bundle of a container, to be created by the Task API.
    Bundle(Bundle),
    /// Removes what was made for a process beside it: its streams, and with a container all else that was made for it.
    Forget {
        /// The container.
        container: String,
        /// The exec; the container itself if there is none.
        exec: Option<String>,
    },
    /// A disk is about to be taken away: waits until nothing in the guest uses it.
    Release {
        /// Its serial number.
        serial: String,
    },
    /// Whether the agent lives. It sets its clock, which stood still if the machine was paused.
    Ping {
        /// Nanoseconds since the epoch.
        now: u64,
    },
    /// Ends all that runs and switches the guest off. It may not come to its answer.
    SwitchOff,
}

/// What comes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Answer {
    /// It is done.
    Done,
    /// It is not: gRPC's number of a status code, a space, and a sentence.
    Failed(String),
}

/// What makes a guest a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// The pod's id, for the log.
    pub sandbox: String,
    /// Nanoseconds since the epoch.
    pub now: u64,
    /// Its name in the network; the kernel's own if empty.
    pub hostname: String,
    /// Sysctls, by their paths below /proc/sys.
    pub sysctls: BTreeMap<PathBuf, String>,
    /// How many huge pages of 2 MiB are set aside, at least.
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
    /// Volumes in memory that it uses, which are made where there is none of the name yet.
    pub memory: Vec<Memory>,
    /// How many huge pages of 2 MiB the containers of the pod may use together, this one among them: so many are set aside, at least.
    pub huge_pages: u32,
    /// Disks that it uses, each attached already.
    pub disks: Vec<Disk>,
    /// Directories below [`SHARE`] on which the host has something mounted: file systems of their own in the guest too.
    pub submounts: Vec<String>,
    /// Whether it joins the pod's PID namespace, [`PID_NAMESPACE`], which is made with the first that does.
    pub shared_pid: bool,
}

/// A disk of the machine, for a container. The specification has the host's device numbers, in `linux.devices` and in the rules of
/// `linux.resources.devices`; the agent puts those of the guest in their place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The disk's serial number: what the SCSI page "Unit Serial Number" says (SPC-4, page 0x80).
    pub serial: String,
    /// The host's major number of the device.
    pub major: u32,
    /// The host's minor number.
    pub minor: u32,
}

/// A volume in the guest's memory: a tmpfs, or a hugetlbfs with pages of 2 MiB, at `<MEMORY>/<name>`, for the pod's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Its name: a number.
    pub name: u32,
    /// What it can hold, in bytes. If not given, half of the guest's memory, or all huge pages.
    pub size: Option<u64>,
    /// The mode of its directory.
    pub mode: u32,
    /// Whether it is made of huge pages.
    pub huge: bool,
}

/// What the guest tells unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Event {
    /// The kernel has killed a process of a container for memory.
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
