// SPDX-License-Identifier: Apache-2.0
//! Numbers about the server, in Prometheus' text format.

use crate::engine::Usage;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// The limits of the histogram of seconds to the first token.
const LIMITS: [f64; 10] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// The numbers.
#[derive(Debug, Default)]
pub struct Metrics {
    requests: BTreeMap<(&'static str, u16), u64>,
    usage: Usage,
    first: [u64; LIMITS.len()],
    first_count: u64,
    first_sum: f64,
}

impl Metrics {
    /// Counts a request that was answered.
    pub fn request(&mut self, endpoint: &'static str, status: u16) {
        *self.requests.entry((endpoint, status)).or_default() += 1;
    }

    /// Counts tokens.
    pub fn tokens(&mut self, usage: Usage) {
        self.usage.input += usage.input;
        self.usage.output += usage.output;
    }

    /// Counts how long a client has waited for its first token.
    pub fn first_token(&mut self, after: Duration) {
        let seconds = after.as_secs_f64();
        for (limit, count) in LIMITS.iter().zip(&mut self.first) {
            *count += u64::from(seconds <= *limit);
        }
        self.first_count += 1;
        self.first_sum += seconds;
    }

    /// Writes them all.
    pub fn text(&self, active: usize, waiting: usize) -> String {
        let mut text = String::new();
        let mut say = |line: std::fmt::Arguments<'_>| {
            // Writing to a text cannot fail.
            let _done = writeln!(text, "{line}");
        };
        let help = |name: &str, kind: &str, what: &str| format!("# HELP {name} {what}\n# TYPE {name} {kind}");
        say(format_args!("{}", help("llm_requests_total", "counter", "Requests; of status 499, the client has left before its answer.")));
        for ((endpoint, status), count) in &self.requests {
            say(format_args!("llm_requests_total{{endpoint=\"{endpoint}\",status=\"{status}\"}} {count}"));
        }
        say(format_args!("{}", help("llm_prompt_tokens_total", "counter", "Tokens of prompts.")));
        say(format_args!("llm_prompt_tokens_total {}", self.usage.input));
        say(format_args!("{}", help("llm_generated_tokens_total", "counter", "Tokens of answers.")));
        say(format_args!("llm_generated_tokens_total {}", self.usage.output));
        say(format_args!("{}", help("llm_active_generations", "gauge", "Requests that are being answered.")));
        say(format_args!("llm_active_generations {active}"));
        say(format_args!("{}", help("llm_waiting_requests", "gauge", "Requests that wait for others.")));
        say(format_args!("llm_waiting_requests {waiting}"));
        let name = "llm_time_to_first_token_seconds";
        say(format_args!("{}", help(name, "histogram", "From a request to the first piece of its answer.")));
        for (limit, count) in LIMITS.iter().zip(&self.first) {
            say(format_args!("{name}_bucket{{le=\"{limit}\"}} {count}"));
        }
        say(format_args!("{name}_bucket{{le=\"+Inf\"}} {}", self.first_count));
        say(format_args!("{name}_sum {}\n{name}_count {}", self.first_sum, self.first_count));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_prometheus() {
        let mut metrics = Metrics::default();
        metrics.request("/health", 200);
        metrics.request("/health", 200);
        metrics.tokens(Usage { input: 5, output: 7 });
        metrics.first_token(Duration::from_millis(30));
        let text = metrics.text(1, 2);
        for line in [
            "llm_requests_total{endpoint=\"/health\",status=\"200\"} 2",
            "llm_prompt_tokens_total 5",
            "llm_generated_tokens_total 7",
            "llm_active_generations 1",
            "llm_waiting_requests 2",
            "llm_time_to_first_token_seconds_bucket{le=\"0.025\"} 0",
            "llm_time_to_first_token_seconds_bucket{le=\"0.05\"} 1",
            "llm_time_to_first_token_seconds_bucket{le=\"+Inf\"} 1",
            "llm_time_to_first_token_seconds_count 1",
            "# TYPE llm_requests_total counter",
        ] {
            assert!(text.lines().any(|written| written == line), "{line} in {text}");
        }
    }
}
