// SPDX-License-Identifier: Apache-2.0
//! What stays different from runc, and why. A difference that is listed and is none any more fails
//! the test, and so does one that shows in another way than listed.

use magnetar_e2e::Case;

/// What makes the containers of a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The stock shim with runc: compared with itself, to see that a case has one outcome only.
    Stock,
    /// crun, which magnetar-runc takes.
    Crun,
    /// Our own maker on the node: magnetar-libcontainer, and native programs in Wasm pods.
    Maker,
    /// Our own maker in a virtual machine.
    Machine,
}

use Kind::{Crun, Machine, Maker};

impl Kind {
    pub fn of(case: &Case) -> Self {
        match case.handler() {
            "runc" => Self::Stock,
            "magnetar-runc" | "magnetar-runc-shim" => Crun,
            _ if case.is_vm() => Machine,
            _ => Maker,
        }
    }
}

/// Cases that have another outcome than with runc, for one reason.
pub struct Difference {
    pub kinds: &'static [Kind],
    /// Why it stays. Only people read it.
    #[allow(dead_code, reason = "for people")]
    pub reason: &'static str,
    /// A part of each outcome there.
    pub here: &'static str,
    pub cases: &'static [&'static str],
}

/// All of them.
pub const DIFFERENCES: &[Difference] = &[
    Difference {
        kinds: &[Crun],
        reason: "crun ends with 1 where the kernel does not execute a program, and says so in words or JSON of its own",
        here: "ended with 1 ",
        cases: &[
            "a script without an interpreter",
            "a script whose interpreter is not there",
            "an empty program",
            "a program that is cut off",
            "an argument larger than any can be",
            "a variable larger than any can be",
            "command: a script without an interpreter",
            "command: a script whose interpreter is not there",
            "command: an empty program",
            "command: a program that is cut off",
            "command: an argument larger than any can be",
        ],
    },
    Difference {
        kinds: &[Crun],
        reason: "crun makes nothing where a dangling link leads",
        here: "openat2",
        cases: &[
            "a file on a link through a dangling link",
            "rights of what is made at the end of dangling links",
            "a folder on links whose last part is missing",
            "a folder on a dangling link",
            "a folder beneath a dangling link",
            "a folder on a link that leads above the root",
            "a folder beneath a link that leads above the root",
            "a folder beneath a link of a volume that leads above it",
        ],
    },
    Difference {
        kinds: &[Crun],
        reason: "crun gives the folders that it makes above a missing one the sticky bit",
        here: "1755 0:0",
        cases: &[
            "rights of the folders above a missing folder",
            "a folder beneath one of another user",
            "a missing folder in a volume",
            "a user namespace: missing places",
        ],
    },
    Difference {
        kinds: &[Crun],
        reason: "the same, in a folder with the setgid bit",
        here: "3755 0:2500",
        cases: &["folders made in one with setgid and sticky bits"],
    },
    Difference {
        kinds: &[Crun],
        reason: "crun makes volumes read-only when everything has been made in them",
        here: "ended with 0",
        cases: &["a missing folder in a read-only volume", "a missing working directory in a read-only volume"],
    },
    Difference {
        kinds: &[Crun],
        reason: "crun keeps what the node's own mount forbids where the volume is read-only",
        here: "/v ro,nosuid,nodev,noexec",
        cases: &["options of a read-only volume that are the node's"],
    },
    Difference {
        kinds: &[Crun],
        reason: "crun refuses less: what is mounted on /proc and /dev/null, working directories, variables, what is found by PATH",
        here: "ended with 0",
        cases: &[
            "a folder in place of /proc",
            "a file in place of /proc/version",
            "a file in place of /proc/self/attr/exec",
            "a folder in place of /proc/sys",
            "a file in place of /dev/null",
            "a working directory without a slash before it",
            "a variable without a name",
            "a program found in the working directory by PATH",
        ],
    },
    Difference {
        kinds: &[Crun],
        reason: "crun mounts a volume without a place on the root, and finds no program there",
        here: "crun create failed: executable file `sh` not found",
        cases: &["no place at all"],
    },
    Difference {
        kinds: &[Crun],
        reason: "crun opens /dev/null, which the volume does not have",
        here: "crun create failed: open `/dev/null`",
        cases: &["a folder in place of /dev"],
    },
    Difference {
        kinds: &[Crun],
        reason: "crun keeps a home that is empty",
        here: "HOME=\\n",
        cases: &["a home that is empty", "a home that is empty after one that is not", "a home that is empty, of a user who has one"],
    },
    Difference {
        kinds: &[Crun],
        reason: "crun keeps a variable that was said twice at its first place",
        here: "ONE=three\\nOTHER=x",
        cases: &["a variable twice"],
    },
    Difference {
        kinds: &[Crun],
        reason: "crun says of a command without words only that something failed",
        here: "read pipe failed",
        cases: &["command: no words"],
    },
    Difference {
        kinds: &[Crun],
        reason: "crun gives a command no OOM score of its own",
        here: "\"0\\n500\\n\"",
        cases: &["command: how willingly it is killed"],
    },
    Difference {
        kinds: &[Crun],
        reason: "crun makes /dev/console a link to the terminal, and mounts nothing on it",
        here: "symbolic link",
        cases: &["the console is the terminal"],
    },
    Difference {
        kinds: &[Crun],
        reason: "as above: there is no such mount",
        here: "/dev\\n/dev/mqueue",
        cases: &["mount points with a terminal"],
    },
    Difference {
        kinds: &[Crun, Machine],
        reason: "crun makes /dev/core always; runc where the kernel has /proc/kcore, which the guest's has",
        here: "core",
        cases: &["an image whose /dev is a link", "nodes in /dev", "nodes in /dev of a container with a terminal", "links in /dev"],
    },
    Difference {
        kinds: &[Crun],
        reason: "crun hides folders behind one of its own, and not behind a tmpfs each",
        here: "555 0:0 directory",
        cases: &["a masked file and a masked folder", "masked paths on a read-only root", "a user behind masked paths"],
    },
    Difference {
        kinds: &[Crun],
        reason: "crun mounts /dev/null read-only over what it hides",
        here: "/secret ro,relatime",
        cases: &["options of masked paths"],
    },
    Difference {
        kinds: &[Crun],
        reason: "crun mounts links for what the node's own hierarchies are called besides",
        here: "net_cls",
        cases: &["mounted cgroups"],
    },
    Difference {
        kinds: &[Crun, Maker],
        reason: "a container has containerd's own FIFOs; the stock shim copies through pipes",
        here: "1234:0 700",
        cases: &["whose the streams are"],
    },
    Difference {
        kinds: &[Maker, Machine],
        reason: "a working directory is made where a dangling link leads, as a mount point is; runc makes only the latter",
        here: "ended with 0",
        cases: &[
            "a working directory that is a dangling link",
            "a working directory beneath a dangling link",
            "a working directory above the root",
        ],
    },
    Difference {
        kinds: &[Maker, Machine],
        reason: "a link of the kernel's is followed by what it says, and in the container's root: it leads nowhere else",
        here: "magic",
        cases: &["a folder on a link of the kernel's"],
    },
    Difference {
        kinds: &[Maker, Machine],
        reason: "there is nothing to be hidden",
        here: "secret",
        cases: &["a masked path beneath a file"],
    },
    Difference {
        kinds: &[Machine],
        reason: "the guest has a limit of its own, the same for a container and for commands in it",
        here: "524288",
        cases: &["how many files may be open", "command: how many files may be open", "command: limits are those of process 1"],
    },
    Difference {
        kinds: &[Machine],
        reason: "the guest has cgroup version 2, of which a container sees its own part, read-only",
        here: "cgroup",
        cases: &["kinds of file systems", "options of mount points", "what others wrote to /sys and /proc/sys", "mounted cgroups"],
    },
    Difference {
        kinds: &[Machine],
        reason: "the same: a container is in the root of its cgroup namespace",
        here: "ended with 0  \"\\n\"",
        cases: &["the last part of all cgroups", "the last part of the cgroup that systemd would use", "which cgroups there are"],
    },
    Difference {
        kinds: &[Machine],
        reason: "whoever has the other end is outside of the machine: said when the container starts, not when somebody waits for ever",
        here: "refused by StartContainer: FailedPrecondition",
        cases: &["a FIFO of the node's", "a socket of the node's", "a device of the node's as a volume"],
    },
    Difference {
        kinds: &[Machine],
        reason: "mounts in a machine cannot appear on the node",
        here: "has the propagation Bidirectional",
        cases: &["a volume with mounts both ways", "a volume with mounts both ways and no privileges"],
    },
    Difference {
        kinds: &[Machine],
        reason: "later mounts of the node appear in the share that volumes come from, not by propagation between mounts",
        here: "relatime\\n",
        cases: &["a volume with mounts from the node", "a read-only volume with mounts from the node"],
    },
    Difference {
        kinds: &[Machine],
        reason: "the volume is a part of a share, and the share has the node's mount in it, which cannot be changed from inside",
        here: "Read-only file system",
        cases: &["a volume that is mounted read-only on the node"],
    },
    Difference {
        kinds: &[Machine],
        reason: "the guest's kernel has /proc/kcore; the node's may not",
        here: "/proc/kcore",
        cases: &["what Kubernetes masks"],
    },
    Difference {
        kinds: &[Machine],
        reason: "the guest's kernel has /proc/sysrq-trigger; the node's may not",
        here: "/proc/sysrq-trigger: Read-only",
        cases: &["what Kubernetes makes read-only"],
    },
];
