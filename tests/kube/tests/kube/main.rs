// SPDX-License-Identifier: Apache-2.0
//! Pods of every kind, as a kubelet drives them.

mod llm;
mod tour;

use std::{
    io::Write as _,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, bail, ensure};
use magnetar_kube::{Kind, Kubectl, Leftovers, Pod, Service};
use serde_json::json;

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

/// The same containers, never started again, and what is asked of them is done.
#[test]
fn pods_of_all_kinds_live_on_when_kubelet_containerd_and_serve_are_killed() -> Result<()> {
    turn(|kubectl| {
        let kinds = Kind::ALL.into_iter().filter(|kind| kind.lacking().is_none());
        let mut pods = kinds.map(|kind| Pod::apply(kubectl, kind, "survivor")).collect::<Result<Vec<_>>>()?;
        let mut containers = Vec::new();
        for pod in &pods {
            pod.ready()?;
            containers.push(pod.object()?["status"]["containerStatuses"][0]["containerID"].clone());
        }
        for service in Service::ALL {
            service.kill(kubectl)?;
            for (pod, container) in pods.iter().zip(&containers) {
                // A pod that was not ready for a while is again; an exec may come too early.
                pod.says(pod.kind().calls(), "called by name\n")?;
                pod.ready()?;
                let status = &pod.object()?["status"]["containerStatuses"][0];
                ensure!(
                    status["containerID"] == *container && status["restartCount"] == 0,
                    "{service:?} was killed: {} {status}",
                    pod.name()
                );
            }
        }
        for pod in &mut pods {
            pod.delete()?;
            pod.gone()?;
        }
        Ok(())
    })
}

/// A Service of a server in a pod of each kind, by kube-proxy, from a pod of each kind. Modules
/// have native programs beside them for that.
#[test]
fn pods_of_every_kind_reach_a_service_of_every_kind() -> Result<()> {
    turn(|kubectl| {
        let kinds = Kind::ALL.into_iter().filter(|kind| kind.lacking().is_none());
        let server = |kind: Kind| {
            Pod::apply_edited(kubectl, kind, "web", |spec| {
                let serve = format!("mkdir /www; echo from {} >/www/index.html; exec httpd -f -p 8080 -h /www", kind.class());
                spec["containers"] = json!([{
                    "name": "web", "image": Kind::Runc.image(), "command": ["sh", "-c", serve],
                    "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
                }]);
                // httpd that is process 1 does not end when it is asked to.
                spec["terminationGracePeriodSeconds"] = json!(1);
            })
        };
        let mut pods = kinds.map(server).collect::<Result<Vec<_>>>()?;
        let mut services = Vec::new();
        for pod in &pods {
            kubectl.apply(&json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": pod.name()},
                "spec": {"selector": {"app": pod.name()}, "ports": [{"port": 80, "targetPort": 8080}]},
            }))?;
            let service = kubectl.get(&format!("service/{}", pod.name()))?.context("the service was applied and is not there")?;
            let address = service["spec"]["clusterIP"].as_str().context("a service without address")?.to_owned();
            services.push((format!("http://{address}"), format!("from {}\n", pod.kind().class())));
        }
        for pod in &pods {
            pod.ready()?;
        }
        for client in &pods {
            for (address, answer) in &services {
                client.says(&["wget", "-q", "-O", "-", "-T", "5", address], answer)?;
            }
        }
        for pod in &mut pods {
            kubectl.run(&["delete", &format!("service/{}", pod.name())])?;
            pod.delete()?;
            pod.gone()?;
        }
        Ok(())
    })
}

/// The kubelet asks for it only where containerd says that the handler can do it.
#[test]
fn pods_have_user_namespaces_where_containerd_says_that_they_can() -> Result<()> {
    turn(|kubectl| {
        for kind in [Kind::Runc, Kind::Wasmtime, Kind::WasmEdge] {
            if !kubectl.handler_has(kind.class(), "userNamespaces")? {
                let name = "pods_have_user_namespaces_where_containerd_says_that_they_can";
                say(&format!("skipped {}::{name}: containerd has not asked the handler, as it does from 2.3 on", kind.class()))?;
                continue;
            }
            let mut pod = Pod::apply_edited(kubectl, kind, "user", |spec| {
                spec["hostUsers"] = json!(false);
                // A module has no program that says which users there are.
                spec["containers"].as_array_mut().into_iter().for_each(|containers| {
                    containers.push(json!({
                        "name": "users", "image": Kind::Runc.image(), "command": ["sh", "-c", "trap 'exit 0' TERM; cat /proc/self/uid_map; while :; do sleep 0.1; done"],
                    }))
                });
            })?;
            pod.ready()?;
            let map = kubectl.run(&["logs", pod.name(), "--container", "users"])?;
            let words: Vec<_> = map.split_whitespace().collect();
            let [inside, outside, users] = words.as_slice() else { bail!("{}: {map:?}", pod.name()) };
            ensure!(*inside == "0" && *outside != "0" && *users == "65536", "{}: {map:?}", pod.name());
            pod.delete()?;
            pod.gone()?;
        }
        Ok(())
    })
}

#[test]
fn a_pod_of_no_runtime_class_is_refused_at_once() -> Result<()> {
    turn(|kubectl| {
        let refused = Pod::apply_edited(kubectl, Kind::Runc, "class", |spec| spec["runtimeClassName"] = json!("nonesuch"));
        let message = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(message.contains("RuntimeClass \"nonesuch\" not found"), "the refusal says {message:?}");
        Ok(())
    })
}

#[test]
fn the_events_of_a_pod_name_what_a_virtual_machine_cannot_have() -> Result<()> {
    turn(|kubectl| {
        let words = "a pod in a virtual machine cannot have the host's network (hostNetwork)";
        let mut pod = Pod::apply_edited(kubectl, Kind::Qemu, "network", |spec| spec["hostNetwork"] = json!(true))?;
        pod.described(words)?;
        pod.delete()?;
        pod.gone()
    })
}

#[test]
fn the_events_of_a_pod_name_an_image_that_there_is_not() -> Result<()> {
    turn(|kubectl| {
        let image = "localhost/magnetar/nonesuch:1";
        let mut pod = Pod::apply_edited(kubectl, Kind::Runc, "image", |spec| spec["containers"][0]["image"] = json!(image))?;
        pod.described(&format!("{image}: not found"))?;
        pod.delete()?;
        pod.gone()
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
