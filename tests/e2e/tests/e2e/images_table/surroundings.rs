// SPDX-License-Identifier: Apache-2.0
//! What a process finds around it: /dev, /proc, /sys, mounts, masked paths, capabilities, limits,
//! cgroups, names.

use anyhow::Result;
use magnetar_cri::ContainerSpec;

use super::{
    ask::{Pods, Question},
    files::Files,
    mounts::{ODD, odd},
    sources::options,
};

/// What Kubernetes hides of a container's /proc and /sys, and what it makes read-only.
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The signals that a process ignores, handles or has not got yet, without the two of the C
/// library: whoever was started by its posix_spawn(3) has these ignored, and so has what it starts,
/// be it a whole node.
pub const SIGNALS: &str = "while read -r name mask; do case $name in ShdPnd:|SigIgn:|SigCgt:) \
     echo $name $((0x$mask & ~0x180000000)) ;; esac; done </proc/self/status";

pub fn questions(files: &Files) -> Result<Vec<Question>> {
    let mut all = images();
    all.extend(file_systems());
    all.extend(masked(files)?);
    all.extend(devices());
    all.extend(rights());
    all.extend(limits_and_names());
    Ok(all)
}

fn of_image(name: &str, script: &str) -> ContainerSpec {
    ContainerSpec::new("of-image", &format!("localhost/magnetar/{name}:1")).command(["/bin/sh", "-c", script])
}

fn images() -> Vec<Question> {
    vec![
        Question::run(
            "an image with nothing but programs",
            of_image("bare", "ls /; stat -c '%a %u:%g %n' /dev /proc /sys /etc; id; pwd; echo $HOME; cat /etc/hostname"),
        ),
        Question::run("an image with nothing but programs, read-only", of_image("bare", "cat /etc/hostname; ls / /etc").read_only_rootfs()),
        Question::run("an image with nothing but programs and a user", of_image("bare", "id; echo $HOME").user(1234)),
        Question::run("an image whose /proc is a link", of_image("odd-proc", "true")).refused("/proc"),
        Question::run("an image whose /sys is a link", of_image("odd-sys", "true")).refused("/sys"),
        Question::run("an image whose /dev is a link", of_image("odd-dev", "ls /srv/app; readlink /dev; echo x >/dev/null")),
        Question::run("an image that is not there", ContainerSpec::new("none", "localhost/magnetar/none:1").command(["true"]))
            .refused("magnetar/none"),
    ]
}

fn file_systems() -> Vec<Question> {
    let usual = ["/proc", "/dev", "/dev/pts", "/dev/mqueue", "/dev/shm", "/sys", "/sys/fs/cgroup"];
    let kinds = "awk '{ for (i = 7; $i != \"-\"; i++); print $5, $(i + 1) }' /proc/self/mountinfo | \
                 grep -E '^/(proc|dev|sys)' | grep -v cgroup/ | sort";
    let mounted = "awk '{ print $5 }' /proc/self/mountinfo | grep -v /sys/fs/cgroup/ | sort";
    vec![
        Question::script("mount points", mounted),
        Question::run("mount points with a terminal", odd(mounted).tty()),
        Question::script("kinds of file systems", kinds),
        Question::script("options of mount points", &options(&usual)),
        Question::run(
            "options of mount points in a privileged container",
            odd(&options(&["/proc", "/dev", "/sys", "/sys/fs/cgroup"])).privileged(),
        )
        .in_pod(Pods::Privileged),
        Question::script(
            "options of the pod's files",
            &options(&["/etc/static/hosts", "/etc/static/hostname", "/run/systemd/resolve/stub-resolv.conf"]),
        ),
        Question::run(
            "the pod's files on a read-only root",
            odd("echo x >>/etc/hosts; echo x >>/etc/hostname; echo x >>/etc/resolv.conf; echo x >/dev/shm/x && rm /dev/shm/x")
                .read_only_rootfs(),
        ),
        Question::script("rights of the pod's files", "stat -L -c '%a %u:%g' /etc/hosts /etc/hostname /etc/resolv.conf"),
        Question::script("options of /dev/pts", "grep /dev/pts /proc/mounts | sed 's/.*devpts//'"),
        Question::script(
            "size and options of /dev/shm",
            "stat -c '%a %u:%g' /dev/shm; df -k /dev/shm | awk 'END { print $2 }'; grep /dev/shm /proc/mounts | sed 's/^[^ ]*//; \
             s/,inode[0-9]*//'",
        ),
        Question::script("size and options of /dev", "stat -c '%a %u:%g' /dev; df -k /dev | awk 'END { print $2 }'"),
        Question::run(
            "a read-only root",
            odd("touch /x; touch /tmp/x; mkdir /dev/x && rmdir /dev/x; touch /dev/shm/x && rm /dev/shm/x; echo x >/dev/null")
                .read_only_rootfs(),
        ),
        Question::script("the root", "stat -c '%a %u:%g' /; touch /x && stat -c '%a %u:%g' /x; ls -a /"),
        Question::script(
            "files of the image can be changed, moved, linked and given away",
            "echo more >>/secret && mv /secret /moved && ln /moved /linked && chown 5:6 /moved && chmod 4711 /moved && \
             stat -c '%a %u:%g %h' /linked && rm -r /masked && mkdir /masked && ls -a /masked",
        ),
        Question::script(
            "special files can be made in the root",
            "mkfifo /f && mknod /null c 1 3 && echo x >/null && ln -s x /l && stat -c %F /f /null /l",
        ),
        Question::run(
            "what others wrote to /sys and /proc/sys",
            odd("echo x >/sys/kernel/mm/x; echo 1 >/proc/sys/kernel/core_uses_pid; mkdir /sys/fs/cgroup/x").read_only_paths(&READ_ONLY),
        ),
    ]
}

fn masked(files: &Files) -> Result<Vec<Question>> {
    let folder = files.volume("masked/folder")?;
    let show = "cat /secret; ls -a /masked; stat -c '%a %u:%g %F' /secret /masked";
    Ok(vec![
        Question::run(
            "what Kubernetes masks",
            odd("for p in /proc/kcore /proc/keys /proc/timer_list; do [ -e $p ] && wc -c $p; done; \
                 ls /proc/acpi /proc/scsi /sys/firmware 2>&1")
            .masked_paths(&MASKED)
            .read_only_paths(&READ_ONLY),
        ),
        Question::run(
            "what Kubernetes makes read-only",
            odd("echo h >/proc/sysrq-trigger; echo 1 >/proc/sys/net/ipv4/ip_forward; \
                 echo 1 >/proc/irq/default_smp_affinity")
            .masked_paths(&MASKED)
            .read_only_paths(&READ_ONLY),
        ),
        Question::run("a masked file and a masked folder", odd(show).masked_paths(&["/secret", "/masked"])),
        Question::run(
            "masked paths can neither be written nor removed",
            odd("echo x >/secret; rm /secret; touch /masked/x; rmdir /masked; umount /masked").masked_paths(&["/secret", "/masked"]),
        ),
        Question::run("masked paths on a read-only root", odd(show).masked_paths(&["/secret", "/masked"]).read_only_rootfs()),
        Question::run(
            "a path masked twice",
            odd("grep -c ' /masked ' /proc/mounts; grep -c ' /secret ' /proc/mounts")
                .masked_paths(&["/masked", "/secret", "/masked", "/secret"]),
        ),
        Question::run("two masked folders", odd("ls -a /masked /masked2").masked_paths(&["/masked", "/masked2"])),
        Question::run("a masked path that is not there", odd("ls /not").masked_paths(&["/not/there"])),
        Question::run("a masked path beneath a file", odd("cat /secret").masked_paths(&["/secret/x"])).refused("secret/x"),
        Question::run("a masked link", odd("cat /link-to-secret; cat /secret").masked_paths(&["/link-to-secret"])),
        Question::run("a masked dangling link", odd("readlink /dangling; ls /srv").masked_paths(&["/dangling"])),
        Question::run("a masked path through a link above the root", odd("ls /srv").masked_paths(&["/escape"])),
        Question::run("a masked path in a volume", odd("cat /v/word; wc -c </v/word").mount(&folder, "/v").masked_paths(&["/v/word"])),
        Question::run("options of masked paths", odd(&options(&["/secret", "/masked"])).masked_paths(&["/secret", "/masked"])),
        Question::run("a read-only path", odd("touch /masked/x; echo x >>/secret; cat /secret").read_only_paths(&["/masked", "/secret"])),
        Question::run("a read-only path that is not there", odd("ls /not").read_only_paths(&["/not/there"])),
        Question::run(
            "a read-only path that is a link",
            odd("echo x >>/secret; readlink /link-to-secret").read_only_paths(&["/link-to-secret"]),
        ),
        Question::run(
            "options of read-only paths",
            odd(&options(&["/proc/sys", "/proc/bus", "/masked"])).read_only_paths(&["/proc/sys", "/proc/bus", "/masked"]),
        ),
        Question::run("a user behind masked paths", odd(show).masked_paths(&["/secret", "/masked"]).user(1234)),
    ])
}

fn devices() -> Vec<Question> {
    vec![
        Question::script("nodes in /dev", "ls -ln /dev | awk 'NR > 1 { print $1, $3, $4, (/^c/ ? $5 $6 : \"\"), $NF }'"),
        Question::run("nodes in /dev of a container with a terminal", odd("ls -n /dev | awk 'NR > 1 { print $1, $3, $4, $NF }'").tty()),
        Question::script("links in /dev", "for l in $(find /dev -type l | sort); do echo $l $(readlink $l); done"),
        Question::run(
            "a device of the node",
            odd("stat -c '%F %a %u:%g %t:%T' /dev/nothing; echo x >/dev/nothing; wc -c </dev/nothing").device(
                "/dev/null",
                "/dev/nothing",
                "rw",
            ),
        ),
        Question::run(
            "a device outside of /dev",
            odd("stat -c '%F %a %u:%g' /nothing; echo x >/nothing").device("/dev/null", "/nothing", "rw"),
        ),
        Question::run(
            "a device in missing folders",
            odd("stat -c '%F %a %u:%g' /dev/a/b /dev/a/b/nothing").device("/dev/null", "/dev/a/b/nothing", "rwm"),
        ),
        Question::run(
            "a device of the node for a user",
            odd("stat -c '%F %a %u:%g' /dev/nothing; echo x >/dev/nothing").device("/dev/null", "/dev/nothing", "rw").user(1234),
        ),
        Question::run("a device that is there already", odd("stat -c '%F %a %u:%g' /dev/tty").device("/dev/tty", "/dev/tty", "rwm")),
        Question::script("a device that nobody allowed", "mknod /kmsg c 1 11 && head -c 1 /kmsg"),
        Question::run("a device that is not there", odd("true").device("/dev/no-such-device", "/dev/x", "rw"))
            .refused("/dev/no-such-device"),
        Question::script(
            "random numbers and zeroes",
            "head -c 8 /dev/urandom | wc -c; head -c 4 /dev/zero | od -An -c; echo x >/dev/full; echo x >/dev/tty",
        ),
    ]
}

fn rights() -> Vec<Question> {
    let status = "^(Cap|NoNewPrivs|Seccomp:)";
    let sets = |name: &'static str, change: fn(ContainerSpec) -> ContainerSpec| {
        Question::run(name, change(ContainerSpec::new("caps", ODD).command(["grep", "-E", status, "/proc/self/status"])))
    };
    vec![
        sets("rights of root", |c| c),
        sets("rights of a user", |c| c.user(1234)),
        sets("rights without new privileges", |c| c.no_new_privs()),
        sets("rights that were added and dropped", |c| c.capabilities(&["SYS_PTRACE"], &["CHOWN"])),
        sets("no rights", |c| c.capabilities(&[], &["ALL"])),
        sets("one right", |c| c.capabilities(&["NET_BIND_SERVICE"], &["ALL"])),
        sets("rights of a user that were added", |c| c.user(1234).capabilities(&["SYS_PTRACE"], &[])),
        sets("rights of a user that stay when it executes", |c| {
            c.user(1234).security(|s| s.capabilities.get_or_insert_default().add_ambient_capabilities = vec!["NET_BIND_SERVICE".to_owned()])
        }),
        sets("rights with the usual seccomp profile", ContainerSpec::seccomp_default),
        sets("rights without seccomp", ContainerSpec::seccomp_unconfined),
        Question::run("a right that nobody knows", odd("true").capabilities(&["NO_SUCH_RIGHT"], &[])).refused("NO_SUCH_RIGHT"),
        Question::run(
            "what the usual seccomp profile denies",
            odd("unshare -U true; mount -t tmpfs x /tmp; chroot / true; hostname x").seccomp_default(),
        ),
        Question::run(
            "a low port",
            odd("echo x | nc -l -p 77 -w 1 >/dev/null 2>&1; cat /proc/sys/net/ipv4/ip_unprivileged_port_start").user(1234),
        ),
    ]
}

fn limits_and_names() -> Vec<Question> {
    let limit = |name: &str| format!("grep -E '^Max {name} ' /proc/self/limits");
    vec![
        Question::script("how many files may be open", "ulimit -S -n; ulimit -H -n"),
        Question::script(
            "other limits",
            &[limit("core file size"), limit("stack size"), limit("file size"), limit("address space"), limit("locked memory")].join("; "),
        ),
        Question::script("mask of new files", "umask; touch /x && stat -c %a /x"),
        Question::script("signals that are pending and ignored", SIGNALS),
        Question::run("how willingly it is killed", odd("cat /proc/self/oom_score_adj").resources(|r| r.oom_score_adj = 500)),
        Question::run(
            "priority and scheduling",
            ContainerSpec::new("stat", ODD).command(["awk", "{ print $18, $19, $40, $41 }", "/proc/self/stat"]),
        ),
        Question::script("names of the container", "hostname; cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname /etc/hostname"),
        Question::script("a container cannot name itself", "hostname other; hostname"),
        Question::script("how many processes there are", "set -- /proc/[0-9]*; echo $#"),
        Question::run("process 1", odd("echo $$; tr '\\0' ' ' </proc/1/cmdline")),
        Question::script("the first process ends what it started", "(trap '' TERM; while :; do sleep 1; done) & exit 0"),
        // Hierarchies have other folders above the container's with each handler, and other numbers
        // on each host.
        Question::script("the last part of all cgroups", "sed 's/^[^:]*:[^:]*://; s,.*/,,' /proc/self/cgroup | sort -u"),
        Question::script(
            "the last part of the cgroup that systemd would use",
            "grep -E 'name=systemd|^0:' /proc/self/cgroup | sed 's/^[^:]*:[^:]*://; s,.*/,,' | sort -u",
        ),
        Question::script("which cgroups there are", "cut -d: -f2 /proc/self/cgroup | sort"),
        Question::script(
            "mounted cgroups",
            "ls /sys/fs/cgroup | sort; awk '$5 ~ \"^/sys/fs/cgroup/\" { print $4, $5 }' /proc/self/mountinfo | sed 's,^.*/,,; \
             s,^/.* , ,' | sort",
        ),
        Question::script(
            "what is in the container's cgroup",
            "cat /sys/fs/cgroup/pids/cgroup.procs /sys/fs/cgroup/cgroup.procs 2>/dev/null | head -1",
        ),
        Question::run(
            "a limit of memory as the container sees it",
            odd("cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null").memory(64 << 20),
        ),
        Question::run(
            "a variable of the kernel's for the pod",
            odd("cat /proc/sys/net/ipv4/ip_unprivileged_port_start; echo 5 >/proc/sys/net/ipv4/ip_unprivileged_port_start")
                .read_only_paths(&READ_ONLY),
        ),
        // Others' rings are listed as well; this one is named after the container, whose id is not
        // told where it has a cgroup namespace.
        Question::script(
            "a ring of keys of its own",
            "id=$(sed -n 's,.*/,,p' /proc/self/cgroup | head -1); grep -c \"${id:- _ses.}\" /proc/keys",
        ),
        Question::script("debugging by others", "cat /proc/self/coredump_filter /proc/self/timerslack_ns /proc/self/personality"),
    ]
}
