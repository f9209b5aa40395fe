// SPDX-License-Identifier: Apache-2.0
//! Tests when containerd is asked and what its answers lead to, without containerd and in paused
//! time.

use super::*;
use magnetar_core::ids::{Namespace, SandboxId};
use magnetar_core::record::PodDir;
use std::cell::RefCell;
use std::future::ready;
use tempfile::TempDir;
use tokio::time::Instant;

const HOUR: Duration = Duration::from_secs(3600);

/// A pod on disk, and the times at which containerd was asked about it.
struct Scene {
    pod: Pod,
    interest: Interest,
    begin: Instant,
    asked: RefCell<Vec<u64>>,
    _state: TempDir,
}

impl Scene {
    fn new(stage: Stage) -> Self {
        let state = tempfile::tempdir().unwrap();
        let (namespace, id) = (Namespace::parse("n").unwrap(), SandboxId::parse("a").unwrap());
        let dir = PodDir::new(state.path(), &namespace, &id).unwrap();
        dir.make().unwrap();
        Stage::Creating.advance(&dir, stage).unwrap();
        let scene = Self {
            pod: Pod { namespace, id, dir },
            interest: Interest::default(),
            begin: Instant::now(),
            asked: RefCell::default(),
            _state: state,
        };
        match stage {
            Stage::Created => scene.interest.created(),
            Stage::Started => scene.interest.started(),
            Stage::Creating | Stage::Starting | Stage::Foreign => {}
        }
        scene
    }

    fn seconds(&self) -> u64 {
        self.begin.elapsed().as_secs()
    }

    /// Watches the pod for ten hours; `answer` is containerd's answer to question number n. Returns
    /// after how many seconds the pod turned out to be unwanted.
    async fn watch(&self, answer: impl Fn(usize) -> Option<bool>) -> Option<u64> {
        let knows = || {
            let mut asked = self.asked.borrow_mut();
            asked.push(self.seconds());
            ready(answer(asked.len() - 1))
        };
        let unwanted = unwanted(&self.pod, &self.interest, Rhythm::default(), knows);
        timeout(10 * HOUR, unwanted).await.ok().map(|_| self.seconds())
    }

    fn asked(&self) -> Vec<u64> {
        self.asked.borrow().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_containerd_denies_twice_is_unwanted() {
    let scene = Scene::new(Stage::Started);
    assert_eq!(scene.watch(|_| Some(false)).await, Some(5));
    assert_eq!(scene.asked(), [3, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_known_pod_stays_and_is_checked_less_and_less_often() {
    let scene = Scene::new(Stage::Started);
    assert_eq!(scene.watch(|_| Some(true)).await, None);
    assert_eq!(scene.asked()[..5], [3, 10, 30, 330, 630]);
}

#[tokio::test(start_paused = true)]
async fn a_missing_answer_does_not_count_as_a_denial() {
    let scene = Scene::new(Stage::Started);
    assert_eq!(scene.watch(|_| None).await, None);
    let scene = Scene::new(Stage::Started);
    assert_eq!(scene.watch(|n| [Some(false), None, Some(false), Some(true)][n % 4]).await, None);
    assert!(scene.asked().len() > 100);
    let scene = Scene::new(Stage::Started);
    assert_eq!(scene.watch(|n| [None, None, None, None, Some(false), Some(false)][n]).await, Some(632));
}

#[tokio::test(start_paused = true)]
async fn containerd_is_not_asked_about_a_pod_with_a_wait_call() {
    let scene = Scene::new(Stage::Started);
    let waits = async {
        sleep(Duration::from_secs(2)).await;
        let (first, second) = (scene.interest.waiting(), scene.interest.waiting());
        sleep(HOUR).await;
        drop(first);
        sleep(HOUR).await;
        drop(second);
    };
    let (ended, ()) = tokio::join!(scene.watch(|_| Some(false)), waits);
    assert_eq!((ended, scene.asked()), (Some(7207), vec![7205, 7207]), "not before the last Wait call has ended");
}

#[tokio::test(start_paused = true)]
async fn a_wait_call_after_the_first_denial_keeps_the_pod() {
    let scene = Scene::new(Stage::Started);
    let waits = async {
        sleep(Duration::from_secs(4)).await;
        let _waiting = scene.interest.waiting();
        sleep(20 * HOUR).await;
    };
    let (ended, ()) = tokio::join!(scene.watch(|_| Some(false)), waits);
    assert_eq!((ended, scene.asked()), (None, vec![3]));
}

#[tokio::test(start_paused = true)]
async fn a_created_pod_is_unwanted_if_denied_or_not_started() {
    let scene = Scene::new(Stage::Created);
    assert_eq!((scene.watch(|_| Some(false)).await, scene.asked()), (Some(5), vec![3, 5]));
    let scene = Scene::new(Stage::Created);
    assert_eq!(scene.watch(|_| Some(true)).await, Some(600), "never started");
    let scene = Scene::new(Stage::Created);
    let starts = async {
        sleep(Duration::from_secs(599)).await;
        Stage::Created.advance(&scene.pod.dir, Stage::Started).unwrap();
        scene.interest.started();
    };
    let (ended, ()) = tokio::join!(scene.watch(|_| Some(true)), starts);
    assert_eq!((ended, scene.asked()[3]), (None, 330));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_being_made_is_left_alone() {
    for stage in [Stage::Starting, Stage::Foreign] {
        let scene = Scene::new(stage);
        assert_eq!(scene.watch(|_| Some(false)).await, None, "{stage:?}");
        assert!(scene.asked().is_empty());
    }
}
