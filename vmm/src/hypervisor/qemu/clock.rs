// SPDX-License-Identifier: Apache-2.0
//! Measures the rate of the guest's time stamp counter. In emulation it is the host's counter.
//!
//! Otherwise the guest's kernel measures it against the emulated timer for some milliseconds. That
//! fails on a busy host. The kernel then uses a clock that is slow to read or, if the machine has
//! none, one that only counts ticks of 4 ms. This process has more time to measure: from its own
//! start to the machine's.

use magnetar_sys::counter;
use std::time::{Duration, Instant};

/// The least time between the two samples. With less, the time that sampling takes would distort
/// the result.
const MIN_INTERVAL: Duration = Duration::from_millis(20);

/// A measurement that has begun.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Sample);

/// Time and counter at the same moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    count: u64,
}

impl Clock {
    /// Begins to measure. `None` if this processor has no such counter.
    pub fn begin() -> Option<Self> {
        sample().map(Self)
    }

    /// The counter's rate in kHz. Waits at most 20 ms, if the measurement has just begun.
    pub fn khz(self) -> Option<u64> {
        std::thread::sleep(MIN_INTERVAL.saturating_sub(self.0.at.elapsed()));
        let now = sample()?;
        rate(now.count.checked_sub(self.0.count)?, now.at.duration_since(self.0.at))
    }
}

/// The best of several samples: this process may have been interrupted between reading clock and
/// counter.
fn sample() -> Option<Sample> {
    let mut best: Option<(Duration, Sample)> = None;
    for _ in 0..8 {
        let at = Instant::now();
        let count = counter::now()?;
        let took = at.elapsed();
        if best.is_none_or(|(least, _)| took < least) {
            best = Some((took, Sample { at, count }));
        }
    }
    best.map(|(_, sample)| sample)
}

fn rate(ticks: u64, time: Duration) -> Option<u64> {
    let khz = u128::from(ticks) * 1_000_000 / time.as_nanos().max(1);
    u64::try_from(khz).ok().filter(|khz| *khz > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_ticks_per_millisecond() {
        assert_eq!(rate(52_000_000, Duration::from_millis(20)), Some(2_600_000));
        assert_eq!(rate(0, Duration::from_millis(20)), None);
        assert_eq!(rate(1 << 62, Duration::from_secs(1 << 30)), Some((1 << 62) / (1000 << 30)));
    }

    #[test]
    fn two_measurements_agree() {
        let Some(clock) = Clock::begin() else { return };
        let (one, two) = (clock.khz().unwrap(), clock.khz().unwrap());
        assert!(one.abs_diff(two) < one / 1000, "{one} {two}");
    }
}
