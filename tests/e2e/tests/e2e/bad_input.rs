// SPDX-License-Identifier: Apache-2.0
//! Bad input gets a clear error and changes nothing.

use anyhow::{Result, ensure};
use magnetar_cri::v1::{ContainerState, MountPropagation};
use magnetar_e2e::{Case, Scratch, eventually, on_node, on_shared_kernel, refused};

/// After a refusal the pod must be as good as before.
async fn still_good(case: &Case, pod: magnetar_cri::Pod) -> Result<()> {
    assert_eq!(case.output(&pod, &case.script("echo fine").named("after")).await?, "fine\n");
    Ok(pod.remove().await?)
}

#[test]
fn a_program_that_is_not_in_the_image_is_named_in_the_error() {
    on_node(async |case| {
        let pod = case.pod("no-program").await?;
        let container = pod.create(&case.sleeper().command(["no-such-program"])).await?;
        refused(container.start().await, &["no-such-program"])?;
        let status = container.status().await?;
        assert_eq!(status.state, i32::from(ContainerState::ContainerExited));
        assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
        container.remove().await?;
        still_good(case, pod).await
    });
}

#[test]
fn a_program_that_may_not_be_executed_is_named_in_the_error() {
    on_node(async |case| {
        let pod = case.pod("not-executable").await?;
        let container = pod.create(&case.sleeper().command(["/etc/passwd"])).await?;
        refused(container.start().await, &["/etc/passwd"])?;
        still_good(case, pod).await
    });
}

#[test]
fn a_working_directory_below_a_file_is_refused() {
    on_node(async |case| {
        let pod = case.pod("bad-cwd").await?;
        let container = pod.create(&case.sleeper().working_dir("/etc/passwd/nowhere")).await;
        match container {
            // The runtime finds out when it makes the container or when it starts it.
            Ok(container) => refused(container.start().await, &["/etc/passwd"])?,
            Err(error) => refused(Err::<(), _>(error), &["/etc/passwd"])?,
        };
        still_good(case, pod).await
    });
}

#[test]
fn a_user_name_missing_from_the_image_is_refused() {
    on_node(async |case| {
        let pod = case.pod("no-user").await?;
        refused(pod.create(&case.sleeper().username("nobody-knows")).await, &["user"])?;
        still_good(case, pod).await
    });
}

#[test]
fn a_volume_that_cannot_be_mounted_is_named_in_the_error() {
    on_node(async |case| {
        let scratch = Scratch::new()?;
        std::fs::write(scratch.path().join("file"), "")?;
        let pod = case.pod("bad-volume").await?;
        // A file cannot be mounted over a folder.
        let created = pod.create(&case.sleeper().mount(&scratch.join("file"), "/bin")).await;
        match created {
            Ok(container) => refused(container.start().await, &["/bin"])?,
            Err(error) => refused(Err::<(), _>(error), &["/bin"])?,
        };
        still_good(case, pod).await
    });
}

#[test]
fn bidirectional_propagation_of_a_private_mount_is_refused() {
    on_node(async |case| {
        let pod = case.node().run_pod(&case.pod_spec("bad-propagation").privileged()).await?;
        let private = Scratch::new()?;
        let point = private.path().join("private");
        std::fs::create_dir(&point)?;
        mount_private(&point)?;
        let spec = case.sleeper().privileged();
        let spec = spec.mount_with(&private.join("private"), "/volume", false, MountPropagation::PropagationBidirectional);
        let answer = match pod.create(&spec).await {
            Ok(container) => container.start().await,
            Err(error) => Err(error),
        };
        nix::mount::umount(&point)?;
        refused(answer, &["shared"])?;
        still_good(case, pod).await
    });
}

fn mount_private(point: &std::path::Path) -> Result<()> {
    use nix::mount::{MsFlags, mount};
    mount(Some("tmpfs"), point, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    Ok(mount(None::<&str>, point, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)?)
}

#[test]
fn a_device_that_is_not_there_is_named_in_the_error() {
    on_node(async |case| {
        let pod = case.pod("no-device").await?;
        refused(pod.create(&case.sleeper().device("/dev/no-such-device", "/dev/mine", "rw")).await, &["no-such-device"])?;
        still_good(case, pod).await
    });
}

#[test]
fn a_kernel_parameter_that_does_not_exist_is_named_in_the_error() {
    on_node(async |case| {
        let spec = case.pod_spec_with_network("bad-sysctl").sysctl("net.ipv4.no_such_parameter", "1");
        let message = refused(case.node().run_pod(&spec).await, &["no_such_parameter"])?;
        ensure!(message.len() < 1000, "a clear error is short: {message}");
        Ok(())
    });
}

#[test]
fn a_kernel_parameter_of_the_nodes_own_namespace_is_refused() {
    on_shared_kernel("in a virtual machine every kernel parameter is the pod's own", async |case| {
        let before = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?;
        let spec = case.pod_spec("host-sysctl").sysctl("net.ipv4.ip_forward", "0");
        refused(case.node().run_pod(&spec).await, &["net.ipv4.ip_forward"])?;
        assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?, before);
        Ok(())
    });
}

#[test]
fn an_unknown_handler_is_named_in_the_error() {
    on_node(async |case| {
        let spec = magnetar_cri::PodSpec::new("unknown-handler", "no-such-handler").host_network();
        refused(case.node().run_pod(&spec).await, &["no-such-handler"])?;
        Ok(())
    });
}

#[test]
fn a_container_in_a_stopped_pod_cannot_be_started() {
    on_node(async |case| {
        let pod = case.pod("stopped-pod").await?;
        pod.stop().await?;
        // containerd may still take it in, but nothing may be run.
        if let Ok(container) = pod.create(&case.sleeper()).await {
            refused(container.start().await, &["not running"])?;
        }
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_container_cannot_be_started_twice() {
    on_node(async |case| {
        let pod = case.pod("start-twice").await?;
        let container = pod.run(&case.sleeper()).await?;
        ensure!(container.start().await.is_err(), "it was started twice");
        assert_eq!(container.status().await?.state, i32::from(ContainerState::ContainerRunning));
        still_good(case, pod).await
    });
}

#[test]
fn a_container_with_4096_bytes_of_memory_fails_to_start() {
    on_node(async |case| {
        let pod = case.pod("tiny-limit").await?;
        let spec = case.sleeper().memory(4096);
        let answer = match pod.create(&spec).await {
            Ok(container) => container.start().await,
            Err(error) => Err(error),
        };
        ensure!(answer.is_err(), "a container with 4096 bytes of memory was started");
        still_good(case, pod).await
    });
}

#[test]
fn a_cpuset_with_a_missing_processor_is_refused() {
    on_shared_kernel("a virtual machine has processors of its own, to which the numbers of the node's do not apply", async |case| {
        let pod = case.pod("bad-cpuset").await?;
        let spec = case.sleeper().resources(|r| r.cpuset_cpus = "4000".to_owned());
        let answer = match pod.create(&spec).await {
            Ok(container) => container.start().await,
            Err(error) => Err(error),
        };
        ensure!(answer.is_err(), "a container was started on a processor that is not there");
        still_good(case, pod).await
    });
}

#[test]
fn a_container_runs_on_when_its_log_folder_is_removed() {
    on_node(async |case| {
        let pod = case.pod("log-full").await?;
        // The log's folder is taken away under containerd's feet.
        let container = pod.run(&case.script("while :; do echo tick; echo tick >/alive; sleep 0.01; done")).await?;
        container.logged(case.soon(), |log| !log.entries.is_empty()).await?;
        std::fs::remove_dir_all(pod.log_directory())?;
        container.exec(["rm", "/alive"]).await?;
        eventually("the container goes on", case.soon(), async || Ok((container.exec(["cat", "/alive"]).await?.code == 0).then_some(())))
            .await?;
        Ok(pod.remove().await?)
    });
}
