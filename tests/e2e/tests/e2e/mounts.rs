// SPDX-License-Identifier: Apache-2.0
//! Folders and files of the node in a container.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use magnetar_cri::v1::MountPropagation::{self, PropagationBidirectional, PropagationHostToContainer, PropagationPrivate};
use magnetar_e2e::{Case, Scratch, eventually, on_node, on_shared_kernel};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

#[test]
fn files_written_to_a_volume_are_on_the_node() {
    on_node(async |case| {
        let scratch = Scratch::new()?;
        fs::write(scratch.path().join("from-node"), "hello\n")?;
        let pod = case.pod("volume").await?;
        let spec = case.script("cat /volume/from-node; echo hi >/volume/from-pod").mount(&scratch.join(""), "/volume");
        assert_eq!(case.output(&pod, &spec).await?, "hello\n");
        assert_eq!(fs::read_to_string(scratch.path().join("from-pod"))?, "hi\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_read_only_volume_cannot_be_written() {
    on_node(async |case| {
        let scratch = Scratch::new()?;
        fs::write(scratch.path().join("word"), "hello\n")?;
        let pod = case.pod("volume-ro").await?;
        let spec = case
            .script("cat /volume/word; (echo x >/volume/word) 2>/dev/null || echo denied; touch /volume/new 2>/dev/null || echo denied")
            .mount_read_only(&scratch.join(""), "/volume");
        assert_eq!(case.output(&pod, &spec).await?, "hello\ndenied\ndenied\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_single_file_can_be_mounted_at_a_path_missing_from_the_image() {
    on_node(async |case| {
        let scratch = Scratch::new()?;
        fs::write(scratch.path().join("word"), "hello\n")?;
        let pod = case.pod("volume-file").await?;
        let spec = case.script("cat /not/in/the/image/word; echo more >>/not/in/the/image/word");
        assert_eq!(case.output(&pod, &spec.mount(&scratch.join("word"), "/not/in/the/image/word")).await?, "hello\n");
        assert_eq!(fs::read_to_string(scratch.path().join("word"))?, "hello\nmore\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn two_containers_of_a_pod_share_a_volume() {
    on_node(async |case| {
        let scratch = Scratch::new()?;
        let pod = case.pod("volume-shared").await?;
        let reader = case.script("until cat /volume/word 2>/dev/null; do sleep 0.05; done").named("reader");
        let reader = pod.run(&reader.mount(&scratch.join(""), "/volume")).await?;
        let writer = case.script("echo passed >/volume/part; mv /volume/part /volume/word").named("writer");
        pod.run(&writer.mount(&scratch.join(""), "/volume")).await?;
        reader.exited(case.soon()).await?;
        assert_eq!(case.whole_log(&reader).await?.stdout(), "passed\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn volumes_inside_volumes_are_mounted_in_the_right_order() {
    on_node(async |case| {
        let (outer, inner) = (Scratch::new()?, Scratch::new()?);
        fs::create_dir(outer.path().join("inner"))?;
        fs::write(inner.path().join("word"), "inside\n")?;
        let pod = case.pod("volume-nested").await?;
        let spec = case.script("cat /volume/inner/word").mount(&inner.join(""), "/volume/inner").mount(&outer.join(""), "/volume");
        assert_eq!(case.output(&pod, &spec).await?, "inside\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_later_mount_of_the_node_is_seen_with_host_to_container_propagation() {
    on_node(async |case| check_from_node(case, PropagationHostToContainer, true).await);
}

#[test]
fn a_later_mount_of_the_node_is_not_seen_by_default() {
    on_node(async |case| check_from_node(case, PropagationPrivate, false).await);
}

#[test]
fn a_mount_of_a_container_is_seen_on_the_node_with_bidirectional_propagation() {
    on_shared_kernel("mounts in a virtual machine cannot appear on the node; vm.rs tests that they are refused", async |case| {
        check_from_container(case, PropagationBidirectional, true).await
    });
}

#[test]
fn a_mount_of_a_container_is_not_seen_on_the_node_with_host_to_container_propagation() {
    on_node(async |case| check_from_container(case, PropagationHostToContainer, false).await);
}

async fn check_from_node(case: &Case, propagation: MountPropagation, seen: bool) -> Result<()> {
    let scratch = Scratch::new()?;
    let point = scratch.path().join("point");
    fs::create_dir(&point)?;
    let pod = case.pod("propagation").await?;
    let container = pod.run(&case.sleeper().mount_with(&scratch.join(""), "/volume", false, propagation)).await?;
    let mounted = Mounted::tmpfs(&point)?;
    fs::write(point.join("word"), "late")?;
    let output = container.exec(["cat", "/volume/point/word"]).await?;
    drop(mounted);
    assert_eq!(output.code == 0, seen, "{output:?}");
    Ok(pod.remove().await?)
}

async fn check_from_container(case: &Case, propagation: MountPropagation, seen: bool) -> Result<()> {
    let scratch = Scratch::new()?;
    let word = scratch.path().join("point/word");
    let pod = case.node().run_pod(&case.pod_spec("propagation-up").privileged()).await?;
    let spec = case.sleeper().privileged().mount_with(&scratch.join(""), "/volume", false, propagation);
    let container = pod.run(&spec).await?;
    let output = container.shell("mkdir /volume/point && mount -t tmpfs tmpfs /volume/point && echo up >/volume/point/word").await?;
    ensure!(output.code == 0, "{output:?}");
    assert_eq!(word.exists(), seen);
    container.exec(["umount", "/volume/point"]).await?;
    eventually("the mount is gone", case.soon(), async || Ok((!word.exists()).then_some(()))).await?;
    Ok(pod.remove().await?)
}

/// A mount of the node, gone with this value.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn tmpfs(point: &'a Path) -> Result<Self> {
        mount(Some("tmpfs"), point, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
        Ok(Self(point))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // What stays mounted is found by the leak check.
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}
