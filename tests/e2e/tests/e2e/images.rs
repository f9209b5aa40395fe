// SPDX-License-Identifier: Apache-2.0
//! Images and mounts as users have them: links whose ends are missing, working directories that are
//! not there, programs that are none. What is expected is what the stock runtime does, runc; where
//! a handler's runtime differs, the difference is listed here with its reason.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context as _, Result, ensure};
use magnetar_cri::{ContainerSpec, PodSpec};
use magnetar_e2e::{Case, Scratch, on_node, on_shared_kernel};

/// The image of images/oci/images.d/17-odd.sh.
const ODD: &str = "localhost/magnetar/odd:1";

/// crun 1.28 makes no directory where a link leads that is missing itself, and says a failed
/// `execve` in the container's own log.
fn is_crun(case: &Case) -> bool {
    case.handler() == "magnetar-runc" || case.handler() == "magnetar-runc-shim"
}

/// Past libtest's capture: whoever reads the output must see what was not tested.
fn skipped(test: &str, because: &str) -> Result<()> {
    Ok(writeln!(std::io::stderr(), "skipped images::{test}: {because}")?)
}

fn odd(script: &str) -> ContainerSpec {
    ContainerSpec::new("odd", ODD).shell(script)
}

/// What one container of the odd image prints, in a pod with a name and a name server of its own.
async fn says(case: &Case, spec: &ContainerSpec) -> Result<String> {
    let pod =
        case.node().run_pod(&case.pod_spec_with_network("images").hostname("the-host").dns(&["10.9.9.9"], &["a.example"], &[])).await?;
    let said = case.output(&pod, spec).await;
    pod.remove().await?;
    said
}

#[test]
fn the_pods_files_are_mounted_at_the_targets_of_the_images_links() {
    on_node(async |case| {
        let said = says(case, &odd("cat /etc/resolv.conf /etc/hostname; wc -l </etc/hosts; readlink /etc/resolv.conf")).await?;
        let hosts = fs::read_to_string("/etc/hosts")?.lines().count();
        let expected = format!("search a.example\nnameserver 10.9.9.9\nthe-host\n{hosts}\n/run/systemd/resolve/stub-resolv.conf\n");
        ensure!(said == expected, "{said:?} is not {expected:?}");
        Ok(())
    });
}

#[test]
fn a_file_is_mounted_at_the_target_of_a_dangling_link() {
    on_node(async |case| {
        let scratch = Scratch::new()?;
        fs::write(scratch.path().join("file"), "zone\n")?;
        let spec = odd("cat /etc/localtime /usr/share/zoneinfo/Nowhere/City").mount(&scratch.join("file"), "/etc/localtime");
        assert_eq!(says(case, &spec).await?, "zone\nzone\n");
        Ok(())
    });
}

#[test]
fn a_directory_is_mounted_at_a_link_target_whose_last_part_is_missing() {
    on_node(async |case| {
        if is_crun(case) {
            return skipped("a_directory_is_mounted_at_a_link_target_whose_last_part_is_missing", "crun makes no such directory");
        }
        let scratch = Scratch::new()?;
        fs::create_dir(scratch.path().join("data"))?;
        fs::write(scratch.path().join("data/word"), "here\n")?;
        let spec = odd("cat /vendor/app/later/word /opt/app/.data/later/word").mount(&scratch.join("data"), "/vendor/app/later");
        assert_eq!(says(case, &spec).await?, "here\nhere\n");
        Ok(())
    });
}

#[test]
fn dots_and_double_slashes_in_a_mount_path_are_normalised() {
    on_node(async |case| {
        let scratch = Scratch::new()?;
        fs::create_dir(scratch.path().join("data"))?;
        fs::write(scratch.path().join("data/word"), "here\n")?;
        let spec = odd("cat /mnt2/word").mount(&scratch.join("data"), "/a/..//mnt2/");
        assert_eq!(says(case, &spec).await?, "here\n");
        Ok(())
    });
}

#[test]
fn a_missing_working_directory_is_created() {
    on_node(async |case| {
        let fresh = odd("pwd; stat -c %a .").working_dir("/fresh/dir");
        assert_eq!(says(case, &fresh).await?, "/fresh/dir\n755\n");
        let read_only = odd("pwd; touch x 2>/dev/null || echo refused").working_dir("/fresh2").read_only_rootfs();
        assert_eq!(says(case, &read_only).await?, "/fresh2\nrefused\n");
        let of_user = odd("pwd; id -u").working_dir("/fresh3").user(1234);
        assert_eq!(says(case, &of_user).await?, "/fresh3\n1234\n");
        Ok(())
    });
}

/// The kernel's word on it comes when the container counts as started.
#[test]
fn a_script_without_an_interpreter_exits_with_255_and_a_one_line_error() {
    on_node(async |case| {
        if is_crun(case) {
            return skipped("a_script_without_an_interpreter_exits_with_255_and_a_one_line_error", "crun ends with 1 and lines of JSON");
        }
        let pod = case.pod("no-interpreter").await?;
        let container = pod.run(&ContainerSpec::new("script", ODD).command(["/srv/app/no-interpreter"])).await?;
        let status = container.exited(case.soon()).await?;
        assert_eq!(status.exit_code, 255);
        let log = case.whole_log(&container).await?;
        ensure!(log.stderr() == "exec /srv/app/no-interpreter: exec format error\n" && log.stdout().is_empty(), "{log:?}");
        Ok(pod.remove().await?)
    });
}

/// A raw block volume whose device path lies beneath a volume that another container of the pod can
/// write to, and that somebody exchanges directories and links in while the device is made. The
/// exchanging is done by the test, faster than any container.
#[test]
fn a_device_below_a_concurrently_changed_volume_is_made_nowhere_else() {
    on_shared_kernel("the device of a container in a virtual machine is one of the guest, and so is its root", async |case| {
        let rounds: u32 = std::env::var("MAGNETAR_ROUNDS_RACES").map_or(Ok(100), |rounds| rounds.parse())?;
        for handler in [case.handler(), "magnetar-libcontainer"] {
            race(case, &PodSpec::new("race", handler).host_network().own_pid(), rounds).await.with_context(|| handler.to_owned())?;
        }
        Ok(())
    });
}

async fn race(case: &Case, pod: &PodSpec, rounds: u32) -> Result<()> {
    let scratch = Scratch::new()?;
    let (volume, outside) = (scratch.path().join("volume"), scratch.path().join("outside"));
    fs::create_dir_all(volume.join("a/b"))?;
    fs::create_dir_all(outside.join("b"))?;
    // Whose owners must stay what they are, should the name lead here between the making of a
    // device and the giving of it.
    for round in (0..rounds).step_by(2) {
        fs::write(outside.join(format!("b/device-{round}")), "")?;
    }
    let over = Arc::new(AtomicBool::new(false));
    let exchange = std::thread::spawn({
        let (volume, outside, over) = (volume.clone(), outside.clone(), over.clone());
        move || {
            let (a, aside) = (volume.join("a"), volume.join("aside"));
            while !over.load(Ordering::Relaxed) {
                // A container may be setting up in the middle of it: then the next round does.
                let _moved = fs::rename(&a, &aside).and_then(|()| symlink(&outside, &a));
                std::thread::yield_now();
                let _back = fs::remove_file(&a).and_then(|()| fs::rename(&aside, &a));
                std::thread::yield_now();
            }
        }
    });
    let made = rounds_of(case, pod, &volume, rounds).await;
    over.store(true, Ordering::Relaxed);
    exchange.join().map_err(|_| anyhow::anyhow!("the exchange panicked"))?;
    let started = made?;
    let escaped: Vec<_> = walkdir(&outside)?.into_iter().filter(|path| is_foreign(path)).collect();
    ensure!(escaped.is_empty(), "made outside of the container, or given to another owner: {escaped:?}");
    // Otherwise nothing was raced for.
    ensure!(started > 0, "not one container was started");
    Ok(())
}

/// How many of the containers could be started: a device that cannot be made where it should is an
/// error.
async fn rounds_of(case: &Case, pod: &PodSpec, volume: &Path, rounds: u32) -> Result<u32> {
    let pod = case.node().run_pod(pod).await?;
    let mut started = 0;
    for round in 0..rounds {
        // A terminal's device: it belongs to a group of its own, so that a changed owner shows.
        let spec = case.script("exit 0").named(&format!("race-{round}")).mount(&volume.to_string_lossy(), "/volume").device(
            "/dev/tty",
            &format!("/volume/a/b/device-{round}"),
            "rw",
        );
        let container = pod.create(&spec).await?;
        if container.start().await.is_ok() {
            started += 1;
            container.exited(case.soon()).await?;
        }
        container.remove().await?;
    }
    pod.remove().await?;
    Ok(started)
}

fn walkdir(dir: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(walkdir(&path)?);
        }
        found.push(path);
    }
    Ok(found)
}

fn is_foreign(path: &Path) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else { return true };
    metadata.file_type().is_char_device() || metadata.gid() != 0 || metadata.uid() != 0 || (metadata.is_file() && metadata.len() > 0)
}
