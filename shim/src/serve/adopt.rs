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
use magnetar_core::error::{Code, Result};
use magnetar_core::record::PodDir;
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
}

/// Takes over all pods of an earlier `serve`. Returns when it is known which ones live.
pub fn adopt_all(pods: &Pods) {
    let mut living = 0;
    for (namespace, id, dir) in PodDir::all(pods.state_dir()) {
        let pod = Pod { namespace, id, dir };
        let span = pod.span();
        let _said_of_the_pod = span.enter();
        if Stage::of(&pod.dir) == Stage::Foreign {
            continue;
        }
        match look(&pod) {
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
            let stage = Stage::of(&pod.dir);
            match stage {
                Stage::Created => watched.interest().created(),
                Stage::Started => watched.interest().started(),
                Stage::Foreign => {}
                Stage::Creating | Stage::Starting => {
                    warn!("an earlier serve ended while it made this pod: removing it");
                    watched.expect_end();
                    handle.kill();
                    return false;
                }
            }
            true
        }
        Found::Ended | Found::HalfMade => {
            let watched = pods.watch(pod, None);
            watched.expect_end();
            false
        }
    }
}

async fn adopt_later(pods: &Pods, pod: &Pod) {
    tokio::time::sleep(HALF_MADE).await;
    if !pod.dir.path().exists() || Stage::of(&pod.dir) == Stage::Foreign {
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

/// What has become of a pod.
///
/// # Errors
/// Where its record cannot be read, for instance because a later version wrote it.
fn look(pod: &Pod) -> Result<Found> {
    let pid = match pod.dir.pod() {
        Ok(record) => record.pid,
        Err(error) if error.code() == Code::NotFound => 0,
        Err(error) => return Err(error),
    };
    if pid == 0 {
        return Ok(Found::HalfMade);
    }
    // The process is taken hold of first. If the lock is held after that, then by this process: it
    // cannot have ended, so the id cannot have gone to another one.
    let Ok(process) = Process::adopted(pid) else {
        return Ok(Found::Ended);
    };
    Ok(if pod.dir.try_lock()?.is_none() { Found::Living(process) } else { Found::Ended })
}
