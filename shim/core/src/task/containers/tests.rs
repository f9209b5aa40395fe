// SPDX-License-Identifier: Apache-2.0
//! A runtime for the tests. Its containers are not processes of this host, as with an app kernel,
//! so it answers all questions about them itself.

use super::*;
use crate::cgroup::stats::Version;
use crate::events::Event;
use crate::idle::Idle;
use crate::ids::{Namespace, SandboxId};
use crate::runtime::{Execution, Kills, Subject};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;
use tokio::sync::mpsc;

/// No process of Linux has an id as large as this.
const PID: u32 = u32::MAX;

#[derive(Default)]
struct Kernel {
    /// Whether the process that the containers live in runs.
    runs: AtomicBool,
    ends: Mutex<Option<oneshot::Sender<Exit>>>,
    signals: Mutex<Vec<(u32, bool)>>,
}

impl Runtime for Kernel {
    async fn start_sandbox(&self) -> Result<()> {
        self.runs.store(true, Ordering::Relaxed);
        Ok(())
    }
    async fn stop_sandbox(&self) -> Result<()> {
        self.runs.store(false, Ordering::Relaxed);
        Ok(())
    }
    async fn create(&self, _creation: Creation<'_>) -> Result<Made> {
        assert!(self.runs.load(Ordering::Relaxed), "it has nothing to live in");
        Ok(Made { pid: PID, terminal: None })
    }
    async fn start(&self, _container: &ContainerId) -> Result<()> {
        Ok(())
    }
    async fn exec(&self, _execution: Execution<'_>) -> Result<Made> {
        Err(Error::unimplemented("no execs"))
    }
    async fn freeze(&self, _container: &ContainerId, _frozen: bool) -> Result<()> {
        Ok(())
    }
    async fn update(&self, _container: &ContainerId, _resources: &[u8]) -> Result<()> {
        Ok(())
    }
    async fn checkpoint(&self, _container: &ContainerId, _checkpoint: Checkpoint) -> Result<()> {
        Ok(())
    }
    async fn delete(&self, _container: &ContainerId) -> Result<()> {
        Ok(())
    }
    fn ended(&self, _process: Subject<'_>, _reaper: &Reaper) -> impl Future<Output = Exit> + Send + 'static + use<> {
        let (ends, ended) = oneshot::channel();
        *self.ends.lock().unwrap() = Some(ends);
        async move { ended.await.unwrap() }
    }
    async fn signal(&self, process: Subject<'_>, _reaper: &Reaper, signal: u32) -> Result<()> {
        assert_eq!(process.pid, PID);
        self.signals.lock().unwrap().push((signal, false));
        if let Some(ends) = self.ends.lock().unwrap().take() {
            ends.send(Exit { code: 128 + signal, at: SystemTime::now() }).unwrap();
        }
        Ok(())
    }
    async fn signal_all(&self, _container: &ContainerId, _cgroup: Option<&OwnedCgroup>, signal: u32) -> Result<()> {
        self.signals.lock().unwrap().push((signal, true));
        Ok(())
    }
    async fn pids(&self, _container: &ContainerId, _cgroup: Option<&OwnedCgroup>) -> Result<Vec<u32>> {
        Ok(vec![PID, 7])
    }
    async fn statistics(&self, _container: &ContainerId, _cgroup: Option<&OwnedCgroup>) -> Result<Metrics> {
        Ok(Metrics { version: Version::V2, encoded: vec![7] })
    }
    fn kills(&self, _container: &ContainerId, _cgroup: Option<&OwnedCgroup>) -> u64 {
        1
    }
    fn watch_kills(&self, _container: &ContainerId, _cgroup: Option<&OwnedCgroup>) -> Result<Kills> {
        Ok(Box::pin(tokio_stream::iter([1])))
    }
}

async fn next(events: &mut mpsc::UnboundedReceiver<(SystemTime, Event)>) -> Event {
    events.recv().await.unwrap().1
}

#[tokio::test]
async fn a_runtime_handles_containers_that_are_no_host_processes() {
    let state = tempfile::tempdir().unwrap();
    let pod = PodDir::new(state.path(), &Namespace::parse("test").unwrap(), &SandboxId::parse("pod").unwrap()).unwrap();
    pod.make().unwrap();
    let bundle = state.path().join("bundle");
    std::fs::create_dir(&bundle).unwrap();
    std::fs::write(bundle.join("config.json"), "{}").unwrap();

    let (reaper, _reap) = Reaper::start().unwrap();
    let ((events, mut told), (idle, _give_back)) = (Events::queue(), Idle::new());
    let parts = Parts { reaper, events, idle, tasks: TaskTracker::new() };
    let containers = Containers::new(Kernel::default(), pod, &parts);
    containers.start_sandbox().await.unwrap();
    let id = ContainerId::parse("c").unwrap();
    let stdio = StdioSpec::parse("", "", "", false).unwrap();
    let request = CreateRequest { container: id.clone(), bundle, rootfs: Vec::new(), stdio, checkpoint: None };

    assert_eq!(containers.create(request).await.unwrap(), PID);
    assert!(matches!(next(&mut told).await, Event::Created { pid: PID, .. }));
    assert_eq!(containers.start(&id, None).await.unwrap(), PID);
    assert!(matches!(next(&mut told).await, Event::Started { pid: PID, exec: None, .. }));
    assert!(matches!(next(&mut told).await, Event::OutOfMemory { .. }));
    assert_eq!(containers.pids(&id).await.unwrap(), [PID, 7]);
    assert_eq!(containers.statistics(&id).await.unwrap().encoded, [7]);

    containers.kill(&id, None, 15, true).await.unwrap();
    containers.kill(&id, None, 9, false).await.unwrap();
    assert_eq!(containers.wait(&id, None).await.unwrap().code, 137);
    assert_eq!(*containers.0.runtime.signals.lock().unwrap(), [(15, true), (9, false)]);
    assert!(matches!(next(&mut told).await, Event::Exited { pid: PID, exec: None, exit: Exit { code: 137, .. }, .. }));
    assert_eq!(containers.delete(&id, None).await.unwrap().1.code, 137);
    assert!(!containers.has_containers());
    containers.stop_sandbox().await.unwrap();
    assert!(!containers.0.runtime.runs.load(Ordering::Relaxed));
}
