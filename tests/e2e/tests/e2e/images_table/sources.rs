// SPDX-License-Identifier: Apache-2.0
//! What is mounted, and with which options: kinds of files, read-only, recursive, propagation,
//! options of the node's own mounts.

use std::{fs, os::unix::fs::PermissionsExt as _, os::unix::net::UnixListener};

use anyhow::Result;
use magnetar_cri::{
    ContainerSpec,
    v1::{ImageSpec, Mount, MountPropagation},
};
use nix::{mount::MsFlags, sys::stat::Mode, unistd::mkfifo};

use super::{
    ask::{Pods, Question},
    files::Files,
    mounts::{ODD, odd},
};

/// Prints the options that mount points have in the container, and which way mounts propagate.
pub fn options(places: &[&str]) -> String {
    let one = |place: &&str| {
        format!(
            "awk -v at={place} '$5 == at {{ s = $6; for (i = 7; $i != \"-\"; i++) {{ sub(\":.*\", \"\", $i); \
             s = s \" \" $i }} print at, s }}' \
             /proc/self/mountinfo"
        )
    };
    places.iter().map(one).collect::<Vec<_>>().join("; ")
}

pub fn questions(files: &Files) -> Result<Vec<Question>> {
    let mut all = kinds(files)?;
    all.extend(read_only(files)?);
    all.extend(propagation(files)?);
    all.extend(mapped(files)?);
    Ok(all)
}

fn kinds(files: &Files) -> Result<Vec<Question>> {
    let folder = files.volume("kinds/folder")?;
    let path = |name: &str| files.path(&format!("kinds/{name}"));
    std::os::unix::fs::symlink("folder", path("link"))?;
    std::os::unix::fs::symlink("/nowhere", path("dangling"))?;
    mkfifo(path("fifo").as_str(), Mode::from_bits_truncate(0o640))?;
    // The name stays when nobody listens any more.
    drop(UnixListener::bind(path("socket"))?);
    let owned = files.file("kinds/owned", "here")?;
    std::os::unix::fs::chown(&owned, Some(1234), Some(2345))?;
    fs::set_permissions(&owned, fs::Permissions::from_mode(0o4640))?;
    let of = |name: &str, script: &str| odd(script).mount(&path(name), "/v");
    Ok(vec![
        Question::run("a link of the node's to a folder", of("link", "cat /v/word; stat -c %F /v")),
        Question::run("a link of the node's that leads nowhere", of("dangling", "stat -c %F /v")).refused("kinds/dangling"),
        Question::run("a folder that is missing on the node", of("absent/deep", "stat -c '%F %a %u:%g' /v")),
        Question::run("a FIFO of the node's", of("fifo", "stat -c '%F %a %u:%g' /v")),
        Question::run("a socket of the node's", of("socket", "stat -c %F /v")),
        Question::run("a device of the node's as a volume", odd("stat -c '%F %t:%T' /v; echo x >/v && wc -c </v").mount("/dev/null", "/v")),
        Question::run("owner and rights of a mounted file", of("owned", "stat -c '%a %u:%g' /v; cat /v")),
        Question::run("a mounted file that the container's user may not read", of("owned", "cat /v").user(4321)),
        Question::run("a mounted file that the container's group may read", of("owned", "cat /v").user(4321).supplemental_groups(&[2345])),
        Question::run("a volume of another user's", odd("touch /v/x; cat /v/word").mount(&folder, "/v").user(1234)),
        Question::run("owner of what is made in a volume", {
            let open = files.dir("kinds/open")?;
            fs::set_permissions(&open, fs::Permissions::from_mode(0o1777))?;
            odd("touch /v/x && mkdir /v/d && stat -c '%a %u:%g %n' /v /v/x /v/d").mount(&open, "/v").user(1234).group(2345)
        }),
        Question::run("the node's path is none", odd("true").mount("", "/v")).refused("mkdir"),
        Question::run(
            "an image as a volume",
            odd("ls /v; cat /v/secret; touch /v/x").edit(|c| c.mounts.push(image("localhost/magnetar/odd:1"))),
        ),
        Question::run("an image that is not there as a volume", odd("true").edit(|c| c.mounts.push(image("localhost/magnetar/none:1"))))
            .refused("magnetar/none"),
    ])
}

fn image(name: &str) -> Mount {
    let image = ImageSpec { image: name.to_owned(), ..Default::default() };
    Mount { container_path: "/v".to_owned(), image: Some(image), readonly: true, ..Default::default() }
}

/// A volume with a file system of its own in it.
fn nested(files: &Files, name: &str) -> Result<String> {
    let outer = files.tmpfs(name, MsFlags::empty())?;
    files.tmpfs(&format!("{name}/inner"), MsFlags::empty())?;
    files.file(&format!("{name}/inner/word"), "inside")?;
    Ok(outer)
}

fn read_only(files: &Files) -> Result<Vec<Question>> {
    let word = files.file("ro/word", "here")?;
    let folder = files.volume("ro/folder")?;
    let strict = files.tmpfs("ro/strict", MsFlags::MS_NOEXEC | MsFlags::MS_NODEV | MsFlags::MS_NOSUID)?;
    let program = files.file("ro/strict/program", "#!/bin/sh\necho ran")?;
    let setuid = files.file("ro/open/program", "#!/bin/sh\necho ran")?;
    for path in [&program, &setuid] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    let closed = files.tmpfs("ro/closed", MsFlags::empty())?;
    files.file("ro/closed/word", "here")?;
    nix::mount::mount(
        None::<&str>,
        closed.as_str(),
        None::<&str>,
        MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_BIND,
        None::<&str>,
    )?;
    let recursive = |script: &str, host: &str, readonly: bool| {
        let mount = Mount {
            container_path: "/v".to_owned(),
            host_path: host.to_owned(),
            readonly,
            recursive_read_only: true,
            ..Default::default()
        };
        odd(script).edit(|c| c.mounts.push(mount))
    };
    let touch = "touch /v/x; touch /v/inner/x; cat /v/inner/word";
    Ok(vec![
        Question::run("a read-only folder", odd("touch /v/x; echo x >>/v/word; rm /v/word; cat /v/word").mount_read_only(&folder, "/v")),
        Question::run("a read-only file", odd("echo x >>/v; rm /v; cat /v").mount_read_only(&word, "/v")),
        Question::run("a file mount can be neither removed nor renamed", odd("rm /v; mv /v /w; cat /v").mount(&word, "/v")),
        Question::run("a file system in a volume", odd(touch).mount(&nested(files, "ro/1")?, "/v")),
        Question::run("a file system in a read-only volume", odd(touch).mount_read_only(&nested(files, "ro/2")?, "/v")),
        Question::run("a volume that is read-only all the way down", recursive(touch, &nested(files, "ro/3")?, true))
            .if_recursive_read_only(),
        Question::run("read-only all the way down, and not read-only", recursive(touch, &folder, false))
            .refused("ecursive")
            .if_recursive_read_only(),
        Question::run("a volume that is mounted read-only on the node", odd("touch /v/x; cat /v/word").mount(&closed, "/v")),
        Question::run("options of an ordinary volume", odd(&options(&["/v"])).mount(&folder, "/v")),
        Question::run("options of a read-only volume", odd(&options(&["/v"])).mount_read_only(&folder, "/v")),
        Question::run("options of a volume that are the node's", odd(&options(&["/v"])).mount(&strict, "/v")),
        Question::run("options of a read-only volume that are the node's", odd(&options(&["/v"])).mount_read_only(&strict, "/v")),
        Question::run("a program in a volume without exec", odd("/v/program").mount(&strict, "/v")),
        Question::run("a program in a volume", odd("/v/program").mount(&files.path("ro/open"), "/v")),
        Question::run(
            "the first program in a volume without exec",
            ContainerSpec::new("noexec", ODD).command(["/v/program"]).mount(&strict, "/v"),
        )
        .refused("/v/program"),
        Question::run("a device in a volume without devices", odd("mknod /v/null c 1 3 && echo x >/v/null").mount(&strict, "/v")),
    ])
}

fn propagation(files: &Files) -> Result<Vec<Question>> {
    let folder = files.volume("propagation/folder")?;
    let with = |propagation, readonly| odd(&options(&["/v"])).mount_with(&folder, "/v", readonly, propagation);
    use MountPropagation::{PropagationBidirectional, PropagationHostToContainer, PropagationPrivate};
    Ok(vec![
        Question::run("a volume that is private", with(PropagationPrivate, false)),
        Question::run("a volume with mounts from the node", with(PropagationHostToContainer, false)),
        Question::run("a read-only volume with mounts from the node", with(PropagationHostToContainer, true)),
        Question::run("a volume with mounts both ways", with(PropagationBidirectional, false).privileged()).in_pod(Pods::Privileged),
        Question::run("a volume with mounts both ways and no privileges", with(PropagationBidirectional, false)),
        Question::run("propagation of the root", odd(&options(&["/"])).read_only_rootfs()),
        Question::run(
            "propagation of the root beside a shared volume",
            odd("awk '$5 == \"/\" { print $7 }' /proc/self/mountinfo | sed 's/:.*//'").mount_with(
                &folder,
                "/v",
                false,
                PropagationHostToContainer,
            ),
        ),
    ])
}

fn mapped(files: &Files) -> Result<Vec<Question>> {
    let folder = files.volume("mapped/folder")?;
    let map = magnetar_cri::v1::IdMapping { host_id: Pods::ROOT_IS, container_id: 0, length: 65_536 };
    let closed = files.volume("mapped/closed/inner")?;
    fs::set_permissions(files.path("mapped/closed"), fs::Permissions::from_mode(0o700))?;
    let in_namespace = |name, spec| Question::run(name, spec).in_pod(Pods::UserNamespace);
    Ok(vec![
        in_namespace(
            "a user namespace: its map, and whom the image belongs to",
            odd("cat /proc/self/uid_map /proc/self/gid_map; stat -c '%u:%g %n' / /secret /private /etc /dev/null /proc /sys"),
        ),
        in_namespace(
            "a user namespace: a mapped volume",
            odd("stat -c %u:%g /v/word; touch /v/x && stat -c %u:%g /v/x").mount(&folder, "/v").edit(|c| {
                for mount in &mut c.mounts {
                    mount.uid_mappings = vec![map];
                    mount.gid_mappings = vec![map];
                }
            }),
        ),
        in_namespace("a user namespace: a volume that is not mapped", odd("stat -c %u:%g /v/word; touch /v/y").mount(&folder, "/v")),
        in_namespace("a user namespace: a volume beneath a folder that nobody may enter", odd("cat /v/word").mount(&closed, "/v")),
        in_namespace(
            "a user namespace: missing places",
            odd("stat -c '%a %u:%g' /not /not/here; cat /not/here/word").mount(&folder, "/not/here"),
        ),
        in_namespace("a user namespace: a missing working directory", odd("pwd; stat -c '%a %u:%g' .").working_dir("/fresh/dir")),
        in_namespace("a user namespace: devices", odd("ls -ln /dev | awk 'NF > 6 && /^c/ { print $1, $3, $4, $NF }'; echo x >/dev/null")),
        in_namespace("a user namespace: another user", odd("id; touch /srv/someone/x && stat -c %u /srv/someone/x").user(2000)),
    ])
}
