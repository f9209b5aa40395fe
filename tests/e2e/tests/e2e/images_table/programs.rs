// SPDX-License-Identifier: Apache-2.0
//! What is run, how it ends, and what of its output is kept.

use anyhow::Result;
use magnetar_cri::ContainerSpec;

use super::{
    ask::Question,
    files::Files,
    mounts::{ODD, odd},
};

pub fn questions(_: &Files) -> Result<Vec<Question>> {
    let mut all = ends();
    all.extend(no_programs());
    all.extend(arguments());
    all.extend(output());
    Ok(all)
}

fn program(words: &[&str]) -> ContainerSpec {
    ContainerSpec::new("program", ODD).command(words.iter().copied())
}

fn ends() -> Vec<Question> {
    vec![
        Question::run("exit code 0", odd("exit 0")),
        Question::run("exit code 1", program(&["false"])),
        Question::run("exit code 42", odd("exit 42")),
        Question::run("exit code 125", odd("exit 125")),
        Question::run("exit code 255", odd("exit 255")),
        Question::run("exit code 256 is 0", odd("exit 256")),
        Question::script("a shell whose command is not there", "no-such-command"),
        Question::script("a shell whose command cannot be run", "/secret"),
        // As process 1 it would not be killed by a signal of its own.
        Question::run("a child killed by SIGKILL", odd("sh -c 'kill -KILL $$'")),
        Question::run("a child killed by SIGSEGV", odd("sh -c 'kill -SEGV $$'")),
        Question::run("a child killed by SIGTERM", odd("sh -c 'kill -TERM $$'; echo $?")),
        Question::run("process 1 is not killed by its own signals", odd("kill -TERM $$; kill -KILL $$; echo lives")),
        Question::run("an end while a child runs", odd("sleep 1000 & exit 3")),
        Question::run("an end while a child holds the output open", odd("(sleep 1000; echo late) & echo early; exit 3")),
    ]
}

fn no_programs() -> Vec<Question> {
    vec![
        Question::run("a program that is not there", program(&["no-such-program"])).refused("no-such-program"),
        Question::run("a path that is not there", program(&["/no/such/program"])).refused("/no/such/program"),
        Question::run("a relative path that is not there", program(&["./no-such-program"])).refused("no-such-program"),
        Question::run("a folder as a program", program(&["/srv/app"])).refused("/srv/app"),
        Question::run("a program beneath a file", program(&["/secret/x"])).refused("/secret/x"),
        Question::run("a program that may not be executed", program(&["/srv/app/not-executable"])).refused("/srv/app/not-executable"),
        Question::run("a link that leads in a circle as a program", program(&["/loop-a"])).refused("/loop-a"),
        Question::run("a dangling link as a program", program(&["/dangling"])).refused("/dangling"),
        Question::run("a device as a program", program(&["/dev/null"])).refused("/dev/null"),
        Question::run("an empty name as a program", program(&[""])).refused("$PATH"),
        Question::run("a link to a program", program(&["/srv/app/link-to-hello", "there"])),
        Question::run("a relative path to a program", program(&["./hello"]).working_dir("/srv/app")),
        Question::run("a script without an interpreter", program(&["/srv/app/no-interpreter"])),
        Question::run("a script whose interpreter is not there", program(&["/srv/app/bad-interpreter"])),
        Question::run("an empty program", program(&["/srv/app/empty"])),
        Question::run("a program that is cut off", program(&["/srv/app/cut"])),
        Question::run("a name longer than names can be as a program", program(&[&format!("/{}", "n".repeat(300))])).refused("too long"),
    ]
}

fn arguments() -> Vec<Question> {
    vec![
        Question::run(
            "arguments are kept as they are",
            program(&["printf", "[%s]\\n", "a b", "", "c\nd", "größe", "$HOME", "\\", "'\"", "-x", "--"]),
        ),
        Question::run("the name of the program is as it was given", program(&["sh", "-c", "echo $0; tr '\\0' ' ' </proc/self/cmdline"])),
        Question::run("a large argument", program(&["sh", "-c", "echo ${#0}", &"x".repeat(100_000)])),
        Question::run("an argument larger than any can be", program(&["true", &"x".repeat(140_000)])).refused("argument list too long"),
        Question::run("process, parent, group and session", program(&["awk", "{ print $1, $4, $5, $6, $7, $8 }", "/proc/self/stat"])),
        Question::run("name of the process", program(&["cat", "/proc/self/comm"])),
    ]
}

fn output() -> Vec<Question> {
    vec![
        Question::script("both streams", "echo out; echo err >&2; echo out again"),
        Question::script("no end of a line", "printf 'no end'"),
        Question::script("a long line", "head -c 40000 /dev/zero | tr '\\0' x; echo; echo short"),
        Question::script("bytes that are no text", "printf 'a\\001\\033\\tb\\r\\nc\\n'"),
        Question::script("a file that nobody writes to any more", "exec >&-; echo lost; echo kept >&2"),
        Question::run("input is empty", odd("wc -c; readlink /proc/self/fd/0")),
        Question::run("open descriptors", program(&["ls", "/proc/self/fd"])),
        Question::run("kinds of the streams", program(&["sh", "-c", "for n in 0 1 2; do stat -L -c %F /proc/self/fd/$n; done"])),
        Question::script(
            "the streams can be opened by their names",
            "echo out >/dev/stdout; echo err >/dev/stderr; echo x >/proc/self/fd/1",
        ),
        Question::run("the streams can be opened by a user", odd("echo out >/dev/stdout; echo err >/dev/stderr").user(1234)),
        Question::run("whose the streams are", odd("for n in 0 1 2; do stat -L -c '%u:%g %a' /proc/self/fd/$n; done").user(1234)),
        Question::run(
            "a terminal",
            odd("tty; stty -a | head -1 | sed 's/;.*rows/; rows/'; echo err >&2; for n in 0 1 2; do readlink /proc/self/fd/$n; done").tty(),
        ),
        Question::run("whose the terminal is", odd("stat -c '%u:%g %a' $(tty)").tty()),
        Question::run("whose a user's terminal is", odd("stat -c '%u:%g %a' $(tty); echo x >/dev/tty").tty().user(1234).group(2345)),
        Question::run("the console is the terminal", odd("stat -c '%F %a %u:%g' /dev/console; echo console >/dev/console").tty()),
        Question::run("a session on a terminal", program(&["awk", "{ print $1, $4, $5, $6, $8 }", "/proc/self/stat"]).tty()),
        Question::run("open descriptors with a terminal", program(&["ls", "/proc/self/fd"]).tty()),
    ]
}
