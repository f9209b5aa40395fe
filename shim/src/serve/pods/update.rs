// SPDX-License-Identifier: Apache-2.0
//! An update of a pod, and what the answers of its process mean.

use super::Pods;
use crate::serve::client::{Failure, update};
use crate::serve::pod::Pod;
use magnetar_core::error::{Code, Error, Result};

impl Pods {
    /// Passes an update of a pod on to its process.
    ///
    /// # Errors
    /// As [`ask`](Self::ask); `FailedPrecondition` if the process is of a version that cannot.
    pub async fn update(&self, pod: &Pod, payload: Vec<u8>) -> Result<()> {
        if !pod.dir.exists()? {
            return Err(pod.missing());
        }
        match update(&pod.dir, payload).await {
            // The process does not have this call. containerd would take this answer for an update
            // that is done.
            Err(Failure::Answered(error)) if error.code() == Code::Unimplemented => {
                let id = &pod.id;
                Err(Error::precondition(format!(
                    "the process of pod {id} is of an earlier version, which cannot resize it: make the pod anew"
                )))
            }
            outcome => self.answered(pod, outcome).await,
        }
    }

    /// The answer itself, or why there is none.
    pub(super) async fn answered<T>(&self, pod: &Pod, outcome: Result<T, Failure>) -> Result<T> {
        match outcome {
            Ok(response) => Ok(response),
            Err(Failure::Answered(error)) => Err(error),
            Err(Failure::Broken(error)) => {
                self.settle(pod, error).await?;
                Err(Error::not_found(format!("sandbox {} is gone: its process has ended", pod.id)))
            }
        }
    }
}
