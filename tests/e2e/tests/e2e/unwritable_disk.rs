// SPDX-License-Identifier: Apache-2.0
//! No place to write to: the folder where our pods keep their records is full, or read-only.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use magnetar_e2e::{Case, on_magnetar, refused};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const OURS: &str = "only our pods have their files in a folder that is known to us";
const STATE: &str = "/run/magnetar/k8s.io";

/// A file system over the folder of the pods' records, until this value is dropped. Pods that
/// run before have theirs below it, out of everybody's sight but in the hands that hold them.
struct Covered;

impl Covered {
    fn with(options: &str, flags: MsFlags) -> Result<Self> {
        fs::create_dir_all(STATE)?;
        mount(Some("tmpfs"), STATE, Some("tmpfs"), flags, Some(options))?;
        Ok(Self)
    }

    /// Nothing of a pod that was refused may be in it.
    fn is_empty(&self) -> Result<bool> {
        Ok(fs::read_dir(STATE)?.next().is_none())
    }
}

impl Drop for Covered {
    fn drop(&mut self) {
        // What stays mounted is found by the leak check.
        let _ = umount2(STATE, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_pod_on_a_read_only_disk_is_refused_and_leaves_nothing() {
    on_magnetar(OURS, async |case| {
        let covered = Covered::with("mode=755", MsFlags::MS_RDONLY)?;
        refused(case.node().run_pod(&case.pod_spec_with_network("read-only")).await, &["Read-only file system"])?;
        ensure!(covered.is_empty()?, "something was left");
        drop(covered);
        still_good(case).await
    });
}

#[test]
fn a_pod_on_a_full_disk_is_refused_and_leaves_nothing() {
    on_magnetar(OURS, async |case| {
        let mut refusals = 0;
        // The first inode is that of the folder itself.
        for inodes in 1..=16 {
            let covered = Covered::with(&format!("mode=755,nr_inodes={inodes}"), MsFlags::empty())?;
            match case.node().run_pod(&case.pod_spec("full")).await {
                Ok(pod) => pod.remove().await?,
                Err(error) => {
                    let said = refused(Err::<(), _>(error), &[])?;
                    // Programs of others have words of their own for what they miss.
                    let theirs = case.is_vm() && said.contains("vhost-device-vsock ended");
                    ensure!(theirs || said.contains("No space left on device"), "with {inodes} inodes: {said}");
                    refusals += 1;
                }
            }
            ensure!(covered.is_empty()?, "with {inodes} inodes something was left");
            drop(covered);
        }
        ensure!(refusals > 0, "a pod needs no file at all?");
        still_good(case).await
    });
}

#[test]
fn a_container_on_a_full_disk_is_refused_and_its_pod_runs_on() {
    on_magnetar(OURS, async |case| {
        let covered = Covered::with("mode=755,size=256k", MsFlags::empty())?;
        let pod = case.pod("fills-up").await?;
        let runs = pod.run(&case.sleeper().named("runs")).await?;
        let filler = Path::new(STATE).join("filler");
        // Until nothing more fits, which is an error, too.
        let _ = fs::write(&filler, vec![0; 1 << 20]);
        refused(pod.run(&case.sleeper().named("refused")).await, &["No space left on device"])?;
        fs::remove_file(&filler)?;
        assert_eq!(runs.exec(["echo", "alive"]).await?.stdout, "alive\n");
        assert_eq!(case.output(&pod, &case.script("echo fine").named("after")).await?, "fine\n");
        pod.remove().await?;
        ensure!(covered.is_empty()?, "something was left");
        Ok(())
    });
}

/// With the disk as it was, pods are made again.
async fn still_good(case: &Case) -> Result<()> {
    let pod = case.pod("after").await?;
    assert_eq!(case.output(&pod, &case.script("echo fine")).await?, "fine\n");
    Ok(pod.remove().await?)
}
