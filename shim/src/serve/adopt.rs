// SPDX-License-Identifier: Apache-2.0
//! What a new `serve` does with the pods of an earlier one: it watches those that live and removes
//! the rest.
//!
//! ```text
//!   process lives, Start was answered   watched; removed only if it turns out to be unwanted
//!   process lives, Create was answered  the same: Start may still come
//!   process lives, a call was cut off   removed: the caller was told of a failure, and forgot the pod
//!   process has ended                   removed
//!   no process yet                      checked again after 2 s: another process may still be making it
//!   made by `start`                     ignored: containerd owns it and cleans up after it
//! ```

use super::pod::Pod;
use super::pods::Pods;
use super::process::Process;
use crate::stage::Stage;
use magnetar_core::error::Result;
use magnetar_core::record::{self, PodDir};
use std::time::Duration;
use tracing::{Instrument, error, info, warn};

/// How long a pod may take from its directory until its process has written its id into the record.
const HALF_MADE: Duration = Duration::from_secs(2);

/// The state of a pod on disk.
#[derive(Debug)]
enum Found {
    Living(Process),
    Ended,
    HalfMade,
    /// Made by `start`: containerd owns it.
    Foreign,
}

/// Takes over all pods of an earlier `serve`. Returns once it is known which of them live.
pub fn adopt_all(pods: &Pods) {
    let mut living = 0;
    let all = PodDir::all(pods.state_dir()).unwrap_or_else(|error| {
        error!(%error, "cannot list the pods of an earlier serve: leaving them alone");
        Vec::new()
    });
    for (namespace, id, dir) in all {
        let pod = Pod { namespace, id, dir };
        let span = pod.span();
        let _said_of_the_pod = span.enter();
        match Stage::of(&pod.dir).and_then(|stage| if stage == Stage::Foreign { Ok(Found::Foreign) } else { look(&pod) }) {
            Ok(Found::Foreign) => {}
            Ok(Found::HalfMade) => {
                let (pods, span) = (pods.clone(), span.clone());
                pods.clone().watches().spawn(async move { adopt_later(&pods, &pod).await }.instrument(span));
            }
            Ok(found) => living += usize::from(adopt(pods, &pod, found)),
            Err(error) => error!(%error, "cannot tell whether this pod's process lives: leaving the pod alone"),
        }
    }
    info!(living, "took over the pods of an earlier serve");
}

fn adopt(pods: &Pods, pod: &Pod, found: Found) -> bool {
    match found {
        Found::Living(process) => {
            let handle = process.handle();
            let watched = pods.watch(pod, Some(process));
            match Stage::of(&pod.dir) {
                Ok(Stage::Created) => watched.interest().created(),
                Ok(Stage::Started) => watched.interest().started(),
                Ok(Stage::Foreign) => {}
                Err(error) => error!(%error, "cannot tell this pod's stage: watching it, and leaving it alone"),
                Ok(Stage::Creating | Stage::Starting) => {
                    warn!("an earlier serve ended while it was making this pod: removing the pod");
                    watched.expect_end();
                    handle.kill();
                    return false;
                }
            }
            true
        }
        Found::Foreign => false,
        Found::Ended | Found::HalfMade => {
            let watched = pods.watch(pod, None);
            watched.expect_end();
            false
        }
    }
}

async fn adopt_later(pods: &Pods, pod: &Pod) {
    tokio::time::sleep(HALF_MADE).await;
    if matches!(pod.dir.exists(), Ok(false)) || matches!(Stage::of(&pod.dir), Ok(Stage::Foreign)) {
        return;
    }
    match look(pod) {
        Ok(found) => {
            warn!("the making of this pod was never finished: removing the pod");
            adopt(pods, pod, found);
        }
        Err(error) => error!(%error, "cannot tell whether this pod's process lives: leaving the pod alone"),
    }
}

/// Finds out the state of a pod. Whether its process lives, the kernel tells by the pod's lock; the
/// record may be outdated.
///
/// # Errors
/// When the state cannot be read, for example for lack of descriptors. Such a pod is not taken for
/// dead.
fn look(pod: &Pod) -> Result<Found> {
    if let Some(holder) = pod.dir.holder()? {
        return Process::adopted(holder).map(Found::Living);
    }
    Ok(match pod.dir.find_pod()? {
        record::Found::Record(record) if record.pid != 0 => Found::Ended,
        // A record is first written in a way that cannot damage it. So a damaged one was written
        // again, by the pod's process.
        record::Found::Damaged(_) => Found::Ended,
        record::Found::Record(_) | record::Found::Absent => Found::HalfMade,
    })
}
