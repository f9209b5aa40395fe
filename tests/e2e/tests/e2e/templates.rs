// SPDX-License-Identifier: Apache-2.0
//! Pods whose machines begin as copies of a template: what they have of their own, and what happens
//! when a template is no good.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use magnetar_cri::{Container, Pod, v1::LinuxContainerResources};
use magnetar_e2e::{Case, eventually, on_vm, refused};
use magnetar_observe::Process;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    faults::{Bystander, is_seen_as_dead, kill_sandbox},
    options::Replaced,
    vm::{hypervisor, process},
};

const STORE: &str = "/var/lib/magnetar/templates";

/// The handler's options. All tests use the same template. Its machines may grow to more
/// processors than the node may have.
fn options(case: &Case) -> Result<Replaced> {
    Replaced::with_machine(case, "template = true\nmax_memory_mib = 2048\nmax_vcpus = 2")
}

/// What our processes say, in the test node.
const LOG: &str = "/var/log/magnetar.log";

/// The templates that there are.
fn templates() -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(STORE) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| path.join("manifest.json").exists() && !path.ends_with("making")).collect())
}

/// The pod's machine began as a copy, or booted.
fn is_copy(case: &Case, pod: &Pod) -> Result<bool> {
    Ok(is_of_a_copy(&hypervisor(case, pod)?))
}

/// Whether the process is a hypervisor whose machine begins as a copy.
fn is_of_a_copy(process: &Process) -> bool {
    let has = |wanted: &str| process.command.iter().any(|word| word == wanted);
    // Cloud Hypervisor's own options have no machine then.
    has("-incoming") || (process.name.starts_with("cloud-hyp") && has("--seccomp=true") && !has("--kernel"))
}

/// The socket by which the machine that becomes a template is controlled.
fn control_socket(case: &Case, pod: &Pod) -> PathBuf {
    let name = if case.hypervisor() == Some("qemu-system") { "qmp.sock" } else { "api.sock" };
    case.state_dir(pod).join("tm").join(name)
}

/// A pod with a container. How its machine begins is as expected.
async fn running(case: &Case, name: &str, copied: bool) -> Result<(Pod, Container)> {
    let pod = case.node().run_pod(&case.pod_spec_with_network(name).hostname(name)).await?;
    ensure!(is_copy(case, &pod)? == copied, "{name}: the machine has begun as a copy: {}", !copied);
    let container = pod.run(&case.sleeper()).await?;
    Ok((pod, container))
}

/// The template of these pods. If there is none yet, a pod boots and has it made.
async fn made(case: &Case) -> Result<PathBuf> {
    if templates()?.is_empty() {
        let (pod, _container) = running(case, "boots", false).await?;
        wait_for_one(case).await?;
        pod.remove().await?;
    }
    let mut found = templates()?;
    ensure!(found.len() == 1, "{found:?}");
    Ok(found.remove(0))
}

async fn wait_for_one(case: &Case) -> Result<()> {
    eventually("a template is made", case.within(60), async || Ok((!templates()?.is_empty()).then_some(()))).await
}

/// What was logged since `before`, a length.
fn logged(before: u64) -> Result<String> {
    let bytes = fs::read(LOG).context(LOG)?;
    Ok(String::from_utf8_lossy(bytes.get(usize::try_from(before)?..).unwrap_or_default()).into_owned())
}

async fn text(container: &Container, script: &str) -> Result<String> {
    let output = container.shell(script).await?;
    ensure!(output.code == 0, "{script}: {output:?}");
    Ok(output.stdout)
}

#[test]
fn copies_of_a_template_share_no_network_and_no_random_numbers() {
    on_vm(async |case| {
        let _replaced = options(case)?;
        made(case).await?;
        let (one, first) = running(case, "first", true).await?;
        let (other, second) = running(case, "second", true).await?;
        for script in [
            "cat /proc/sys/kernel/random/boot_id",
            "cat /proc/sys/kernel/random/uuid",
            "head -c 16 /dev/urandom | od -An -tx1",
            "hostname",
            "cat /sys/class/net/eth0/address",
            "ip -o -4 address show eth0 | awk '{print $4}'",
        ] {
            let (a, b) = (text(&first, script).await?, text(&second, script).await?);
            ensure!(!a.trim().is_empty() && a != b, "{script} says {a:?} in both");
        }
        // What CNI has given the pod is what the guest has.
        let address = other.ip().await?;
        ensure!(text(&second, "ip -o -4 address show eth0").await?.contains(&address), "{address}");
        // The template was saved some time ago.
        let clock: u64 = text(&second, "date +%s").await?.trim().parse()?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        ensure!(now.abs_diff(clock) < 5, "the clock differs by {} s", now.abs_diff(clock));

        let server = "while read -r line; do echo \"hello $line\"; done";
        let server = case.sleeper().named("server").command(["nc", "-ll", "-p", "8080", "-e", "sh", "-c", server]);
        other.run(&server).await?;
        eventually("the other pod answers", case.soon(), async || {
            let answer = first.shell(&format!("echo you | nc -w 2 {address} 8080")).await?;
            Ok((answer.stdout == "hello you\n").then_some(()))
        })
        .await?;
        // The secret and the seed are gone, and no container saw them.
        let share = case.state_dir(&one).join("share");
        ensure!(!share.join(".secret").exists() && !share.join(".seed").exists(), "something is left in the share");
        one.remove().await?;
        Ok(other.remove().await?)
    });
}

#[test]
fn a_copy_grows_and_shrinks_and_limits_beyond_its_bound_are_refused() {
    on_vm(async |case| {
        let _replaced = options(case)?;
        made(case).await?;
        let (pod, container) = running(case, "copy", true).await?;
        let limits = |mib: i64, processors: i64| LinuxContainerResources {
            memory_limit_in_bytes: mib << 20,
            cpu_quota: processors * 100_000,
            cpu_period: 100_000,
            ..Default::default()
        };
        let size = async || -> Result<(u64, u64)> {
            let memory = text(&container, "awk '/^MemTotal/ {print $2}' /proc/meminfo").await?.trim().parse::<u64>()? / 1024;
            Ok((memory, text(&container, "nproc").await?.trim().parse()?))
        };
        // 1 GiB, of which the kernel has a part for itself.
        let (before, processors) = size().await?;
        ensure!(before < 1024 && processors == 1, "{before} MiB, {processors} processors");
        container.update(limits(1900, 2)).await?;
        let (grown, processors) = size().await?;
        ensure!(grown >= before + 900 && processors == 2, "{grown} MiB, {processors} processors");
        refused(container.update(limits(4096, 2)).await, &["would need 4224 MiB of memory, and it can grow to 2048 MiB"])?;
        container.update(limits(64, 1)).await?;
        eventually("the memory is given back", case.soon(), async || Ok((size().await? == (before, 1)).then_some(()))).await?;
        Ok(pod.remove().await?)
    });
}

/// What damages a template, and what is said of it.
type Damage<'a> = (&'a dyn Fn(&Path) -> Result<()>, &'a str);

#[test]
fn a_pod_whose_template_is_damaged_or_of_another_version_boots_with_a_warning() {
    on_vm(async |case| {
        let _replaced = options(case)?;
        let cut = |template: &Path| -> Result<()> {
            let state = File::options().write(true).open(template.join("state"))?;
            Ok(state.set_len(state.metadata()?.len() / 2)?)
        };
        // The hypervisor itself finds these two.
        let torn = |template: &Path| -> Result<()> {
            let path = template.join("state");
            let mut bytes = fs::read(&path)?;
            let half = bytes.len() / 2;
            bytes[half..].fill(0);
            Ok(fs::write(&path, bytes)?)
        };
        let other_version = |template: &Path| -> Result<()> {
            let path = template.join("manifest.json");
            let text = fs::read_to_string(&path)?;
            // The versions of QEMU and of Cloud Hypervisor.
            let changed = text.replace("\\\"major\\\":", "\\\"major\\\":1").replace("\"version\":\"5", "\"version\":\"15");
            ensure!(changed != text, "no version in {text}");
            Ok(fs::write(&path, changed)?)
        };
        let damages: [Damage; 3] =
            [(&cut, "is damaged: state has "), (&torn, "cannot begin as a copy of a template"), (&other_version, " has saved")];
        for (damage, words) in damages {
            let template = made(case).await?;
            damage(&template)?;
            let before = fs::metadata(LOG)?.len();
            let (pod, container) = running(case, "damaged", false).await?;
            assert_eq!(container.exec(["echo", "fine"]).await?.stdout, "fine\n");
            let said = logged(before)?;
            let warning = said.lines().find(|line| line.contains("WARN") && line.contains(words));
            ensure!(warning.is_some(), "no warning with {words:?}: {said}");
            // This pod makes another one.
            wait_for_one(case).await?;
            pod.remove().await?;
        }
        let (next, _container) = running(case, "next", true).await?;
        Ok(next.remove().await?)
    });
}

#[test]
fn a_sandbox_process_killed_while_its_machine_is_restored_leaves_nothing() {
    on_vm(async |case| {
        let _replaced = options(case)?;
        made(case).await?;
        let bystander = Bystander::new(case).await?;
        ensure!(is_copy(case, bystander.pod())?, "it has booted");
        // A restore takes some tenths of a second.
        for delay in [20, 60, 120, 200, 300] {
            let spec = case.pod_spec_with_network(&format!("killed-{delay}"));
            let kills = async {
                let mut begun = None;
                eventually("the machine is being restored", case.soon(), async || {
                    begun = restoring(case, bystander.pod())?;
                    Ok(begun.map(drop))
                })
                .await?;
                tokio::time::sleep(Duration::from_millis(delay)).await;
                kill(Pid::from_raw(begun.context("no process")?), Signal::SIGKILL).map_err(anyhow::Error::from)
            };
            let (pod, killed) = tokio::join!(case.node().run_pod(&spec), kills);
            killed?;
            // It may have been quicker than we were.
            if let Ok(pod) = pod {
                is_seen_as_dead(case, &pod, None).await?;
                pod.remove().await?;
            }
        }
        ensure!(templates()?.len() == 1, "{:?}", templates()?);
        bystander.noticed_nothing(case).await
    });
}

#[test]
fn a_pod_runs_all_the_same_if_a_process_is_killed_while_its_machine_is_restored() {
    on_vm(async |case| {
        let _replaced = options(case)?;
        let (bystander, _container) = running(case, "bystander", !templates()?.is_empty()).await?;
        // Where the kernel has a vsock, there is no process for it.
        let programs = ["qemu-system", "cloud-hyp", "virtiofsd", "vhost-device"]
            .into_iter()
            .filter(|program| process(case, &bystander, program).is_ok());
        for program in programs {
            made(case).await?;
            let before = fs::metadata(LOG)?.len();
            let spec = case.pod_spec_with_network(&format!("without-{program}"));
            let kills = async {
                let mut victim = None;
                eventually("the machine is being restored", case.soon(), async || {
                    if let Some(sandbox) = restoring(case, &bystander)? {
                        let all = magnetar_observe::Processes::now()?;
                        victim = all.iter().find(|process| process.parent == sandbox && process.name.contains(program)).map(|p| p.pid);
                    }
                    Ok(victim.map(drop))
                })
                .await?;
                kill(Pid::from_raw(victim.context("no process")?), Signal::SIGKILL).map_err(anyhow::Error::from)
            };
            let (pod, killed) = tokio::join!(case.node().run_pod(&spec), kills);
            killed?;
            let pod = pod?;
            let container = pod.run(&case.sleeper()).await?;
            assert_eq!(container.exec(["echo", "fine"]).await?.stdout, "fine\n");
            let said = logged(before)?;
            ensure!(!is_copy(case, &pod)? && said.contains("cannot begin as a copy of a template"), "{program}: {said}");
            pod.remove().await?;
        }
        Ok(bystander.remove().await?)
    });
}

/// The sandbox process of a pod whose QEMU has just been started, other than the bystander's.
fn restoring(case: &Case, bystander: &Pod) -> Result<Option<i32>> {
    let own = case.sandbox_pid(bystander)?;
    let all = magnetar_observe::Processes::now()?;
    let found = all.iter().find(|process| process.parent != own && is_of_a_copy(process));
    Ok(found.map(|process| process.parent))
}

#[test]
fn ten_pods_that_begin_as_copies_at_once_all_run() {
    on_vm(async |case| {
        let _replaced = options(case)?;
        made(case).await?;
        let specs: Vec<_> = (0..case.at_once(10)).map(|number| case.pod_spec_with_network(&format!("many-{number}"))).collect();
        let pods = join_all(specs.iter().map(|spec| case.node().run_pod(spec))).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        let containers = join_all(pods.iter().map(async |pod| {
            ensure!(is_copy(case, pod)?, "a machine has booted");
            let container = pod.run(&case.sleeper()).await?;
            text(&container, "head -c 16 /dev/urandom | od -An -tx1").await
        }));
        let mut random = containers.await.into_iter().collect::<Result<Vec<_>>>()?;
        let all = random.len();
        random.sort();
        random.dedup();
        ensure!(random.len() == all, "{} of {all} random numbers differ", random.len());
        for pod in pods {
            pod.remove().await?;
        }
        Ok(())
    });
}

#[test]
fn a_pod_removed_while_it_makes_a_template_leaves_nothing_of_it() {
    on_vm(async |case| {
        let _replaced = options(case)?;
        if Path::new(STORE).exists() {
            fs::remove_dir_all(STORE)?;
        }
        let (pod, _container) = running(case, "short", false).await?;
        let socket = control_socket(case, &pod);
        eventually("the template's machine runs", case.soon(), async || Ok(socket.exists().then_some(()))).await?;
        pod.remove().await?;
        ensure!(templates()?.is_empty() && !Path::new(STORE).join("making").exists(), "a template was completed or is left");
        Ok(())
    });
}

#[test]
fn a_sandbox_process_killed_while_it_makes_a_template_leaves_nothing_that_stays() {
    on_vm(async |case| {
        let _replaced = options(case)?;
        if Path::new(STORE).exists() {
            fs::remove_dir_all(STORE)?;
        }
        let (pod, container) = running(case, "killed", false).await?;
        let socket = control_socket(case, &pod);
        eventually("the template's machine runs", case.soon(), async || Ok(socket.exists().then_some(()))).await?;
        kill_sandbox(case, &pod)?;
        is_seen_as_dead(case, &pod, Some(&container)).await?;
        pod.remove().await?;
        ensure!(templates()?.is_empty(), "a template was completed");
        // What is left of it in the store is removed by the next pod that makes one.
        made(case).await?;
        ensure!(!Path::new(STORE).join("making").exists(), "something is left in the store");
        Ok(())
    });
}
