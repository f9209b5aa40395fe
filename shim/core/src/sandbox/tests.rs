// SPDX-License-Identifier: Apache-2.0
//! Commands run one after another; status requests never wait.

use super::*;

/// A pod whose start waits for the test.
struct Slow {
    start: Option<oneshot::Receiver<Result<u32>>>,
    stops: Arc<std::sync::atomic::AtomicU32>,
}

impl Sandboxer for Slow {
    async fn create(&mut self, _request: &PodRequest) -> Result<()> {
        Ok(())
    }
    async fn start(&mut self) -> Result<u32> {
        self.start.take().unwrap().await.unwrap()
    }
    async fn stop(&mut self) -> Result<()> {
        self.stops.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
    fn metrics(&self) -> Result<Metrics> {
        Err(Error::unimplemented("no metrics"))
    }
    fn resize(&mut self, _resources: Resources, outcome: oneshot::Sender<Result<()>>) {
        reply(outcome, Ok(()));
    }
}

fn request() -> PodRequest {
    PodRequest { config: PodConfig::default(), netns: None, single: None }
}

async fn with_pod(test: impl AsyncFnOnce(Pod, oneshot::Sender<Result<u32>>, Arc<std::sync::atomic::AtomicU32>)) {
    let (go, start) = oneshot::channel();
    let stops = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let (pod, owner) = Pod::new(Slow { start: Some(start), stops: stops.clone() });
    tokio::select! {
        () = owner => unreachable!("the owner outlives the handle"),
        () = test(pod, go, stops) => {}
    }
}

#[tokio::test]
async fn status_is_answered_while_the_pod_boots() {
    with_pod(async |pod, go, _| {
        pod.create(request()).await.unwrap();
        let booting = pod.clone();
        let (pid, ()) = tokio::join!(async move { booting.start().await }, async {
            assert_eq!(pod.phase(), PodPhase::Created);
            go.send(Ok(7)).unwrap();
        });
        assert_eq!(pid.unwrap(), 7);
        assert!(matches!(pod.phase(), PodPhase::Ready { pid: 7, .. }));
    })
    .await;
}

#[tokio::test]
async fn a_failed_start_is_undone_and_reported() {
    with_pod(async |pod, go, stops| {
        pod.create(request()).await.unwrap();
        go.send(Err(Error::invalid("no"))).unwrap();
        assert_eq!(pod.start().await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(stops.load(std::sync::atomic::Ordering::Relaxed), 1);
    })
    .await;
}

#[tokio::test]
async fn commands_in_the_wrong_phase_are_refused() {
    with_pod(async |pod, go, _| {
        assert_eq!(pod.start().await.unwrap_err().code(), Code::FailedPrecondition);
        pod.create(request()).await.unwrap();
        assert_eq!(pod.create(request()).await.unwrap_err().code(), Code::AlreadyExists);
        go.send(Ok(1)).unwrap();
        pod.start().await.unwrap();
        pod.stop().await.unwrap();
        pod.stop().await.unwrap();
        assert_eq!(pod.exit().await.code, 0);
        assert_eq!(pod.start().await.unwrap_err().code(), Code::FailedPrecondition);
    })
    .await;
}
