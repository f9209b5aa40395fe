// SPDX-License-Identifier: Apache-2.0
//! The functions that the fuzz targets for this program call (tests/fuzz), one for each target.
//! They are compiled for fuzzing and for the unit test that gives them the fuzzers' corpus, and for
//! nothing else.
//!
//! Each takes whatever bytes there are, and must return: a panic, a wait without end and memory
//! without bound are the findings.

use crate::config::{ExtraNeeds, VmConfig};
use crate::hypervisor::qemu::qmp::Qmp;
use crate::machine::console;
use crate::machine::size::Size;
use crate::relay::guest::GuestTasks;
use crate::relay::translate::{self, Translated};
use magnetar_core::config::HandlerConfig;
use magnetar_core::error::Result;
use magnetar_core::ids::ContainerId;
use magnetar_core::pod_config::{PodConfig, Resources};
use magnetar_core::sandbox::PodRequest;
use magnetar_vm_agent_api as agent;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio_util::either::Either;

/// What takes longer than this does not end.
const PATIENCE: Duration = Duration::from_secs(10);

/// QEMU says `bytes`, and closes the connection.
pub fn qmp(bytes: &[u8]) {
    with_peer(bytes, async |ours| -> Result<()> {
        let mut qmp = Qmp::begin(ours).await?;
        qmp.execute::<Value>("query-status").await?;
        qmp.order("device_add", json!({"driver": "scsi-hd", "id": "disk"}), None).await?;
        qmp.delete_device("disk").await
    });
}

/// The agent in the guest answers `bytes` to calls of containerd's Task API, and closes the
/// connection.
pub fn tasks(bytes: &[u8]) {
    with_peer(bytes, async |ours| {
        let tasks = GuestTasks::new(Either::Left(ours));
        let Ok(container) = ContainerId::parse("c") else { return };
        // The second call is made on a connection that may be broken by then.
        for _ in 0..2 {
            let _answered = tasks.statistics(&container).await;
        }
    });
}

/// The guest prints `bytes` on its console.
pub fn console(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for reason in [console::panic_in(&text), console::agent_error_in(&text)].into_iter().flatten() {
        assert!(!reason.is_empty() && !reason.contains('\n'), "{reason:?} is no reason");
    }
}

/// `text` is the file with a handler's options.
pub fn options(text: &str) {
    let Ok(handler) = HandlerConfig::parse(text) else { return };
    // It goes to the pod's process as JSON.
    let told = serde_json::to_vec(&handler).and_then(|told| serde_json::from_slice::<HandlerConfig>(&told));
    assert!(told.is_ok(), "{told:?}");
    let Ok(config) = VmConfig::parse(&handler.vm) else { return };
    let host = Size { memory_mib: 8192, vcpus: 4 };
    for memory_limit in [None, Some(-1), Some(1), Some(i64::MAX)] {
        let limits = Resources { memory_limit, cpu_quota: Some(i64::MAX), cpu_period: Some(1), ..Resources::default() };
        let pod = PodConfig { resources: Some(limits), ..PodConfig::default() };
        let size = config.size(&pod, ExtraNeeds { has_unlimited_container: true, huge_pages: u32::MAX }, host);
        assert!(size.memory_mib >= config.memory_mib && size.vcpus >= 1, "{size:?}");
        let most = config.most(size, host);
        assert!(most.covers(size), "{most:?} is less than {size:?}");
    }
}

/// `bytes` are the file with a container's specification.
pub fn specification(bytes: &[u8]) {
    let Ok(container) = ContainerId::parse("c") else { return };
    let _no_specification = PodRequest::of_single(container.clone(), Path::new("/bundle"), bytes);
    let Ok(spec) = serde_json::from_slice::<Value>(bytes) else { return };
    let memory = |source: &Path| (source == Path::new("/m")).then_some(7);
    for is_single in [true, false] {
        let context = translate::Context { sandbox_pid: 42, shm: Path::new("/shm"), memory: &memory, is_single };
        if let Ok(translated) = translate::translate(spec.clone(), &container, &context) {
            names_nothing_of_the_host(&translated);
        }
    }
    let mut limits = spec;
    translate::resources(&mut limits);
}

/// The guest is shown what is in the share and in its memory.
fn names_nothing_of_the_host(translated: &Translated) {
    let Translated { spec, volumes, .. } = translated;
    assert_eq!(spec["root"]["path"], format!("{}/c/rootfs", agent::SHARE));
    assert_eq!(spec["linux"]["cgroupsPath"], format!("{}/c", agent::CGROUP));
    assert!(volumes.iter().all(|volume| volume.source.is_absolute()), "{volumes:?}");
    for mount in spec["mounts"].as_array().into_iter().flatten() {
        let options = mount["options"].as_array().map(Vec::as_slice).unwrap_or_default();
        let source = mount["source"].as_str().unwrap_or_default();
        let ours = [agent::SHARE, agent::MEMORY, agent::SHM].iter().any(|place| Path::new(source).starts_with(place));
        let binds = mount["type"] == "bind" || options.iter().any(|option| option == "bind" || option == "rbind");
        assert!(!binds || ours, "{mount}");
    }
}

/// Runs one side of a connection whose other side says `bytes` and no more.
fn with_peer<T>(bytes: &[u8], ours: impl AsyncFnOnce(UnixStream) -> T) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    let ended = runtime.block_on(async {
        let (near, mut far) = UnixStream::pair()?;
        let said = async {
            // It fails where nobody listens any more.
            let _gone = far.write_all(bytes).await.and(far.shutdown().await);
            tokio::io::copy(&mut far, &mut tokio::io::sink()).await
        };
        let both = async { tokio::join!(ours(near), said) };
        Ok::<_, std::io::Error>(tokio::time::timeout(PATIENCE, both).await.is_ok())
    });
    assert!(!matches!(ended, Ok(false)), "it does not end within {PATIENCE:?}");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    type Target = fn(&[u8]);

    /// What the fuzzers begin with, and what they have found, without a fuzzer.
    #[test]
    fn the_fuzzers_corpus_is_read_without_a_panic() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
        let targets: [(&str, Target); 4] = [
            ("qmp", super::qmp),
            ("tasks", super::tasks),
            ("options", |bytes| super::options(&String::from_utf8_lossy(bytes))),
            ("spec", super::specification),
        ];
        for (target, run) in targets {
            let mut files = 0;
            for file in std::fs::read_dir(corpus.join(target)).unwrap() {
                run(&std::fs::read(file.unwrap().path()).unwrap());
                files += 1;
            }
            assert!(files > 1, "there is no corpus of {target}");
        }
    }
}
