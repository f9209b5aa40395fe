// SPDX-License-Identifier: Apache-2.0
//! Who a container's processes are, and what they may do.

use anyhow::{Result, ensure};
use magnetar_cri::{ContainerSpec, PodSpec};
use magnetar_e2e::{Case, Scratch, kernel, on_node, refused};

/// All tests here are one container's answer.
async fn check(case: &Case, spec: &ContainerSpec, expected: &str) -> Result<()> {
    check_in(case, &case.pod_spec("security"), spec, expected).await
}

async fn check_in(case: &Case, pod: &PodSpec, spec: &ContainerSpec, expected: &str) -> Result<()> {
    let pod = case.node().run_pod(pod).await?;
    assert_eq!(case.output(&pod, spec).await?.trim_end(), expected);
    Ok(pod.remove().await?)
}

/// Fields of the status of a container's process.
async fn fields(case: &Case, spec: PodSpec, change: impl FnOnce(ContainerSpec) -> ContainerSpec, keys: &[&str]) -> Result<Vec<String>> {
    let pod = case.node().run_pod(&spec).await?;
    let status = case.output(&pod, &change(case.script("cat /proc/self/status"))).await?;
    pod.remove().await?;
    keys.iter().map(|key| kernel::field(&status, key)).collect()
}

#[test]
fn user_group_and_supplemental_groups_are_as_requested() {
    on_node(async |case| {
        let spec = case.script("echo $(id -u) $(id -g) $(id -G)").user(1234).group(2345).supplemental_groups(&[3456, 4567]);
        check(case, &spec, "1234 2345 2345 3456 4567").await
    });
}

#[test]
fn a_user_name_is_looked_up_in_the_image() {
    on_node(async |case| check(case, &case.script("id -un; id -gn").username("www-data"), "www-data\nwww-data").await);
}

#[test]
fn capabilities_are_added_to_and_dropped_from_the_default_set() {
    on_node(async |case| {
        let usual = fields(case, case.pod_spec("caps"), |c| c, &["CapEff"]).await?;
        assert_eq!(usual, ["00000000a80425fb"]);
        let more = fields(case, case.pod_spec("caps"), |c| c.capabilities(&["NET_ADMIN"], &["CHOWN"]), &["CapEff"]).await?;
        assert_eq!(more, ["00000000a80435fa"]);
        let none = fields(case, case.pod_spec("caps"), |c| c.capabilities(&[], &["ALL"]), &["CapEff", "CapPrm", "CapBnd"]).await?;
        assert_eq!(none, ["0000000000000000"; 3]);
        Ok(())
    });
}

#[test]
fn a_user_other_than_root_has_no_effective_capabilities() {
    on_node(async |case| {
        let values = fields(case, case.pod_spec("caps-user"), |c| c.user(1000), &["CapEff", "CapPrm"]).await?;
        assert_eq!(values, ["0000000000000000"; 2]);
        Ok(())
    });
}

#[test]
fn no_new_privileges_is_set_only_when_requested() {
    on_node(async |case| {
        let set = fields(case, case.pod_spec("nnp"), ContainerSpec::no_new_privs, &["NoNewPrivs"]).await?;
        assert_eq!(set, ["1"]);
        let unset = fields(case, case.pod_spec("nnp"), |c| c.seccomp_unconfined(), &["NoNewPrivs"]).await?;
        assert_eq!(unset, ["0"]);
        Ok(())
    });
}

#[test]
fn masked_paths_are_empty_and_read_only_paths_cannot_be_written() {
    on_node(async |case| {
        let spec = case
            .script("wc -c </proc/version; ls /proc/bus | wc -l; echo x 2>/dev/null >/proc/sys/kernel/hostname || echo denied")
            .masked_paths(&["/proc/version", "/proc/bus"])
            .read_only_paths(&["/proc/sys"]);
        check(case, &spec, "0\n0\ndenied").await
    });
}

#[test]
fn a_privileged_container_has_all_capabilities_and_devices() {
    on_node(async |case| {
        let all = kernel::status(std::process::id().cast_signed(), "CapBnd")?;
        let values = fields(case, case.pod_spec("privileged").privileged(), ContainerSpec::privileged, &["CapEff", "Seccomp"]).await?;
        assert_eq!(values, [all.as_str(), "0"]);
        // A virtual machine has none of the node's devices, and few of its own.
        let devices = if case.is_vm() { "" } else { "[ -e /dev/loop-control ] && " };
        let script = case.script(&format!("mkdir /m && mount -t tmpfs tmpfs /m && {devices}echo may")).privileged();
        check_in(case, &case.pod_spec("privileged").privileged(), &script, "may").await
    });
}

#[test]
fn an_unprivileged_container_cannot_mount() {
    on_node(async |case| check(case, &case.script("mkdir /m; mount -t tmpfs tmpfs /m 2>/dev/null || echo denied"), "denied").await);
}

#[test]
fn a_privileged_container_in_an_unprivileged_pod_is_refused() {
    on_node(async |case| {
        let pod = case.pod("not-privileged").await?;
        refused(pod.create(&case.sleeper().privileged()).await, &["privileged"])?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_read_only_root_filesystem_is_writable_only_in_volumes() {
    on_node(async |case| {
        let scratch = Scratch::new()?;
        let spec = case
            .script("touch /made 2>/dev/null || echo denied; touch /volume/made && echo fine")
            .read_only_rootfs()
            .mount(&scratch.join(""), "/volume");
        check(case, &spec, "denied\nfine").await
    });
}

#[test]
fn only_the_default_devices_exist_and_work() {
    on_node(async |case| {
        let spec = case.script(
            "for d in null zero full random urandom tty; do [ -c /dev/$d ] || echo no $d; done; \
             head -c 3 /dev/zero | wc -c; echo lost >/dev/null; [ -e /dev/kmsg ] || [ -e /dev/loop0 ] || echo no more",
        );
        check(case, &spec, "3\nno more").await
    });
}

#[test]
fn a_device_is_passed_with_the_requested_permissions() {
    on_node(async |case| {
        let read = case.script("head -c 3 /dev/mine | wc -c; (echo x >/dev/mine) 2>/dev/null && echo written").device(
            "/dev/full",
            "/dev/mine",
            "r",
        );
        // /dev/full itself is among the usual devices, so its cgroup permissions come from there;
        // what is checked is that the node is there under its new name and number.
        let pod = case.pod("device").await?;
        let text = case.output(&pod, &read.edit(|c| c.command[2].push_str("; stat -c '%t:%T' /dev/mine"))).await?;
        ensure!(text.starts_with("3\n") && text.ends_with("1:7\n"), "{text}");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_device_that_was_not_passed_cannot_be_opened_after_mknod() {
    on_node(async |case| {
        let spec = case
            .script("mknod /dev/fuse2 c 10 229 && (exec 3<>/dev/fuse2) 2>/dev/null && echo opened || echo denied")
            .capabilities(&["MKNOD"], &[]);
        check(case, &spec, "denied").await
    });
}

#[test]
fn the_default_seccomp_profile_denies_user_namespaces() {
    on_node(async |case| {
        let values = fields(case, case.pod_spec("seccomp"), ContainerSpec::seccomp_default, &["Seccomp"]).await?;
        assert_eq!(values, ["2"]);
        let script = case.script("unshare -U true 2>/dev/null && echo allowed || echo denied").seccomp_default().user(1000);
        check(case, &script, "denied").await
    });
}

#[test]
fn an_unconfined_container_has_no_seccomp_filter() {
    on_node(async |case| {
        let values = fields(case, case.pod_spec("unconfined"), ContainerSpec::seccomp_unconfined, &["Seccomp"]).await?;
        assert_eq!(values, ["0"]);
        Ok(())
    });
}

#[test]
fn a_seccomp_profile_from_a_file_is_applied() {
    on_node(async |case| {
        let scratch = Scratch::new()?;
        let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
            {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#;
        std::fs::write(scratch.path().join("profile.json"), profile)?;
        let spec = case.script("mkdir /d 2>/dev/null && echo allowed || echo denied; touch /f && echo fine");
        check(case, &spec.seccomp_file(&scratch.join("profile.json")), "denied\nfine").await
    });
}

#[test]
fn a_missing_seccomp_profile_is_refused() {
    on_node(async |case| {
        let pod = case.pod("no-profile").await?;
        refused(pod.create(&case.sleeper().seccomp_file("/nonexistent/profile.json")).await, &["/nonexistent/profile.json"])?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn kernel_parameters_of_a_pod_are_set_in_it_and_not_on_the_node() {
    on_node(async |case| {
        let before = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
        let spec = case
            .pod_spec_with_network("sysctl")
            .sysctl("net.ipv4.ip_local_port_range", "20000 30000")
            .sysctl("kernel.shm_rmid_forced", "1");
        let script = case.script("echo $(cat /proc/sys/net/ipv4/ip_local_port_range) $(cat /proc/sys/kernel/shm_rmid_forced)");
        check_in(case, &spec, &script, "20000 30000 1").await?;
        assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?, before);
        Ok(())
    });
}

#[test]
fn low_ports_and_ping_work_without_capabilities() {
    on_node(async |case| {
        // containerd's default for pods with a network of their own.
        let script = case.script("cat /proc/sys/net/ipv4/ip_unprivileged_port_start").user(1000);
        check_in(case, &case.pod_spec_with_network("low-ports"), &script, "0").await
    });
}

#[test]
fn proc_shows_only_the_containers_processes() {
    on_node(async |case| check(case, &case.script("set -- /proc/[0-9]*; echo $#"), "1").await);
}
