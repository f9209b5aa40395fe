// SPDX-License-Identifier: Apache-2.0
//! The inference server by the manifests that users apply (images/llm), with a tiny model whose
//! answer is known.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use magnetar_kube::{Kind, Kubectl, Pod};
use serde_json::{Value, json};

use super::{say, turn};

/// The folder with the server's image, which tests/kube/run makes.
const FOLDER: &str = "MAGNETAR_LLM";
/// The manifests and the model, in the checkout as a node sees it.
const MANIFESTS: &str = "/magnetar/images/llm";
/// Where the claim of the Deployment leads to.
const MODELS: &str = "/var/lib/models";

const QUESTION: &str = r#"{"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}"#;
const ANSWER: &str = "The capital of France is Paris.";

/// What was applied, and is deleted with this.
struct Applied {
    kubectl: Kubectl,
    names: Vec<String>,
}

impl Applied {
    fn add(&mut self, object: &Value) -> Result<()> {
        let [kind, name] = [&object["kind"], &object["metadata"]["name"]].map(|word| word.as_str().unwrap_or_default());
        self.names.push(format!("{kind}/{name}"));
        self.kubectl.apply(object)
    }

    /// A manifest as it is shipped, after `edit` has changed it.
    fn add_file(&mut self, name: &str, edit: impl FnOnce(&mut Value)) -> Result<()> {
        let file = format!("{MANIFESTS}/{name}");
        let text = self.kubectl.run(&["create", "--dry-run=client", "--output", "json", "--filename", &file])?;
        let mut object = serde_json::from_str(&text).context(file)?;
        edit(&mut object);
        self.add(&object)
    }

    fn delete(&mut self) -> Result<()> {
        while let Some(name) = self.names.pop() {
            self.kubectl.run(&["delete", "--timeout=2m", &name])?;
        }
        Ok(())
    }
}

impl Drop for Applied {
    fn drop(&mut self) {
        if let Err(error) = self.delete() {
            eprintln!("{:?} stay: {error:#}", self.names);
        }
    }
}

#[test]
fn the_manifests_serve_a_model_with_each_engine_and_nobody_is_refused_meanwhile() -> Result<()> {
    turn(|kubectl| {
        import()?;
        let mut applied = Applied { kubectl, names: Vec::new() };
        for object in models()? {
            applied.add(&object)?;
        }
        // Two of them on a small node, and a tiny model.
        applied.add_file("deployment.yaml", |object| {
            object["spec"]["template"]["spec"]["containers"][0]["resources"] =
                json!({"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "2", "memory": "512Mi"}});
        })?;
        applied.add_file("service.yaml", |_| {})?;
        rolled_out(kubectl)?;
        let service = kubectl.get("service/llm")?.context("the Service was applied and is not there")?;
        let address = format!("http://{}/v1/chat/completions", service["spec"]["clusterIP"].as_str().unwrap_or_default());
        let mut client = Pod::apply(kubectl, Kind::Runc, "client")?;
        client.ready()?;
        let ask = || {
            let header = "Content-Type: application/json";
            let reply = client.exec(&["wget", "-q", "-O", "-", "-T", "30", "--header", header, "--post-data", QUESTION, &address], &[])?;
            ensure!(reply.code == Some(0) && reply.stdout.contains(ANSWER), "{reply:?}");
            Ok(())
        };
        ask()?;
        kubectl.run(&["patch", "deployment/llm", "--patch", &runtime_class(Kind::Wasmtime)])?;
        let has_ended = AtomicBool::new(false);
        let mut answers = 0;
        thread::scope(|scope| {
            let roll_out = scope.spawn(|| {
                let result = rolled_out(kubectl);
                has_ended.store(true, Ordering::Release);
                result
            });
            while !has_ended.load(Ordering::Acquire) {
                ask().with_context(|| format!("after {answers} answers"))?;
                answers += 1;
            }
            roll_out.join().unwrap_or_else(|_| bail!("the thread that waits for the rollout has failed"))
        })?;
        ask()?;
        say(&format!("{answers} requests were answered while the Deployment went from one engine to the other"))?;
        client.delete()?;
        applied.delete()
    })
}

/// Gives the node the server's image.
fn import() -> Result<()> {
    let folder = env::var(FOLDER).with_context(|| format!("{FOLDER} is not set: run this with tests/kube/run"))?;
    let images = Path::new(&folder).join("images.tar");
    let output = Command::new("ctr").args(["--namespace", "k8s.io", "images", "import"]).arg(&images).output()?;
    ensure!(output.status.success(), "{}: {output:?}", images.display());
    Ok(())
}

/// A volume with the model, and the claim that the Deployment names.
fn models() -> Result<[Value; 2]> {
    fs::create_dir_all(MODELS)?;
    let model = Path::new(MODELS).join("model.gguf");
    fs::copy(Path::new(MANIFESTS).join("model/tiny.gguf"), &model)?;
    fs::set_permissions(&model, fs::Permissions::from_mode(0o644))?;
    let [modes, size] = [json!(["ReadOnlyMany"]), json!({"storage": "1Gi"})];
    Ok([
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "models"},
            "spec": {"capacity": size, "accessModes": modes, "storageClassName": "", "hostPath": {"path": MODELS}},
        }),
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"},
            "spec": {"resources": {"requests": size}, "accessModes": modes, "storageClassName": ""},
        }),
    ])
}

fn runtime_class(kind: Kind) -> String {
    json!({"spec": {"template": {"spec": {"runtimeClassName": kind.class()}}}}).to_string()
}

fn rolled_out(kubectl: Kubectl) -> Result<()> {
    let limit = format!("--timeout={}s", kubectl.within(240).as_secs());
    kubectl.run(&["rollout", "status", &limit, "deployment/llm"]).map(drop)
}
