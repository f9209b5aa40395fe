// SPDX-License-Identifier: Apache-2.0
//! One test's turn on the node, and what is checked around it.

use std::{
    any::Any,
    io::Write as _,
    panic::{AssertUnwindSafe, resume_unwind},
    path::{Path, PathBuf},
    sync::{
        Mutex, Once, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use futures_util::FutureExt as _;
use magnetar_observe::Snapshot;
use tokio::time::Instant;

use crate::{Case, Service};

/// Compiled code of Wasm modules stays for the next pod; its size is bounded.
const CACHE: &str = "file /var/lib/magnetar";

/// Folders that containerd makes for the first image that is a volume, and its own shim for its
/// first pod; they are kept.
const KEPT: [&str; 4] = [
    "file /run/containerd/io.containerd.grpc.v1.cri/image-volumes",
    "file /run/containerd/runc",
    "file /run/containerd/runc/k8s.io",
    "file /run/containerd/s",
];

/// The guest with the kernel that `make kernel` compiles.
pub const OWN_GUEST: &str = "/usr/local/share/magnetar/guest-own";

/// How long containerd and the kernel may take to clear away what was removed.
const SETTLE_SECONDS: u32 = 20;

/// Runs a test on the node, alone, and checks that the node is afterwards as it was before.
///
/// # Panics
/// When the test fails, leaves pods, or leaves anything else behind.
pub fn on_node(test: impl AsyncFnOnce(&Case) -> Result<()>) {
    on_warm_node(async |_| Ok(()), test);
}

/// The same, after `warm` has had made what containerd and others make once and keep: that is no
/// leak.
///
/// # Panics
/// As [`on_node`], and when `warm` fails.
pub fn on_warm_node(warm: impl AsyncFnOnce(&Case) -> Result<()>, test: impl AsyncFnOnce(&Case) -> Result<()>) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match block_on(turn(warm, test)) {
        Ok(()) => {}
        Err(Failure::Panic(panic)) => resume_unwind(panic),
        Err(Failure::Error(error)) => fail(&format!("{error:?}")),
    }
}

/// The same, after `give` has given the node what all tests with this `once` share, such as an
/// image. It stays, as what the node has from the start.
///
/// # Panics
/// As [`on_node`], and when `give` fails.
pub fn on_node_with(once: &Once, give: impl AsyncFnOnce(&Case) -> Result<()>, test: impl AsyncFnOnce(&Case) -> Result<()>) {
    let warm = async |case: &Case| {
        if once.is_completed() {
            return Ok(());
        }
        give(case).await?;
        once.call_once(|| ());
        calm(case).await
    };
    on_warm_node(warm, test);
}

/// The same for a test which can be true for our handlers only, and why. With others, it says
/// that it is skipped.
///
/// # Panics
/// As [`on_node`].
pub fn on_magnetar<T: AsyncFnOnce(&Case) -> Result<()>>(because: &str, test: T) {
    unless(|case| (!case.is_magnetar()).then_some(because), test);
}

/// The same for a test which can be true only where containers run on the node's own kernel, and
/// why.
///
/// # Panics
/// As [`on_node`].
pub fn on_shared_kernel<T: AsyncFnOnce(&Case) -> Result<()>>(because: &str, test: T) {
    unless(|case| case.is_vm().then_some(because), test);
}

/// The same where both must be so, and why each.
///
/// # Panics
/// As [`on_node`].
pub fn on_magnetar_with_shared_kernel<T: AsyncFnOnce(&Case) -> Result<()>>(ours: &str, kernel: &str, test: T) {
    unless(|case| (!case.is_magnetar()).then_some(ours).or(case.is_vm().then_some(kernel)), test);
}

/// The same for a test of what only pods in virtual machines have.
///
/// # Panics
/// As [`on_node`].
pub fn on_vm<T: AsyncFnOnce(&Case) -> Result<()>>(test: T) {
    unless(no_machines, test);
}

/// The same for a test of what only QEMU's machines have: its protocol, or a vsock that it does not
/// serve itself.
///
/// # Panics
/// As [`on_node`].
pub fn on_qemu<T: AsyncFnOnce(&Case) -> Result<()>>(test: T) {
    let other = |case: &Case| (case.hypervisor() != Some("qemu-system")).then_some("the machines are not QEMU's");
    unless(|case| no_machines(case).or_else(|| other(case)), test);
}

/// The same for a test of machines with the kernel that `make kernel` compiles, where that is
/// installed: [`OWN_GUEST`] is its folder.
///
/// # Panics
/// As [`on_node`].
pub fn on_vm_with_own_kernel<T: AsyncFnOnce(&Case) -> Result<()>>(test: T) {
    let missing = || (!Path::new(OWN_GUEST).join("vmlinux").is_file()).then_some("there is no guest with a kernel of our own: make kernel");
    unless(|case| no_machines(case).or_else(missing), test);
}

/// The same for a test of huge pages that a pod's containers, or a kubelet, ask for.
///
/// # Panics
/// As [`on_node`].
pub fn on_vm_with_hugetlb<T: AsyncFnOnce(&Case) -> Result<()>>(test: T) {
    let has = |list: &str, name: &str| std::fs::read_to_string(list).is_ok_and(|list| list.split_whitespace().any(|word| word == name));
    let there = || Path::new("/sys/fs/cgroup/hugetlb").is_dir() || has("/sys/fs/cgroup/cgroup.controllers", "hugetlb");
    let missing = || (!there()).then_some("the node's cgroups limit no huge pages, so containerd passes no such limit on");
    unless(|case| no_machines(case).or_else(missing), test);
}

/// The same for a test that resizes pods as a whole, of our handlers: containerd has the call since
/// 2.3 at the latest, and Debian's 2.1 has it not.
///
/// # Panics
/// As [`on_node`].
pub fn on_magnetar_that_resizes_pods<T: AsyncFnOnce(&Case) -> Result<()>>(test: T) {
    on_node(async |case| {
        if !case.is_magnetar() {
            return skip::<T>("containerd asks no other handler");
        }
        match case.node().can_resize_pods().await? {
            true => test(case).await,
            false => skip::<T>("this containerd does not have UpdatePodSandboxResources"),
        }
    });
}

/// The same for a test of virtual machines.
///
/// # Panics
/// As [`on_node`].
pub fn on_vm_that_resizes_pods<T: AsyncFnOnce(&Case) -> Result<()>>(test: T) {
    on_magnetar_that_resizes_pods(async |case| match no_machines(case) {
        None => test(case).await,
        Some(because) => skip::<T>(because),
    });
}

/// Why a handler cannot be tested for what only virtual machines have, if it makes none.
fn no_machines(case: &Case) -> Option<&'static str> {
    (!case.is_vm()).then_some("the handler makes no virtual machines")
}

/// Runs a test, or says why it is skipped.
fn unless<'a, T: AsyncFnOnce(&Case) -> Result<()>>(skipped: impl FnOnce(&Case) -> Option<&'a str>, test: T) {
    on_node(async |case| match skipped(case) {
        None => test(case).await,
        Some(because) => skip::<T>(because),
    });
}

/// Says past libtest's capture that a test is skipped: whoever reads the output must see what was
/// not tested.
fn skip<T>(because: &str) -> Result<()> {
    let name = std::any::type_name::<T>().trim_end_matches("::{{closure}}");
    let name = name.split_once("::").map_or(name, |(_, rest)| rest);
    writeln!(std::io::stderr(), "skipped {name}: {because}").context("stderr")
}

enum Failure {
    Panic(Box<dyn Any + Send>),
    Error(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Error(error)
    }
}

fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("tokio").map_err(Failure::Error)?.block_on(future)
}

async fn turn(warm: impl AsyncFnOnce(&Case) -> Result<()>, test: impl AsyncFnOnce(&Case) -> Result<()>) -> Result<(), Failure> {
    let case = Case::new().await?;
    warm_up(&case).await?;
    warm(&case).await?;
    let before = look(&case)?;
    let outcome = AssertUnwindSafe(test(&case)).catch_unwind().await;
    let forgotten = clear_away(&case).await;
    let leak = settled(&case, &before).await?;
    match (outcome, forgotten.is_empty(), leak) {
        (Ok(Ok(())), true, None) => Ok(()),
        (Ok(Ok(())), false, _) => Err(anyhow::anyhow!("the test did not remove pods: {}", forgotten.join(", ")).into()),
        (Ok(Ok(())), true, Some(leak)) => Err(anyhow::anyhow!("left behind (+) or taken away (-):\n{leak}").into()),
        (Ok(Err(error)), _, None) => Err(error.into()),
        (Ok(Err(error)), _, Some(leak)) => {
            Err(error.context(format!("failed, and then left behind (+) or taken away (-):\n{leak}")).into())
        }
        (Err(panic), _, leak) => {
            if let Some(leak) = leak {
                writeln!(std::io::stderr(), "left behind (+) or taken away (-):\n{leak}").context("stderr")?;
            }
            Err(Failure::Panic(panic))
        }
    }
}

/// What containerd, CNI and runtimes make once and keep must be there before anything is compared.
async fn warm_up(case: &Case) -> Result<()> {
    static WARM: AtomicBool = AtomicBool::new(false);
    if WARM.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    if case.node().image(crate::BUSYBOX).await?.is_none() {
        bail!("the node has no image {}", crate::BUSYBOX);
    }
    let pod = case.node().run_pod(&case.pod_spec_with_network("warm-up")).await.context("warming up")?;
    let container = pod.run(&case.sleeper()).await.context("warming up")?;
    container.exec(["true"]).await.context("warming up")?;
    pod.remove().await.context("warming up")?;
    calm(case).await
}

/// Waits until the node does not change any more.
pub async fn calm(case: &Case) -> Result<()> {
    // Removal goes on a little after the answer; a first look too early would see the rest of it.
    let mut last = look(case)?;
    let mut calm = 0;
    while calm < 5 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = look(case)?;
        calm = if now.things == last.things { calm + 1 } else { 0 };
        last = now;
    }
    Ok(())
}

/// The node at one moment.
struct Seen {
    things: Snapshot,
    /// Descriptors of our resident process, which must not collect any over the pods of a node.
    /// One that was started again has fewer.
    descriptors: Option<usize>,
}

impl Seen {
    /// What has changed since `before`, if anything has.
    fn since(&self, before: &Self) -> Option<String> {
        let mut text = self.things.since(&before.things).to_string();
        if let (Some(now), Some(then)) = (self.descriptors, before.descriptors)
            && now > then
        {
            text += &format!("  + open files of serve: {now}, not {then}\n");
        }
        (!text.is_empty()).then_some(text)
    }
}

fn look(case: &Case) -> Result<Seen> {
    // The node's own book-keeping is not part of the comparison, and neither is ours, nor what is
    // kept on purpose.
    let logs = format!("file {}", log_root().display());
    let kept = |thing: &str| thing.starts_with("file /run/node/") || thing.starts_with(CACHE) || KEPT.contains(&thing) || thing == logs;
    let things = Snapshot::take()?.without(kept);
    // In shim mode few pods go through it, and containerd connects to it anew when one does.
    let serve = Service::Magnetar.pid().ok().filter(|_| case.is_magnetar() && !case.is_shim_mode());
    Ok(Seen { things, descriptors: serve.and_then(|pid| magnetar_observe::open_files(pid).ok()) })
}

/// Removes pods which the test did not; returns their ids. That they cannot be removed either is
/// found by the leak check.
async fn clear_away(case: &Case) -> Vec<String> {
    let forgotten = case.node().leftovers();
    for id in &forgotten {
        if let Err(error) = case.node().remove_pod(id).await {
            let _ = writeln!(std::io::stderr(), "pod {id} cannot be removed: {error}");
        }
    }
    let _ = std::fs::remove_dir_all(log_root());
    forgotten
}

/// Where the folders of pods' logs are.
fn log_root() -> PathBuf {
    std::env::temp_dir().join("magnetar-pod-logs")
}

/// Waits until the node is as before; what still differs when the time is over.
async fn settled(case: &Case, before: &Seen) -> Result<Option<String>> {
    let end = Instant::now() + case.within(SETTLE_SECONDS);
    loop {
        let diff = look(case)?.since(before);
        if diff.is_none() || Instant::now() > end {
            return Ok(diff);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[allow(clippy::panic, reason = "this is how a test fails")]
fn fail(message: &str) -> ! {
    panic!("{message}")
}
