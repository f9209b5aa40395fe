// SPDX-License-Identifier: Apache-2.0
//! Options of a runtime handler: `/etc/magnetar/<kind>.toml`, read when a pod is made. What is
//! wrong there is said, and nothing is left of the pod.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use magnetar_e2e::{Case, Scratch, on_magnetar, on_magnetar_with_shared_kernel, refused};

const OURS: &str = "only our handlers have options of ours";
const NO_RUNTIME: &str = "containers in a virtual machine are made there, by no OCI runtime of the node";

/// The handler's options, other than they were until this value is dropped.
pub struct Replaced {
    file: PathBuf,
    before: Option<String>,
}

impl Replaced {
    pub fn with(case: &Case, text: &str) -> Result<Self> {
        let kind = case.handler().strip_prefix("magnetar-").context("not our handler")?;
        // The same sandboxer by the other front (shim-mode.toml).
        let kind = kind.strip_suffix("-shim").unwrap_or(kind);
        let file = PathBuf::from(format!("/etc/magnetar/{kind}.toml"));
        let before = fs::read_to_string(&file).ok();
        fs::write(&file, text).with_context(|| file.display().to_string())?;
        Ok(Self { file, before })
    }

    /// Options of a handler that runs virtual machines, with these keys in its table `vm`. The
    /// hypervisor is the handler's.
    pub fn with_machine(case: &Case, keys: &str) -> Result<Self> {
        let hypervisor = if case.handler() == "magnetar-clh" { "cloud-hypervisor" } else { "qemu" };
        Self::with(case, &format!("sandboxer = \"vmm\"\nlog_level = \"info\"\n[vm]\nhypervisor = \"{hypervisor}\"\n{keys}\n"))
    }
}

impl Drop for Replaced {
    fn drop(&mut self) {
        // All later tests depend on it: that it did not work must not go unseen.
        let restored = match &self.before {
            Some(text) => fs::write(&self.file, text),
            None => fs::remove_file(&self.file),
        };
        if let Err(error) = restored {
            eprintln!("{} cannot be restored: {error}", self.file.display());
        }
    }
}

/// With these options no pod can be made; the error says why, and pods that run do not care.
async fn check_refused(case: &Case, options: &str, words: &[&str]) -> Result<()> {
    let neighbour = case.pod("neighbour").await?;
    let replaced = Replaced::with(case, options)?;
    let answer = case.node().run_pod(&case.pod_spec_with_network("refused")).await;
    let message = refused(answer, words)?;
    ensure!(message.len() < 1000, "a clear error is short: {message}");
    assert_eq!(case.output(&neighbour, &case.script("echo fine")).await?, "fine\n");
    drop(replaced);
    Ok(neighbour.remove().await?)
}

#[test]
fn an_unknown_option_is_named_in_the_error() {
    on_magnetar(OURS, async |case| check_refused(case, "[runtime]\nsystemd_cgruop = true\n", &["systemd_cgruop"]).await);
}

#[test]
fn options_of_another_kind_are_refused_by_their_name() {
    on_magnetar(OURS, async |case| {
        let (sandboxer, table) = match case.is_vm() {
            true => ("vmm", "[runtime]\nname = \"crun\"\n"),
            false => ("runc", "[vm]\nvcpus = 2\n"),
        };
        let named = table.trim_start_matches('[').split(']').next().context("no table")?;
        check_refused(case, &format!("sandboxer = \"{sandboxer}\"\n{table}"), &[&format!("the table {named}")]).await
    });
}

#[test]
fn an_option_of_the_wrong_type_is_named_in_the_error() {
    on_magnetar(OURS, async |case| check_refused(case, "log_level = 7\n", &["log_level"]).await);
}

#[test]
fn options_that_are_not_toml_are_refused() {
    on_magnetar(OURS, async |case| check_refused(case, "sandboxer = \n", &["TOML"]).await);
}

#[test]
fn an_unknown_sandboxer_is_named_in_the_error() {
    on_magnetar(OURS, async |case| check_refused(case, "sandboxer = \"no-such-kind\"\n", &["no-such-kind"]).await);
}

#[test]
fn a_sandboxer_outside_the_sandboxer_folders_is_refused() {
    on_magnetar(OURS, async |case| check_refused(case, "sandboxer = \"../../bin/true\"\n", &["../../bin/true"]).await);
}

#[test]
fn a_sandboxer_that_is_not_there_is_named_in_the_error() {
    on_magnetar(OURS, async |case| check_refused(case, "sandboxer = \"/nonexistent/sandboxer\"\n", &["/nonexistent/sandboxer"]).await);
}

#[test]
fn a_sandboxer_that_cannot_be_executed_is_named_in_the_error() {
    on_magnetar(OURS, async |case| check_refused(case, "sandboxer = \"/etc/hostname\"\n", &["/etc/hostname"]).await);
}

#[test]
fn a_sandboxer_that_ends_at_once_is_named_in_the_error() {
    on_magnetar(OURS, async |case| check_refused(case, "sandboxer = \"/bin/false\"\n", &["/bin/false"]).await);
}

#[test]
fn a_sandboxer_that_is_not_a_program_is_named_in_the_error() {
    on_magnetar(OURS, async |case| {
        use std::os::unix::fs::PermissionsExt as _;
        let scratch = Scratch::new()?;
        let file = scratch.path().join("broken");
        fs::write(&file, b"\x7fELF and nothing more")?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        check_refused(case, &format!("sandboxer = {:?}\n", scratch.join("broken")), &["broken"]).await
    });
}

#[test]
fn an_oci_runtime_that_is_not_there_is_named_in_the_error() {
    on_magnetar_with_shared_kernel(OURS, NO_RUNTIME, async |case| {
        let replaced = Replaced::with(case, "[runtime]\nname = \"no-such-runtime\"\n")?;
        // It may be missed when the pod is made, or when its first container is.
        match case.node().run_pod(&case.pod_spec("no-runtime")).await {
            Err(error) => refused(Err::<(), _>(error), &["no-such-runtime"])?,
            Ok(pod) => {
                let answer = pod.run(&case.sleeper()).await;
                pod.remove().await?;
                refused(answer, &["no-such-runtime"])?
            }
        };
        drop(replaced);
        Ok(())
    });
}

#[test]
fn an_oci_runtime_that_fails_is_named_in_the_error_and_the_pod_can_be_removed() {
    on_magnetar_with_shared_kernel(OURS, NO_RUNTIME, async |case| {
        let replaced = Replaced::with(case, "[runtime]\nname = \"/bin/false\"\n")?;
        match case.node().run_pod(&case.pod_spec("bad-runtime")).await {
            Err(error) => refused(Err::<(), _>(error), &["/bin/false"])?,
            Ok(pod) => {
                let answer = pod.run(&case.sleeper()).await;
                pod.remove().await?;
                refused(answer, &["/bin/false"])?
            }
        };
        drop(replaced);
        Ok(())
    });
}

#[test]
fn every_oci_runtime_of_the_node_runs_containers() {
    on_magnetar_with_shared_kernel(OURS, NO_RUNTIME, async |case| {
        for runtime in ["runc", "crun"] {
            let replaced = Replaced::with(case, &format!("[runtime]\nname = {runtime:?}\n"))?;
            let pod = case.pod(runtime).await?;
            // The pod keeps what it was made with.
            drop(replaced);
            let container = pod.run(&case.sleeper()).await?;
            assert_eq!(container.shell("echo fine; exit 3").await?.code, 3, "{runtime}");
            container.stop(10).await?;
            assert_eq!(container.status().await?.exit_code, 0, "{runtime}");
            pod.remove().await?;
        }
        Ok(())
    });
}
