// SPDX-License-Identifier: Apache-2.0
//! Figures out of samples.

use serde::Serialize;

/// Samples of one thing, in the order they were taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    /// The middle one, or the mean of the two in the middle.
    pub fn median(&self) -> Option<f64> {
        let sorted = self.sorted();
        let upper = *sorted.get(sorted.len() / 2)?;
        if sorted.len() % 2 == 1 {
            return Some(upper);
        }
        let lower = *sorted.get(sorted.len() / 2 - 1)?;
        Some(f64::midpoint(lower, upper))
    }

    /// The smallest that 99 of 100 do not exceed; of fewer than 100 samples that is the largest.
    pub fn p99(&self) -> Option<f64> {
        let sorted = self.sorted();
        let rank = (sorted.len() * 99).div_ceil(100);
        sorted.get(rank.checked_sub(1)?).copied()
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(samples: &[f64], median: Option<f64>, p99: Option<f64>) {
        let samples = Samples(samples.to_vec());
        assert_eq!((samples.median(), samples.p99()), (median, p99));
    }

    #[test]
    fn of_nothing_there_are_no_figures() {
        check(&[], None, None);
    }

    #[test]
    fn order_does_not_matter() {
        check(&[3.0, 1.0, 2.0], Some(2.0), Some(3.0));
        check(&[4.0, 3.0, 1.0, 2.0], Some(2.5), Some(4.0));
        check(&[7.0], Some(7.0), Some(7.0));
    }

    #[test]
    fn p99_leaves_out_one_in_a_hundred() {
        let samples = Samples((1..=200).map(f64::from).collect());
        assert_eq!(samples.p99(), Some(198.0));
    }
}
