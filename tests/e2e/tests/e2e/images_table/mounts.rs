// SPDX-License-Identifier: Apache-2.0
//! Where things are mounted: missing places, links, paths that are no places.

use anyhow::Result;
use magnetar_cri::ContainerSpec;

use super::{ask::Question, files::Files};

/// The image of images/oci/images.d/17-odd.sh.
pub const ODD: &str = "localhost/magnetar/odd:1";

/// A container of the odd image with a script.
pub fn odd(script: &str) -> ContainerSpec {
    ContainerSpec::new("odd", ODD).shell(script)
}

/// Prints mode, owner and name of every path that is given.
fn rights(paths: &str) -> String {
    format!("stat -c '%a %u:%g %F %n' {paths}")
}

fn asked(name: &'static str, script: &str) -> Question {
    Question::run(name, odd(script))
}

pub fn questions(files: &Files) -> Result<Vec<Question>> {
    let mut all = links(files)?;
    all.extend(missing_places(files)?);
    all.extend(no_places(files)?);
    all.extend(places_of_the_runtime(files)?);
    Ok(all)
}

fn links(files: &Files) -> Result<Vec<Question>> {
    let word = files.file("links/word", "here")?;
    let at = |place: &str, script: &str| odd(script).mount(&word, place);
    let of = |name: &str, place: &str, script: &str| Ok::<_, anyhow::Error>(odd(script).mount(&files.volume(name)?, place));
    let inner = files.volume("links/inner")?;
    let outer = files.dir("links/outer")?;
    std::os::unix::fs::symlink("/srv/app", format!("{outer}/out"))?;
    std::os::unix::fs::symlink("../../../../../../srv/other", format!("{outer}/up"))?;
    Ok(vec![
        asked("the pod's files where the image's dangling links lead", "cat /etc/resolv.conf /etc/hostname; wc -l </etc/hosts"),
        asked("the links themselves stay", "readlink /etc/resolv.conf /etc/hostname /etc/hosts"),
        Question::run("a file on a dangling absolute link", at("/etc/localtime", "cat /etc/localtime /usr/share/zoneinfo/Nowhere/City")),
        Question::run("a file on a link through a dangling link", at("/etc/through", "cat /etc/through /tmp/none/there/more/file")),
        Question::run(
            "rights of what is made at the end of dangling links",
            at("/etc/through", &rights("/tmp/none /tmp/none/there /tmp/none/there/more")),
        ),
        Question::run(
            "a folder on links whose last part is missing",
            of("links/1", "/vendor/app/later", "cat /vendor/app/later/word /opt/app/.data/later/word")?,
        ),
        Question::run(
            "a folder on a dangling link",
            of("links/2", "/dangling", "cat /dangling/word /srv/nowhere/deep/word; readlink /dangling")?,
        ),
        Question::run(
            "a folder beneath a dangling link",
            of("links/3", "/dangling/a/b", "cat /dangling/a/b/word /srv/nowhere/deep/a/b/word")?,
        ),
        Question::run("a folder beneath a link to a folder", of("links/4", "/place/volume", "cat /srv/app/volume/word; readlink /place")?),
        Question::run("a file on a link to a file", at("/link-to-secret", "cat /secret; readlink /link-to-secret")),
        Question::run("a file on a link to a program", at("/srv/app/link-to-hello", "cat /srv/app/hello")),
        Question::run("a folder on a link that leads above the root", of("links/5", "/escape", "cat /srv/outside/word")?),
        Question::run(
            "a folder beneath a link that leads above the root",
            of("links/6", "/escape/deeper/still", "cat /srv/outside/deeper/still/word")?,
        ),
        Question::run("a file on a link that leads in a circle", at("/loop-a", "cat /loop-a")).refused("loop-a"),
        Question::run("a folder beneath a link that leads in a circle", of("links/7", "/loop-a/inner", "true")?).refused("loop-a"),
        Question::run(
            "a folder beneath a link of a volume that leads out of it",
            odd("cat /srv/app/made/word; ls /outer/out/made").mount(&outer, "/outer").mount(&inner, "/outer/out/made"),
        ),
        Question::run(
            "a folder beneath a link of a volume that leads above it",
            odd("cat /srv/other/made/word").mount(&outer, "/outer").mount(&inner, "/outer/up/made"),
        ),
        Question::run("a folder on a link of the kernel's", of("links/8", "/proc/self/root/srv/magic", "ls /srv")?).refused("/proc"),
    ])
}

fn missing_places(files: &Files) -> Result<Vec<Question>> {
    let word = files.file("missing/word", "here")?;
    let folder = files.volume("missing/folder")?;
    let host = |name: &str| files.volume(&format!("missing/{name}"));
    Ok(vec![
        Question::run(
            "rights of the folders above a missing file",
            odd(&rights("/not /not/in /not/in/image /not/in/image/word")).mount(&word, "/not/in/image/word"),
        ),
        Question::run(
            "rights of the folders above a missing folder",
            odd(&rights("/not /not/in /not/in/image")).mount(&folder, "/not/in/image"),
        ),
        Question::run(
            "folders made in one with setgid and sticky bits",
            odd(&rights("/setgid /setgid/a /setgid/a/b")).mount(&folder, "/setgid/a/b/c"),
        ),
        Question::run("a missing file in a folder with setgid and sticky bits", odd(&rights("/setgid/a")).mount(&word, "/setgid/a/word")),
        Question::run("a folder beneath one of another user", odd(&rights("/private /private/a")).mount(&folder, "/private/a/b")),
        Question::run(
            "a container of a user with a missing place",
            odd(&rights("/not /not/here")).mount(&word, "/not/here/word").user(1234),
        ),
        Question::run(
            "a missing place on a read-only root",
            odd("cat /not/here/word; touch /not/x").mount(&folder, "/not/here").read_only_rootfs(),
        ),
        Question::run(
            "a missing file on a read-only root",
            odd("cat /not/word; echo x >>/not/word && cat /not/word")
                .mount(&files.file("missing/ro", "here")?, "/not/word")
                .read_only_rootfs(),
        ),
        Question::run(
            "a missing folder in a volume",
            odd(&format!("{}; cat /v/a/b/word", rights("/v/a"))).mount(&host("1")?, "/v").mount(&folder, "/v/a/b"),
        ),
        Question::run(
            "a missing file in a volume",
            odd(&format!("cat /v/a/file; {}", rights("/v/a"))).mount(&host("2")?, "/v").mount(&word, "/v/a/file"),
        ),
        Question::run(
            "a missing folder in a read-only volume",
            odd("true").mount_read_only(&host("3")?, "/v").mount(&folder, "/v/absent/b"),
        )
        .refused("/v/absent"),
        Question::run("a folder that is there in a read-only volume", {
            files.dir("missing/4/b")?;
            odd("cat /v/b/word; touch /v/b/x && touch /v/x").mount_read_only(&host("4")?, "/v").mount(&host("5")?, "/v/b")
        }),
        Question::run(
            "volumes in volumes, the inner ones named first",
            odd("cat /a/word /a/b/word /a/b/c/word").mount(&host("6")?, "/a/b/c").mount(&host("7")?, "/a/b").mount(&host("8")?, "/a"),
        ),
        Question::run("two volumes at one place", odd("ls /v").mount(&host("9")?, "/v").mount(&files.dir("missing/empty")?, "/v")),
    ])
}

fn no_places(files: &Files) -> Result<Vec<Question>> {
    let word = files.file("no/word", "here")?;
    let folder = files.volume("no/folder")?;
    let long = format!("/mnt/{}", "n".repeat(255));
    let too_long = format!("/mnt/{}", "n".repeat(256));
    Ok(vec![
        Question::run("a place with dots and doubled slashes", odd("cat /mnt2/word").mount(&folder, "/a/..//mnt2/")),
        Question::run("a place with dots above the root", odd("cat /mnt3/word").mount(&folder, "/../../mnt3")),
        Question::run("a place with a dot at its end", odd("cat /mnt4/word").mount(&folder, "/mnt4/.")),
        Question::run("a place without a slash before it", odd("cat /relative/place/word").mount(&folder, "relative/place")),
        Question::run(
            "a place with spaces, colons, commas, quotes and a line's end",
            odd("cat \"/mnt/a b:c,d\\\\e'f\"$'\\n'g/word").mount(&folder, "/mnt/a b:c,d\\e'f\ng"),
        ),
        Question::run("a place in other letters", odd("cat /mnt/größe/世界/word").mount(&folder, "/mnt/größe/世界")),
        Question::run("a place that begins with a dash", odd("cat /-rf/word").mount(&folder, "/-rf")),
        Question::run("a name as long as names can be", odd(&format!("cat {long}/word")).mount(&folder, &long)),
        Question::run("a name longer than names can be", odd("true").mount(&folder, &too_long)).refused("too long"),
        Question::run("a folder on a file", odd("true").mount(&folder, "/secret")).refused("secret"),
        Question::run("a file on a folder", odd("true").mount(&word, "/masked")).refused("masked"),
        Question::run("a folder beneath a file", odd("true").mount(&folder, "/secret/inner")).refused("secret"),
        Question::run("a folder on the root", odd("true").mount(&folder, "/")).refused("/"),
        Question::run("no place at all", odd("true").mount(&folder, "")).refused("mount"),
    ])
}

fn places_of_the_runtime(files: &Files) -> Result<Vec<Question>> {
    let word = files.file("own/word", "here")?;
    let own = |place: &str| files.volume(&format!("own{place}"));
    let file_at = |place: &str, script: &str| odd(script).mount(&word, place);
    let folder_at = |place: &str, script: &str| Ok::<_, anyhow::Error>(odd(script).mount(&own(place)?, place));
    Ok(vec![
        Question::run("a file in place of /etc/resolv.conf", file_at("/etc/resolv.conf", "cat /etc/resolv.conf")),
        Question::run("a file in place of /etc/hosts", file_at("/etc/hosts", "cat /etc/hosts")),
        Question::run("a file in place of /etc/hostname", file_at("/etc/hostname", "cat /etc/hostname; hostname")),
        Question::run("a folder in place of /dev/shm", folder_at("/dev/shm", "cat /dev/shm/word; grep -c /dev/shm /proc/mounts")?),
        Question::run("a folder in place of /dev/mqueue", folder_at("/dev/mqueue", "cat /dev/mqueue/word")?),
        Question::run("a folder in /dev", folder_at("/dev/volume", "cat /dev/volume/word")?),
        Question::run("a file in place of /dev/null", file_at("/dev/null", "true")).refused("/dev/null"),
        Question::run("a file in /dev", file_at("/dev/log", "cat /dev/log")),
        Question::run("a folder in place of /dev", folder_at("/dev", "ls /dev; cat /dev/word")?),
        Question::run("a folder in place of /tmp", folder_at("/tmp", &rights("/tmp /tmp/word"))?),
        Question::run("a folder in place of /run", folder_at("/run", "cat /run/word")?),
        Question::run("a folder in place of /sys", folder_at("/sys", "cat /sys/word; ls /sys")?),
        Question::run("a folder in place of /sys/fs/cgroup", folder_at("/sys/fs/cgroup", "cat /sys/fs/cgroup/word")?),
        Question::run("a folder missing in /sys", folder_at("/sys/no-such-folder", "true")?).refused("/sys/no-such-folder"),
        Question::run("a folder in place of one in /sys", folder_at("/sys/kernel", "cat /sys/kernel/word")?),
        Question::run("a folder in place of /proc", folder_at("/proc", "true")?).refused("/proc"),
        Question::run("a file in place of /proc/uptime", file_at("/proc/uptime", "cat /proc/uptime")),
        Question::run("a file in place of /proc/cpuinfo", file_at("/proc/cpuinfo", "cat /proc/cpuinfo")),
        Question::run("a file in place of /proc/meminfo", file_at("/proc/meminfo", "cat /proc/meminfo")),
        Question::run("a file in place of /proc/loadavg", file_at("/proc/loadavg", "cat /proc/loadavg")),
        Question::run("a file in place of /proc/version", file_at("/proc/version", "true")).refused("/proc/version"),
        Question::run("a file in place of /proc/self/attr/exec", file_at("/proc/self/attr/exec", "true")).refused("/proc/self/attr/exec"),
        Question::run("a folder in place of /proc/sys", folder_at("/proc/sys", "true")?).refused("/proc/sys"),
        Question::run(
            "the programs of the image hidden",
            ContainerSpec::new("hidden", ODD).command(["/bin/sh", "-c", "true"]).mount(&own("/bin")?, "/bin"),
        )
        .refused("/bin/sh"),
    ])
}
