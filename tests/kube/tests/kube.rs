// SPDX-License-Identifier: Apache-2.0
//! Pods of every kind, as a kubelet drives them.

use std::{
    io::Write as _,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use magnetar_kube::{Kind, Kubectl, Leftovers, Pod};

/// Says past libtest's capture what whoever reads the output must see.
fn say(what: &str) -> Result<()> {
    writeln!(std::io::stderr(), "{what}").context("stderr")
}

/// A test's turn on the cluster, alone.
fn turn(test: impl FnOnce(Kubectl) -> Result<()>) -> Result<()> {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    test(Kubectl::new()?)
}

/// The same for one kind, where this node can have it.
fn of(kind: Kind, name: &str, test: fn(Kubectl, Kind) -> Result<()>) -> Result<()> {
    match kind.lacking() {
        None => turn(|kubectl| test(kubectl, kind)),
        Some(because) => say(&format!("skipped {}::{name}: {because}", kind.class())),
    }
}

macro_rules! of_kind {
    ($module:ident, $kind:ident: $($test:ident)*) => {
        mod $module {
            $(#[test] fn $test() -> anyhow::Result<()> { super::of(super::Kind::$kind, stringify!($test), super::$test) })*
        }
    };
}

of_kind! { runc, Runc: a_pod_becomes_ready_and_goes_when_it_is_deleted commands_run_in_a_container_of_the_pod }
of_kind! { wasmtime, Wasmtime: a_pod_becomes_ready_and_goes_when_it_is_deleted commands_run_in_a_container_of_the_pod }
of_kind! { wasmedge, WasmEdge: a_pod_becomes_ready_and_goes_when_it_is_deleted commands_run_in_a_container_of_the_pod }
of_kind! { qemu, Qemu: a_pod_becomes_ready_and_goes_when_it_is_deleted commands_run_in_a_container_of_the_pod }
of_kind! { clh, Clh: a_pod_becomes_ready_and_goes_when_it_is_deleted commands_run_in_a_container_of_the_pod }

fn a_pod_becomes_ready_and_goes_when_it_is_deleted(kubectl: Kubectl, kind: Kind) -> Result<()> {
    let mut pod = Pod::apply(kubectl, kind, "ready")?;
    let ready = pod.ready()?;
    let object = pod.object()?;
    let status = &object["status"];
    ensure!(object["spec"]["runtimeClassName"] == kind.class(), "{object}");
    ensure!(status["phase"] == "Running" && status["containerStatuses"][0]["restartCount"] == 0, "{status}");
    ensure!(status["podIP"].as_str().is_some_and(|address| address.starts_with("10.88.")), "{status}");
    assert_eq!(pod.logs()?, kind.greeting());
    ensure!(!pod.traces()?.is_empty(), "nothing on this node has the pod's uid: its traces are looked for in the wrong places");
    let deleted = pod.delete()?;
    pod.gone()?;
    say(&format!("{}: ready after {:.1} s, deleted in {:.1} s", kind.class(), ready.as_secs_f64(), deleted.as_secs_f64()))
}

fn commands_run_in_a_container_of_the_pod(kubectl: Kubectl, kind: Kind) -> Result<()> {
    let mut pod = Pod::apply(kubectl, kind, "exec")?;
    pod.ready()?;
    let called = pod.exec(kind.calls(), &[])?;
    assert_eq!((called.stdout.as_str(), called.code), ("called by name\n", Some(0)), "{}", called.stderr);
    // More than a pipe holds.
    let much = "0123456789abcde\n".repeat(100_000 / 16);
    let copied = pod.exec(kind.copies(), much.as_bytes())?;
    ensure!(copied.stdout == much && copied.code == Some(0), "{} bytes of {}: {}", copied.stdout.len(), much.len(), copied.stderr);
    let failed = pod.exec(kind.fails(), &[])?;
    ensure!(failed.code == Some(7) && failed.stderr.contains("exit code 7"), "{failed:?}");
    pod.delete()?;
    pod.gone()
}

/// The kubelet removes sandboxes that have ended once a minute: therefore all kinds in one test.
#[test]
fn pods_of_all_kinds_run_side_by_side_and_leave_nothing() -> Result<()> {
    turn(|kubectl| {
        // With the first pod folders and cgroups are made that are kept.
        let mut first = Pod::apply(kubectl, Kind::Runc, "first")?;
        first.ready()?;
        first.delete()?;
        first.gone()?;
        let before = Leftovers::before()?;
        let kinds = Kind::ALL.into_iter().filter(|kind| kind.lacking().is_none());
        let mut pods = kinds.map(|kind| Pod::apply(kubectl, kind, "side")).collect::<Result<Vec<_>>>()?;
        ensure!(pods.len() >= 4, "only {} kinds are on this node", pods.len());
        for pod in &pods {
            pod.ready()?;
            assert_eq!(pod.logs()?, pod.kind().greeting(), "{}", pod.name());
        }
        for pod in &mut pods {
            pod.delete()?;
        }
        let took = before.none(kubectl)?;
        say(&format!("{} pods of as many kinds had left nothing {:.1} s after they were deleted", pods.len(), took.as_secs_f64()))
    })
}

/// An operator sees in the pod's events what the node lacks.
#[test]
fn the_events_of_a_pod_name_what_the_node_lacks_for_its_kind() -> Result<()> {
    turn(|kubectl| {
        let Some(because) = Kind::Clh.lacking() else {
            return say("skipped the_events_of_a_pod_name_what_the_node_lacks_for_its_kind: this node lacks nothing");
        };
        let mut pod = Pod::apply(kubectl, Kind::Clh, "lacking")?;
        let words = if because.contains("KVM") { "KVM" } else { "cloud-hypervisor is neither in PATH" };
        pod.described(words)?;
        pod.delete()?;
        pod.gone()
    })
}
