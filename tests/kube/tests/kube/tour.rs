// SPDX-License-Identifier: Apache-2.0
//! What people do with pods, on each kind. A pod of a kind whose containers run modules has a
//! native program beside its module, as all kinds can: what it sees is what the kubelet gave.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use magnetar_kube::{Kind, Kubectl, Pod};
use serde_json::{Value, json};

use super::of;

macro_rules! on_each_kind {
    ($($test:ident,)*) => {
        mod runc { $(#[test] fn $test() -> anyhow::Result<()> { super::of(super::Kind::Runc, stringify!($test), super::$test) })* }
        mod wasmtime { $(#[test] fn $test() -> anyhow::Result<()> { super::of(super::Kind::Wasmtime, stringify!($test), super::$test) })* }
        mod wasmedge { $(#[test] fn $test() -> anyhow::Result<()> { super::of(super::Kind::WasmEdge, stringify!($test), super::$test) })* }
        mod qemu { $(#[test] fn $test() -> anyhow::Result<()> { super::of(super::Kind::Qemu, stringify!($test), super::$test) })* }
        mod clh { $(#[test] fn $test() -> anyhow::Result<()> { super::of(super::Kind::Clh, stringify!($test), super::$test) })* }
    };
}

on_each_kind! {
    volumes_fields_and_containers_before_and_beside_reach_a_container,
    a_container_that_is_not_live_is_started_again,
    how_a_container_ends_is_told,
    files_are_copied_ports_forwarded_and_inputs_attached,
}

/// A container of busybox with a script, which stays afterwards.
fn shell(name: &str, script: &str) -> Value {
    let stay = format!("trap 'exit 0' TERM; {script}; while :; do sleep 0.1; done");
    json!({"name": name, "image": Kind::Runc.image(), "command": ["sh", "-c", stay]})
}

fn mounted(mut container: Value, mounts: &[(&str, &str)]) -> Value {
    container["volumeMounts"] = mounts.iter().map(|(name, path)| json!({"name": name, "mountPath": path})).collect();
    container
}

/// What a command in one container of a pod says.
fn said(kubectl: Kubectl, pod: &Pod, container: &str, command: &[&str]) -> Result<String> {
    kubectl.run(&[&["exec", pod.name(), "--container", container, "--"], command].concat())
}

/// Waits until `look` finds something.
fn found<T>(kubectl: Kubectl, what: &str, seconds: u32, look: impl Fn() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + kubectl.within(seconds);
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(Instant::now() < end, "{what}: not within {seconds} s");
        thread::sleep(Duration::from_millis(200));
    }
}

fn volumes_fields_and_containers_before_and_beside_reach_a_container(kubectl: Kubectl, kind: Kind) -> Result<()> {
    let settings =
        |colour: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "tour"}, "data": {"colour": colour}});
    kubectl.apply(&settings("red"))?;
    kubectl.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tour"}, "stringData": {"word": "sesame"}}))?;
    let mut pod = Pod::apply_edited(kubectl, kind, "tour", |spec| {
        spec["initContainers"] = json!([
            mounted(
                json!({"name": "before", "image": Kind::Runc.image(), "command": ["sh", "-c", "echo from before >/shared/before"]}),
                &[("shared", "/shared")]
            ),
            mounted(shell("beside", "echo from beside >/shared/beside"), &[("shared", "/shared")]),
        ]);
        spec["initContainers"][1]["restartPolicy"] = json!("Always");
        let mut tools = mounted(
            shell("tools", ":"),
            &[("shared", "/shared"), ("memory", "/memory"), ("settings", "/settings"), ("secret", "/secret"), ("fields", "/fields")],
        );
        tools["volumeMounts"][2]["readOnly"] = json!(true);
        tools["env"] = json!([
            {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "tour", "key": "word"}}},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
        ]);
        tools["resources"] = json!({"limits": {"memory": "64Mi"}});
        spec["containers"].as_array_mut().into_iter().for_each(|containers| containers.push(tools.clone()));
        spec["securityContext"] = json!({"fsGroup": 4242});
        spec["volumes"] = json!([
            {"name": "shared", "emptyDir": {}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "settings", "configMap": {"name": "tour"}},
            {"name": "secret", "secret": {"secretName": "tour", "defaultMode": 0o440}},
            {"name": "fields", "projected": {"sources": [
                {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
            ]}},
        ]);
    })?;
    pod.ready()?;
    let tools = |command: &str| said(kubectl, &pod, "tools", &["sh", "-c", command]);
    assert_eq!(tools("cat /shared/before /shared/beside /settings/colour /secret/word")?, "from before\nfrom beside\nredsesame");
    assert_eq!(tools("echo $WORD $LIMIT; stat -c %g /shared; stat -Lc '%a %g' /secret/word")?, "sesame 67108864\n4242\n440 4242\n");
    ensure!(tools("echo $NODE")?.trim() == pod.object()?["spec"]["nodeName"], "{}", tools("echo $NODE")?);
    ensure!(tools("cat /fields/labels")?.contains(&format!("app=\"{}\"", pod.name())));
    assert_eq!(tools("tr -cd . </fields/token | wc -c")?.trim(), "2", "a token has three parts");
    let full = kubectl
        .try_run(&["exec", pod.name(), "--container", "tools", "--", "dd", "if=/dev/zero", "of=/memory/x", "bs=64k", "count=32"], &[])?;
    ensure!(full.code != Some(0) && full.stderr.contains("No space left"), "{full:?}");
    ensure!(tools("echo x 2>/dev/null >/settings/x || echo refused")? == "refused\n");
    kubectl.apply(&settings("green"))?;
    found(kubectl, "the ConfigMap's change in the container", 150, || Ok((tools("cat /settings/colour")? == "green").then_some(())))?;
    pod.delete()?;
    kubectl.run(&["delete", "configmap/tour", "secret/tour"])?;
    pod.gone()
}

fn container_status<'a>(object: &'a Value, name: &str) -> &'a Value {
    let statuses = object["status"]["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
    statuses.iter().find(|status| status["name"] == name).unwrap_or(&Value::Null)
}

fn a_container_that_is_not_live_is_started_again(kubectl: Kubectl, kind: Kind) -> Result<()> {
    let mut pod = Pod::apply_edited(kubectl, kind, "live", |spec| {
        let mut web = shell("web", "mkdir -p /www; echo alive >/www/live; httpd -p 8080 -h /www");
        web["livenessProbe"] =
            json!({"httpGet": {"path": "/live", "port": 8080}, "periodSeconds": 1, "failureThreshold": 2, "timeoutSeconds": 5});
        web["startupProbe"] = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 60, "timeoutSeconds": 5});
        web["readinessProbe"] = json!({"httpGet": {"path": "/live", "port": 8080}, "periodSeconds": 1, "timeoutSeconds": 5});
        spec["containers"].as_array_mut().into_iter().for_each(|containers| containers.push(web.clone()));
        spec["terminationGracePeriodSeconds"] = json!(2);
    })?;
    pod.ready()?;
    said(kubectl, &pod, "web", &["rm", "/www/live"])?;
    found(kubectl, "the container is started again", 90, || {
        let object = pod.object()?;
        let web = container_status(&object, "web");
        Ok((web["restartCount"] == 1 && web["ready"] == true).then_some(()))
    })?;
    ensure!(pod.object()?["status"]["containerStatuses"].as_array().is_some_and(|all| all.iter().any(|one| one["restartCount"] == 0)));
    ensure!(pod.describe()?.contains("Liveness probe failed: HTTP probe failed with statuscode: 404"), "{}", pod.describe()?);
    pod.delete()?;
    pod.gone()
}

fn how_a_container_ends_is_told(kubectl: Kubectl, kind: Kind) -> Result<()> {
    let mut pod = Pod::apply_edited(kubectl, kind, "ends", |spec| {
        spec["restartPolicy"] = json!("Never");
        let ends = |name: &str, script: &str| json!({"name": name, "image": Kind::Runc.image(), "command": ["sh", "-c", script]});
        let mut greedy = ends("greedy", "text=x; while :; do text=$text$text; done");
        greedy["resources"] = json!({"limits": {"memory": "24Mi"}});
        let mut talks = ends("talks", "echo last words; exit 4");
        talks["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
        let own = json!({"name": "own", "image": kind.image(), "command": kind.fails()});
        let all = [ends("writes", "echo a message >/dev/termination-log; exit 3"), talks, greedy, own];
        spec["containers"].as_array_mut().into_iter().for_each(|containers| containers.extend(all.clone()));
    })?;
    let ended = |name: &'static str| {
        found(kubectl, &format!("container {name} has ended"), 120, || {
            let object = pod.object()?;
            let ended = &container_status(&object, name)["state"]["terminated"];
            Ok((!ended.is_null()).then(|| ended.clone()))
        })
    };
    let writes = ended("writes")?;
    ensure!(writes["exitCode"] == 3 && writes["message"] == "a message\n" && writes["reason"] == "Error", "{writes}");
    let talks = ended("talks")?;
    ensure!(talks["exitCode"] == 4 && talks["message"] == "last words\n", "{talks}");
    let greedy = ended("greedy")?;
    ensure!(greedy["exitCode"] == 137 && greedy["reason"] == "OOMKilled", "{greedy}");
    let own = ended("own")?;
    ensure!(own["exitCode"] == 7 && own["reason"] == "Error", "{own}");
    ensure!(!container_status(&pod.object()?, "hello")["state"]["running"].is_null(), "the others are not disturbed");
    pod.delete()?;
    pod.gone()
}

/// A process that is killed with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _has_ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn files_are_copied_ports_forwarded_and_inputs_attached(kubectl: Kubectl, kind: Kind) -> Result<()> {
    let mut pod = Pod::apply_edited(kubectl, kind, "copy", |spec| {
        let mut tools = shell("tools", "mkdir -p /www; echo forwarded >/www/index.html; httpd -p 8080 -h /www");
        tools["readinessProbe"] = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1, "timeoutSeconds": 5});
        let echoes = json!({"name": "echoes", "image": Kind::Runc.image(), "stdin": true,
            "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do read -r word && echo got $word; done"]});
        spec["containers"].as_array_mut().into_iter().for_each(|containers| containers.extend([tools.clone(), echoes.clone()]));
        spec["terminationGracePeriodSeconds"] = json!(2);
    })?;
    pod.ready()?;
    let folder = std::env::temp_dir().join(format!("kube-{}-{}", kind.class(), std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let (out, back) = (folder.join("out"), folder.join("back"));
    let text: String = (0..50_000).map(|number| format!("{number}\n")).collect();
    std::fs::write(&out, &text)?;
    let there = format!("{}:/tmp/there", pod.name());
    kubectl.run(&["cp", "--container", "tools", &out.to_string_lossy(), &there])?;
    kubectl.run(&["cp", "--container", "tools", &there, &back.to_string_lossy()])?;
    ensure!(std::fs::read_to_string(&back)? == text, "the copy of the copy differs");
    std::fs::remove_dir_all(&folder)?;

    let mut forward = Running(
        Command::new("kubectl")
            .args(["port-forward", pod.name(), ":8080"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("kubectl")?,
    );
    let mut line = String::new();
    // It says more later, and ends where nobody listens.
    let mut output = BufReader::new(forward.0.stdout.take().context("kubectl has no output")?);
    output.read_line(&mut line)?;
    // Forwarding from 127.0.0.1:40123 -> 8080
    let address = line.split_whitespace().nth(2).with_context(|| format!("kubectl port-forward says {line:?}"))?;
    for _ in 0..3 {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.ends_with("forwarded\n"), "{answer:?}");
    }
    drop((forward, output));

    let mut attach = Running(
        Command::new("kubectl")
            .args(["attach", "--stdin", "--container", "echoes", pod.name()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // It warns that what is said is recorded.
            .stderr(Stdio::null())
            .spawn()
            .context("kubectl")?,
    );
    attach.0.stdin.as_mut().context("kubectl has no input")?.write_all(b"one\ntwo\n")?;
    let mut lines = BufReader::new(attach.0.stdout.take().context("kubectl has no output")?).lines();
    let mut heard = Vec::new();
    while !heard.iter().any(|line: &String| line.contains("got two")) {
        heard.push(lines.next().with_context(|| format!("kubectl attach has ended after {heard:?}"))??);
    }
    ensure!(heard.iter().any(|line| line.contains("got one")), "{heard:?}");
    drop(attach);
    pod.delete()?;
    pod.gone()
}
