// SPDX-License-Identifier: Apache-2.0
//! Pods as Kubernetes' manifests describe them, for examples that are run as they are: what the
//! kubelet would make of them. A key that is not understood here is an error, so that nothing of an
//! example is left out silently.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use magnetar_cri::{ContainerSpec, PodSpec};
use saphyr_parser::{Event, Parser};
use serde::Deserialize;
use serde_json::Value;

const QUOTA_PERIOD: i64 = 100_000;

/// The pod of a manifest.
#[derive(Debug)]
pub struct Manifest {
    /// The pod without its containers.
    pub pod: PodSpec,
    /// Its containers in their order.
    pub containers: Vec<ContainerSpec>,
}

impl Manifest {
    /// Reads a file that describes one pod, and perhaps other things.
    pub fn parse(text: &str) -> Result<Self> {
        let pods = documents(text)?.into_iter().filter(|document| document.get("kind").is_some_and(|kind| kind == "Pod"));
        let [pod] = <[Value; 1]>::try_from(pods.collect::<Vec<_>>()).map_err(|pods| anyhow::anyhow!("{} pods, not one", pods.len()))?;
        let pod: Pod = serde_json::from_value(pod)?;
        ensure!(pod.api_version == "v1" && pod.kind == "Pod", "{} {} is no pod", pod.api_version, pod.kind);
        let mut spec = PodSpec::new(&pod.metadata.name, &pod.spec.runtime_class_name).own_pid().hostname(&pod.metadata.name);
        for (key, value) in &pod.metadata.labels {
            spec = spec.label(key, value);
        }
        for (key, value) in &pod.metadata.annotations {
            spec = spec.annotation(key, value);
        }
        ensure!(matches!(pod.spec.restart_policy.as_str(), "" | "Always" | "Never" | "OnFailure"), "{:?}", pod.spec.restart_policy);
        Ok(Self { pod: spec, containers: pod.spec.containers.into_iter().map(Container::spec).collect::<Result<_>>()? })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Pod {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Spec {
    runtime_class_name: String,
    #[serde(default)]
    restart_policy: String,
    containers: Vec<Container>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Container {
    name: String,
    image: String,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
    /// For people and for services: the CRI hears nothing of them.
    #[serde(default, rename = "ports")]
    _ports: Vec<Value>,
    #[serde(default)]
    resources: Resources,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resources {
    limits: Limits,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    cpu: Option<String>,
    memory: Option<String>,
}

impl Container {
    fn spec(self) -> Result<ContainerSpec> {
        let mut spec = ContainerSpec::new(&self.name, &self.image).command(self.command).edit(|config| config.args = self.args);
        for Variable { name, value } in &self.env {
            spec = spec.env(name, value);
        }
        if let Some(cpu) = self.resources.limits.cpu {
            let quota = thousandths(&cpu)? * QUOTA_PERIOD / 1000;
            spec = spec.resources(|resources| (resources.cpu_period, resources.cpu_quota) = (QUOTA_PERIOD, quota));
        }
        if let Some(memory) = self.resources.limits.memory {
            spec = spec.memory(bytes(&memory)?);
        }
        Ok(spec)
    }
}

/// `500m`, or whole processors.
fn thousandths(cpu: &str) -> Result<i64> {
    let (number, factor) = cpu.strip_suffix('m').map_or((cpu, 1000), |number| (number, 1));
    Ok(number.parse::<i64>().with_context(|| format!("{cpu:?} is no number of processors"))? * factor)
}

/// `64Mi`, which is the unit that examples have.
fn bytes(memory: &str) -> Result<i64> {
    let number = memory.strip_suffix("Mi").with_context(|| format!("{memory:?} is not in Mi"))?;
    Ok(number.parse::<i64>().with_context(|| format!("{memory:?} is no size"))? << 20)
}

/// The documents of a file in YAML. All that is no list and no mapping is text.
fn documents(text: &str) -> Result<Vec<Value>> {
    let mut documents = Vec::new();
    let mut events = Parser::new_from_str(text);
    while let Some(event) = events.next() {
        if let (Event::DocumentStart(_), _) = event? {
            let first = next(&mut events)?;
            documents.push(value(&mut events, first)?);
        }
    }
    Ok(documents)
}

type Events<'a> = Parser<'a, saphyr_parser::StrInput<'a>>;

fn next<'a>(events: &mut Events<'a>) -> Result<Event<'a>> {
    Ok(events.next().context("the file ends too early")??.0)
}

/// The value that begins with `event`.
fn value<'a>(events: &mut Events<'a>, event: Event<'a>) -> Result<Value> {
    match event {
        Event::Scalar(text, ..) => Ok(Value::String(text.into_owned())),
        Event::SequenceStart(..) => {
            let mut values = Vec::new();
            loop {
                match next(events)? {
                    Event::SequenceEnd => return Ok(Value::Array(values)),
                    event => values.push(value(events, event)?),
                }
            }
        }
        Event::MappingStart(..) => {
            let mut values = serde_json::Map::new();
            loop {
                match next(events)? {
                    Event::MappingEnd => return Ok(Value::Object(values)),
                    Event::Scalar(key, ..) => {
                        let event = next(events)?;
                        values.insert(key.into_owned(), value(events, event)?);
                    }
                    other => bail!("{other:?} is no key"),
                }
            }
        }
        other => bail!("{other:?} is no value"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: app
  annotations: {colour: blue}
spec:
  runtimeClassName: magnetar-runc
  containers:
  - name: first
    image: registry.example/app:1
    args: [one, \"two words\"]
    env:
    - {name: PORT, value: \"8081\"}
    resources:
      limits: {cpu: 500m, memory: 64Mi}
---
apiVersion: v1
kind: Service
";

    #[test]
    fn a_pod_is_read_as_the_kubelet_would() {
        let manifest = Manifest::parse(POD).unwrap();
        assert_eq!(manifest.pod.handler(), "magnetar-runc");
        assert_eq!(manifest.pod.config().annotations["colour"], "blue");
        let [container] = manifest.containers.as_slice() else { panic!("{:?}", manifest.containers) };
        let config = container.config();
        assert_eq!((config.args.as_slice(), config.command.len()), (&["one".to_owned(), "two words".to_owned()][..], 0));
        assert_eq!((config.envs[0].key.as_str(), config.envs[0].value.as_str()), ("PORT", "8081"));
        let resources = config.linux.as_ref().unwrap().resources.as_ref().unwrap();
        assert_eq!((resources.cpu_quota, resources.memory_limit_in_bytes), (50_000, 64 << 20));
    }

    #[test]
    fn a_key_that_is_not_understood_is_named() {
        let error = Manifest::parse(&POD.replace("args:", "workingDir:")).unwrap_err();
        assert!(format!("{error:#}").contains("workingDir"), "{error:#}");
    }

    #[test]
    fn there_must_be_one_pod() {
        assert!(Manifest::parse("kind: Service").is_err());
        assert!(Manifest::parse(&format!("{POD}---{POD}")).is_err());
    }
}
