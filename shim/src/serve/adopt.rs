// SPDX-License-Identifier: Apache-2.0
//! What a new `serve` does with the pods that it finds: it lives with the living, and removes the rest.
//!
//! ```text
//!   process lives, Start was answered   watched, and left alone unless it turns out to be unwanted
//!   process lives, Create was answered  the same: Start may still come
//!   process lives, a call was cut off   removed: the caller was told of a failure, and forgot the pod
//!   process has ended                   removed
//!   no process yet                      looked at again, when whoever was making it has had the time
//!   made by `start`                     containerd owns it and cleans up after it
//! ```

use super::pod::Pod;
use super::pods::Pods;
use super::process::Process;
use crate::stage::Stage;
use magnetar_core::error::Result;
use magnetar_core::record::{self, PodDir};
use std::time::Duration;
use tracing::{Instrument, error, info, warn};

/// How long a pod may take from its directory to its process's note of its own id.
const HALF_MADE: Duration = Duration::from_secs(2);

/// What a pod on disk turned out to be.
#[derive(Debug)]
enum Found {
    Living(Process),
    Ended,
    HalfMade,
    /// containerd's own affair.
    Foreign,
}

/// Takes over all pods of an earlier `serve`. Returns when it is known which ones live.
pub fn adopt_all(pods: &Pods) {
    let mut living = 0;
    let all = PodDir::all(pods.state_dir()).unwrap_or_else(|error| {
        error!(%error, "cannot see all pods of an earlier serve: those are left alone");
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
            Err(error) => error!(%error, "cannot tell what has become of a pod: leaving it alone"),
        }
    }
    info!(living, "took over the pods that were here");
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
                Err(error) => error!(%error, "cannot tell how far this pod had come: it is watched, and left alone"),
                Ok(Stage::Creating | Stage::Starting) => {
                    warn!("an earlier serve ended while it made this pod: removing it");
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
            warn!("nobody has finished making this pod: removing it");
            adopt(pods, pod, found);
        }
        Err(error) => error!(%error, "cannot tell what has become of a pod: leaving it alone"),
    }
}

/// What has become of a pod. Whether its process lives says the kernel, by the pod's lock, and not the record.
///
/// # Errors
/// Where one cannot look: for want of descriptors, say. A pod that cannot be seen is not dead.
fn look(pod: &Pod) -> Result<Found> {
    if let Some(holder) = pod.dir.holder()? {
        return Process::adopted(holder).map(Found::Living);
    }
    Ok(match pod.dir.find_pod()? {
        record::Found::Record(record) if record.pid != 0 => Found::Ended,
        // Nothing is written to a record that could be damaged before the process is there.
        record::Found::Damaged(_) => Found::Ended,
        record::Found::Record(_) | record::Found::Absent => Found::HalfMade,
    })
}
