// SPDX-License-Identifier: Apache-2.0
//! Working directories, users and groups, variables of the environment.

use anyhow::Result;
use magnetar_cri::ContainerSpec;

use super::{
    ask::Question,
    files::Files,
    mounts::{ODD, odd},
};

/// The same image with a configuration of its own: a user, a working directory, an entrypoint.
const CONFIGURED: &str = "localhost/magnetar/odd-configured:1";

pub fn questions(files: &Files) -> Result<Vec<Question>> {
    let mut all = directories(files)?;
    all.extend(users());
    all.extend(variables());
    Ok(all)
}

fn directories(files: &Files) -> Result<Vec<Question>> {
    let where_am_i = "pwd; pwd -P; echo $PWD; stat -c '%a %u:%g' .";
    let at = |path: &str| odd(where_am_i).working_dir(path);
    let volume = files.volume("cwd/volume")?;
    let closed = files.volume("cwd/closed")?;
    Ok(vec![
        Question::script("no working directory", where_am_i),
        Question::run("a missing working directory", at("/fresh/dir")),
        Question::run("a missing working directory of a user", at("/fresh/dir").user(1234)),
        Question::run("a missing working directory on a read-only root", at("/fresh/dir").read_only_rootfs()),
        Question::run("a working directory with a slash at its end", at("/srv/app/")),
        Question::run("a working directory with dots", at("/var/../srv/./someone")),
        Question::run("a working directory without a slash before it", at("srv/app")).refused("absolute"),
        Question::run("a working directory that is a link", at("/place")),
        Question::run("a working directory beneath a link", at("/place/fresh")),
        Question::run("a working directory that is a dangling link", at("/dangling")).refused("/dangling"),
        Question::run("a working directory beneath a dangling link", at("/dangling/deeper")).refused("/dangling"),
        Question::run("a working directory that leads in a circle", at("/loop-a")).refused("/loop-a"),
        Question::run("a working directory above the root", at("/escape")).refused("/escape"),
        Question::run("a working directory that is a file", at("/secret")).refused("/secret"),
        Question::run("a working directory beneath a file", at("/secret/inner")).refused("/secret"),
        Question::run("a working directory of the user's own", at("/private").user(42)),
        Question::run("a working directory that the user may not enter", at("/private").user(43)),
        Question::run("a working directory that root may not enter", at("/private").capabilities(&[], &["ALL"])),
        Question::run("a missing working directory in one that the user may not enter", at("/private/fresh").user(43)),
        Question::run("a missing working directory in a folder with setgid", at("/setgid/fresh")),
        Question::run("a missing working directory in a volume", at("/v/fresh").mount(&volume, "/v")),
        Question::run("a missing working directory in a read-only volume", at("/v/absent").mount_read_only(&closed, "/v"))
            .refused("/v/absent"),
        Question::run("a working directory in /proc", odd("pwd").working_dir("/proc/sys")),
        Question::run("a missing working directory in /proc", odd("pwd").working_dir("/proc/absent")).refused("/proc/absent"),
        Question::run("a working directory that is a descriptor", odd("pwd").working_dir("/proc/self/fd/7")).refused("/proc/self/fd/7"),
        Question::run("a working directory in other letters", at("/größe/a b")),
        Question::run("the image's working directory", ContainerSpec::new("configured", CONFIGURED).command(["/bin/sh", "-c", where_am_i])),
        Question::run(
            "a working directory in place of the image's",
            ContainerSpec::new("configured", CONFIGURED).command(["/bin/sh", "-c", where_am_i]).working_dir("/tmp"),
        ),
    ])
}

fn users() -> Vec<Question> {
    let who = "echo $(id -u) $(id -g) $(id -G) $HOME; grep -E '^(Uid|Gid|Groups)' /proc/self/status";
    let configured = |script: &str| ContainerSpec::new("configured", CONFIGURED).command(["/bin/sh", "-c", script]);
    vec![
        Question::script("no user", who),
        Question::run("a user with a home and groups", odd(who).user(2000)),
        Question::run("a user by name", odd(who).username("someone")),
        Question::run("a user by name and another group", odd(who).username("someone").group(33)),
        Question::run("a user without a home", odd(who).user(2001)),
        Question::run("a user whom nobody knows", odd(who).user(54_321)),
        Question::run("a user with the largest number", odd(who).user(2_147_483_647)),
        Question::run("a user with a negative number", odd("true").user(-5)).refused("-5"),
        Question::run("a user by a name that nobody has", odd("true").username("nobody-has-this")).refused("no users found"),
        Question::run("a group without a user", odd("true").group(2500)).refused("user"),
        Question::run("a user and a group", odd(who).user(1234).group(2345)),
        Question::run("more groups", odd(who).user(1234).group(2345).supplemental_groups(&[4567, 3456, 4567])),
        Question::run("more groups of a user who has some", odd(who).user(2000).supplemental_groups(&[3456])),
        Question::run(
            "only the groups that were asked for",
            odd(who).user(2000).supplemental_groups(&[3456]).security(|s| s.supplemental_groups_policy = 1),
        ),
        Question::run("root with more groups", odd(who).supplemental_groups(&[3456])),
        Question::run("the image's user", configured(who)),
        Question::run("root in place of the image's user", configured(who).user(0)),
        Question::run("a file that only root may read", odd("cat /root-only").user(1234)),
        Question::run("a setuid program", odd("/srv/app/show /root-only").user(1234)),
        Question::run("a setuid program without new privileges", odd("/srv/app/show /root-only").user(1234).no_new_privs()),
        Question::run("a program that only root may run", ContainerSpec::new("only-root", ODD).command(["/srv/app/only-root"]).user(1234))
            .refused("/srv/app/only-root"),
        Question::run(
            "a program that only root may run, and the right to run it",
            ContainerSpec::new("ambient", ODD).command(["/srv/app/only-root"]).user(1234).security(|s| {
                s.capabilities.get_or_insert_default().add_ambient_capabilities = vec!["DAC_OVERRIDE".to_owned()];
            }),
        ),
        Question::run(
            "root without capabilities and a program that others may not run",
            ContainerSpec::new("owner", ODD).command(["/srv/app/only-root"]).capabilities(&[], &["ALL"]),
        ),
    ]
}

fn variables() -> Vec<Question> {
    let print = || ContainerSpec::new("env", ODD).command(["/bin/env"]);
    let path = |value: &str| ContainerSpec::new("path", ODD).command(["hello"]).env("PATH", value);
    vec![
        Question::run("variables without any asked for", print()),
        Question::run("a home that was asked for", print().env("HOME", "/override")),
        Question::run("a home that is empty", print().env("HOME", "")),
        Question::run("a home that is empty after one that is not", print().env("HOME", "/override").env("HOME", "")),
        Question::run("a home that is empty, of a user who has one", print().env("HOME", "").user(2000)),
        Question::run("a variable twice", print().env("ONE", "two").env("OTHER", "x").env("ONE", "three")),
        Question::run("a variable twice, empty the second time", print().env("ONE", "two").env("ONE", "")),
        Question::run("a variable with ends of lines", print().env("LINES", "a\nb\n")),
        Question::run("a variable with equals signs and other letters", print().env("EQUAL", "a=b==c").env("GRÖSSE", "世界")),
        Question::run("a variable with a dollar sign, which nobody replaces", print().env("DOLLAR", "$HOME ${PATH} $(id)")),
        Question::run("a large variable", odd("echo ${#LARGE}").env("LARGE", &"x".repeat(100_000))),
        Question::run("a variable larger than any can be", odd("true").env("LARGE", &"x".repeat(140_000)))
            .refused("argument list too long"),
        Question::run("a variable without a name", print().env("", "value")).refused("environment variable"),
        Question::run("a name with an equals sign", print().env("A=B", "c")),
        Question::run("variables of the image", ContainerSpec::new("configured", CONFIGURED).command(["/bin/env"])),
        Question::run(
            "a variable in place of the image's",
            ContainerSpec::new("configured", CONFIGURED).command(["/bin/env"]).env("FROM", "pod"),
        ),
        Question::run("variables with a terminal", print().tty()),
        Question::run("a program that is found along PATH", path("/nowhere:/srv/app")),
        Question::run("a program that is not on PATH", path("/nowhere:/bin")).refused("hello"),
        Question::run(
            "a program of which the first on PATH cannot be run",
            ContainerSpec::new("path", ODD).command(["not-executable"]).env("PATH", "/srv/app:/bin"),
        )
        .refused("not-executable"),
        Question::run("a program on an empty PATH", path("")).refused("hello"),
        Question::run("a program found in the working directory by PATH", path(".").working_dir("/srv/app")).refused("hello"),
        Question::run("the image's entrypoint and arguments", ContainerSpec::new("configured", CONFIGURED)),
        Question::run(
            "arguments in place of the image's",
            ContainerSpec::new("configured", CONFIGURED).edit(|c| c.args = vec!["mine".to_owned()]),
        ),
    ]
}
