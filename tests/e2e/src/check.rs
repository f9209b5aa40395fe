// SPDX-License-Identifier: Apache-2.0
//! Small checks that tests are written in.

use std::{fmt::Debug, time::Duration};

use anyhow::{Result, bail};
use tokio::time::Instant;

const LOOK: Duration = Duration::from_millis(50);

/// Waits until `look` gives `Ok(Some(_))` and returns that. `what` is said when it does not.
pub async fn eventually<T>(what: &str, within: Duration, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + within;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if Instant::now() > end {
            bail!("not within {within:?}: {what}");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Fails as soon as `holds` is not true during `time`. `what` is what should hold.
pub async fn steady(what: &str, time: Duration, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if !holds().await? {
            bail!("no longer true: {what}");
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// The answer must be an error of containerd whose message contains all of `words`; returns the
/// message. An answer that just does not come is not a refusal.
pub fn refused<T: Debug>(answer: magnetar_cri::Result<T>, words: &[&str]) -> Result<String> {
    match answer {
        Ok(value) => bail!("was not refused: {value:?}"),
        Err(error @ magnetar_cri::Error::Call { .. }) => {
            let message = error.message();
            match words.iter().find(|&&word| !message.contains(word)) {
                Some(word) => bail!("the refusal does not say {word:?}: {message}"),
                None => Ok(message.to_owned()),
            }
        }
        Err(other) => Err(other.into()),
    }
}
