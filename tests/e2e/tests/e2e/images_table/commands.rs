// SPDX-License-Identifier: Apache-2.0
//! Commands in a running container: what they inherit, how they end, what is refused.

use anyhow::{Result, bail};
use magnetar_cri::ContainerSpec;

use super::{ask::Question, files::Files, mounts::odd, surroundings::SIGNALS};

/// Lives until it is killed. The files that commands need are there before it counts as ready,
/// because a shell that executes `sleep` has done all that stands before.
const LIVE: &str = "exec sleep 100000";

/// The container that a command of the table runs in, by its name.
pub fn container(name: &str) -> Result<ContainerSpec> {
    let lives = odd(LIVE);
    Ok(match name {
        "plain" => lives,
        "someone" => lives.user(2000).supplemental_groups(&[3456]).working_dir("/srv/someone"),
        "limited" => lives.user(1234).capabilities(&[], &["ALL"]).no_new_privs().seccomp_default().read_only_rootfs(),
        "configured" => lives
            .working_dir("/fresh/dir")
            .env("HOME", "/override")
            .env("ONE", "two")
            .env("ONE", "three")
            .capabilities(&["SYS_PTRACE"], &["CHOWN"])
            .masked_paths(&["/secret", "/masked"])
            .resources(|r| r.oom_score_adj = 500),
        "terminal" => lives.tty(),
        "closed" => lives.working_dir("/private").user(42),
        other => bail!("no container {other}"),
    })
}

fn shell(name: &'static str, of: &'static str, script: &str) -> Question {
    Question::command(name, of, &["sh", "-c", script])
}

pub fn questions(_: &Files) -> Result<Vec<Question>> {
    let mut all = ends();
    all.extend(inherited());
    all.extend(terminals());
    all.extend(surroundings());
    Ok(all)
}

fn ends() -> Vec<Question> {
    let plain = |name, words: &[&str]| Question::command(name, "plain", words);
    vec![
        plain("command: exit code 0", &["true"]),
        plain("command: exit code 1", &["false"]),
        shell("command: exit code 42", "plain", "exit 42"),
        shell("command: exit code 255", "plain", "exit 255"),
        shell("command: a shell whose command is not there", "plain", "no-such-command"),
        shell("command: killed by SIGKILL", "plain", "kill -KILL $$"),
        shell("command: killed by SIGTERM", "plain", "kill -TERM $$"),
        shell("command: killed by SIGSEGV", "plain", "kill -SEGV $$"),
        shell("command: an end while a child runs", "plain", "sleep 1 >/dev/null 2>&1 & exit 3"),
        plain("command: a program that is not there", &["no-such-program"]).refused("no-such-program"),
        plain("command: a path that is not there", &["/no/such/program"]).refused("/no/such/program"),
        plain("command: a folder", &["/srv/app"]).refused("/srv/app"),
        plain("command: a program that may not be executed", &["/srv/app/not-executable"]).refused("/srv/app/not-executable"),
        plain("command: a script without an interpreter", &["/srv/app/no-interpreter"]),
        plain("command: a script whose interpreter is not there", &["/srv/app/bad-interpreter"]),
        plain("command: an empty program", &["/srv/app/empty"]),
        plain("command: a program that is cut off", &["/srv/app/cut"]),
        plain("command: an empty name", &[""]).refused("$PATH"),
        plain("command: no words", &[]).refused("arg"),
        plain("command: an argument larger than any can be", &["true", &"x".repeat(140_000)]).refused("argument list too long"),
        Question::command("command: a program that only root may run", "someone", &["/srv/app/only-root"]).refused("/srv/app/only-root"),
        plain("command: arguments are kept as they are", &["printf", "[%s]\\n", "a b", "", "c\nd", "größe", "$HOME"]),
        shell("command: both streams", "plain", "echo out; echo err >&2; printf end"),
        shell("command: bytes that are no text", "plain", "printf 'a\\001\\033\\tb\\r\\n'"),
    ]
}

fn inherited() -> Vec<Question> {
    let who = "echo $(id -u) $(id -g) $(id -G) $HOME; pwd";
    let status = ["grep", "-E", "^(Cap|NoNewPrivs|Seccomp:|Uid|Gid|Groups)", "/proc/self/status"];
    vec![
        shell("command: root", "plain", who),
        shell("command: a user with a home and groups", "someone", who),
        shell("command: a user whom nobody knows", "limited", who),
        shell("command: a home that was asked for, and a missing working directory", "configured", who),
        shell("command: a working directory of the user's own", "closed", who),
        Question::command("command: variables", "plain", &["env"]),
        Question::command("command: variables that were asked for", "configured", &["env"]),
        Question::command("command: variables of a user with a home", "someone", &["env"]),
        Question::command("command: rights of root", "plain", &status),
        Question::command("command: rights of a user", "someone", &status),
        Question::command("command: no rights", "limited", &status),
        Question::command("command: rights that were added and dropped", "configured", &status),
        shell("command: what seccomp denies", "limited", "unshare -U true; mount -t tmpfs x /tmp; touch /x"),
        shell("command: a setuid program", "someone", "/srv/app/show /root-only"),
        shell("command: a setuid program without new privileges", "limited", "/srv/app/show /root-only"),
        shell("command: masked paths", "configured", "cat /secret; ls -a /masked; echo x >/secret"),
        shell("command: how many files may be open", "plain", "ulimit -S -n; ulimit -H -n"),
        shell(
            "command: limits are those of process 1",
            "plain",
            "for n in files processes; do grep \"^Max open $n\" /proc/1/limits /proc/self/limits | sed 's/^[^:]*://' | sort -u; done",
        ),
        shell("command: mask of new files", "plain", "umask"),
        shell("command: how willingly it is killed", "configured", "cat /proc/self/oom_score_adj /proc/1/oom_score_adj"),
        shell("command: signals that are ignored", "plain", SIGNALS),
        Question::command(
            "command: process, group and session",
            "plain",
            &["awk", "{ print ($1 == $5), ($1 == $6), $4, $7 }", "/proc/self/stat"],
        ),
        Question::command("command: open descriptors", "plain", &["ls", "/proc/self/fd"]),
        shell("command: input is empty", "plain", "wc -c"),
        shell("command: kinds of the streams", "plain", "for n in 1 2; do stat -L -c %F /proc/self/fd/$n; done"),
        shell("command: the streams can be opened by a user", "someone", "echo out >/dev/stdout; echo err >/dev/stderr"),
    ]
}

fn terminals() -> Vec<Question> {
    let terminal = Question::terminal_command;
    vec![
        terminal("command on a terminal: it has one", "plain", "tty; echo err >&2; for n in 0 1 2; do readlink /proc/$$/fd/$n; done"),
        terminal("command on a terminal: whose it is", "plain", "stat -c '%u:%g %a' $(tty)"),
        terminal("command on a terminal: whose a user's is", "someone", "stat -c '%u:%g %a' $(tty); echo x >/dev/tty"),
        terminal("command on a terminal: variables", "plain", "env | sort"),
        terminal("command on a terminal: beside another", "terminal", "tty; ls /dev/pts"),
        terminal("command on a terminal: exit code", "plain", "exit 7"),
        terminal("command on a terminal: exit code after output", "plain", "echo out; (exit 8)"),
        terminal("command on a terminal: killed", "plain", "kill -KILL $$"),
        terminal(
            "command on a terminal: session",
            "plain",
            "awk '{ print ($1 == $5), ($1 == $6), $4, ($7 != 0), ($1 == $8) }' /proc/$$/stat",
        ),
        terminal("command on a terminal: open descriptors", "plain", "ls /proc/$$/fd"),
    ]
}

fn surroundings() -> Vec<Question> {
    vec![
        // Both sides of the comparison are of one kernel, whichever that is.
        shell("command: the cgroups of process 1", "plain", "[ \"$(cat /proc/self/cgroup)\" = \"$(cat /proc/1/cgroup)\" ] && echo same"),
        shell(
            "command: the namespaces of process 1",
            "plain",
            "for n in mnt pid ipc uts net cgroup user; \
             do [ \"$(readlink /proc/self/ns/$n)\" = \"$(readlink /proc/1/ns/$n)\" ] && echo $n; done",
        ),
        shell("command: the root of process 1", "plain", "ls /proc/1/root/srv; readlink /proc/1/root"),
    ]
}
