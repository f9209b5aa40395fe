// SPDX-License-Identifier: Apache-2.0
//! Tests that the state machine keeps its invariants under any changes in any order.

use super::*;
use proptest::prelude::*;

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (1u32..9).prop_map(|pid| Change::Made { pid }),
        Just(Change::Start),
        (1u32..9).prop_map(|pid| Change::Started { pid }),
        Just(Change::StartFailed),
        Just(Change::Pause),
        Just(Change::Resume),
        (0u32..3).prop_map(|code| Change::Exit(Exit { code, at: std::time::SystemTime::UNIX_EPOCH })),
        Just(Change::Delete),
    ]
}

proptest! {
    #[test]
    fn the_first_exit_is_kept(changes in prop::collection::vec(change(), 0..40)) {
        let life = Life::new(Phase::Creating);
        let mut first: Option<Exit> = None;
        for change in changes {
            let before = life.phase();
            let outcome = life.change(change);
            if outcome.is_err() {
                prop_assert_eq!(life.phase(), before, "a refused change changes nothing");
            }
            if let Some(exit) = life.phase().exit() {
                prop_assert_eq!(*first.get_or_insert(exit), exit);
            }
            prop_assert!(first.is_none() || life.phase().exit().is_some(), "what has ended stays ended");
            prop_assert!(first.is_none() || life.phase().living_pid().is_none(), "no signal reaches a reaped pid");
        }
    }

    #[test]
    fn no_process_runs_without_start(changes in prop::collection::vec(change(), 0..40)) {
        let life = Life::new(Phase::Creating);
        let mut started = false;
        for change in changes {
            started |= life.change(change).is_ok() && change == Change::Start;
            let runs = matches!(life.phase(), Phase::Running { .. } | Phase::Paused { .. });
            prop_assert!(started || !runs);
        }
    }
}

#[test]
fn a_second_start_is_refused_with_the_phase() {
    let life = Life::new(Phase::Running { pid: 4 });
    let error = life.change(Change::Start).unwrap_err();
    assert_eq!(error.code(), crate::error::Code::FailedPrecondition);
    assert_eq!(error.to_string(), "it is running, so it cannot be started");
}

#[tokio::test]
async fn wait_is_answered_before_and_after_the_end() {
    let life = std::sync::Arc::new(Life::new(Phase::Running { pid: 4 }));
    let exit = Exit { code: 3, at: std::time::SystemTime::UNIX_EPOCH };
    let waiter = life.clone();
    let (told, _) = tokio::join!(async move { waiter.exit().await }, async { life.change(Change::Exit(exit)).unwrap() });
    assert_eq!(told, exit);
    assert_eq!(life.exit().await, exit);
}

#[test]
fn a_process_in_a_frozen_container_is_frozen() {
    let (frozen, pid) = (Phase::Paused { pid: 4 }, 5);
    let ended = Phase::Stopped { pid, exit: Exit { code: 3, at: std::time::SystemTime::UNIX_EPOCH } };
    for phase in [Phase::Created { pid }, Phase::Starting { pid }, Phase::Running { pid }] {
        assert_eq!(phase.within(frozen), Phase::Paused { pid });
        assert_eq!(phase.within(Phase::Running { pid: 4 }), phase);
    }
    assert_eq!(ended.within(frozen), ended);
}
