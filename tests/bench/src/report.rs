// SPDX-License-Identifier: Apache-2.0
//! What was measured, as a table for people and as data for programs.

use std::{collections::BTreeMap, fmt, fs};

use anyhow::{Context, Result};
use magnetar_cri::v1::VersionResponse;
use serde::Serialize;

use crate::{
    burst::Burst,
    files::Line,
    memory::Usage,
    speed::{Speed, Step},
    statistics::Samples,
};

/// Everything of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// In the order given; the first is what the others are compared with.
    pub handlers: Vec<String>,
    /// Kernel, processors and runtime of the node.
    pub node: BTreeMap<String, String>,
    /// Milliseconds of every call.
    pub speed: Speed,
    /// Memory by handler.
    pub memory: BTreeMap<String, Usage>,
    /// Many pods at once, by handler.
    pub burst: BTreeMap<String, Burst>,
    /// Reading and writing, in the order of the table.
    pub files: Vec<Line>,
}

/// One line of the table.
struct Row {
    what: String,
    unit: &'static str,
    /// By handler: the figure to compare, and the worst that is usual.
    figures: Vec<(Option<f64>, Option<f64>)>,
}

impl Report {
    /// A report without figures.
    pub fn new(handlers: &[String], version: &VersionResponse) -> Result<Self> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's release")?;
        let processors = std::thread::available_parallelism().map_or(0, usize::from);
        let node = BTreeMap::from([
            ("kernel".to_owned(), kernel.trim().to_owned()),
            ("processors".to_owned(), processors.to_string()),
            ("runtime".to_owned(), format!("{} {}", version.runtime_name, version.runtime_version)),
        ]);
        Ok(Self {
            handlers: handlers.to_owned(),
            node,
            speed: Speed::new(),
            memory: BTreeMap::new(),
            burst: BTreeMap::new(),
            files: Vec::new(),
        })
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for step in Step::ALL {
            if let Some(samples) = self.speed.get(&step) {
                rows.push(self.timed(step.name().to_owned(), |handler| samples.get(handler)));
            }
        }
        if let Some(pods) = self.memory.values().map(|usage| usage.pods).next() {
            rows.push(self.sized(format!("management per pod at {pods} pods, USS"), |usage| Some(usage.uss_kib)));
            rows.push(self.sized(format!("management per pod at {pods} pods, PSS"), |usage| Some(usage.pss_kib)));
            rows.push(self.sized(format!("container's process at {pods} pods, USS"), |usage| Some(usage.payload_kib)));
            rows.push(self.sized(format!("memory of the whole node per pod at {pods} pods"), |usage| Some(usage.node_kib)));
        }
        let mut sizes: Vec<_> = self.memory.values().flat_map(|usage| usage.resident.keys().copied()).collect();
        sizes.sort_unstable();
        sizes.dedup();
        for pods in sizes {
            rows.push(self.sized(format!("resident process at {pods} pods, USS"), |usage| usage.resident.get(&pods).map(|&(uss, _)| uss)));
        }
        if let Some(pods) = self.burst.values().map(|burst| burst.pods).next() {
            rows.push(self.timed(format!("{pods} pods at once, up"), |handler| Some(&self.burst.get(handler)?.up)));
            rows.push(self.timed(format!("{pods} pods at once, down"), |handler| Some(&self.burst.get(handler)?.down)));
        }
        for line in &self.files {
            // Of a rate the largest of few rounds tells nothing; a latency's line is a percentile
            // itself.
            let figure = |handler| (line.samples.get(handler).and_then(Samples::median), None);
            rows.push(Row { what: line.what.clone(), unit: line.unit.name(), figures: self.handlers.iter().map(figure).collect() });
        }
        rows
    }

    fn timed<'a>(&self, what: String, samples: impl Fn(&String) -> Option<&'a Samples>) -> Row {
        let figure = |handler| samples(handler).map_or((None, None), |s| (s.median(), s.p99()));
        Row { what, unit: "ms", figures: self.handlers.iter().map(figure).collect() }
    }

    fn sized(&self, what: String, size: impl Fn(&Usage) -> Option<f64>) -> Row {
        let figure = |handler| (self.memory.get(handler).and_then(&size), None);
        Row { what, unit: "KiB", figures: self.handlers.iter().map(figure).collect() }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let about: Vec<_> = self.node.iter().map(|(key, value)| format!("{key} {value}")).collect();
        writeln!(f, "{}\n", about.join(", "))?;
        write!(f, "| {:<42} | unit |", "")?;
        for (n, handler) in self.handlers.iter().enumerate() {
            write!(f, " {:>14} | {:>8} |", handler, "p99")?;
            if n > 0 {
                write!(f, " {:>5} |", "ratio")?;
            }
        }
        write!(f, "\n|{:-<44}|------|", "")?;
        for n in 0..self.handlers.len() {
            write!(f, "{:->15}:|{:->9}:|", "", "")?;
            if n > 0 {
                write!(f, "{:->6}:|", "")?;
            }
        }
        writeln!(f)?;
        for row in self.rows() {
            write!(f, "| {:<42} | {:<4} |", row.what, row.unit)?;
            let base = row.figures.first().and_then(|&(median, _)| median);
            for (n, &(median, p99)) in row.figures.iter().enumerate() {
                write!(f, " {:>14} | {:>8} |", figure(median, 1), figure(p99, 1))?;
                if n > 0 {
                    let ratio = median.zip(base).map(|(median, base)| median / base);
                    let digits = if ratio.is_some_and(|ratio| ratio < 0.1) { 3 } else { 2 };
                    write!(f, " {:>5} |", figure(ratio, digits))?;
                }
            }
            writeln!(f)?;
        }
        for (handler, usage) in &self.memory {
            let processes: Vec<_> = usage.processes.iter().map(|(name, count)| format!("{count:.2} × {name}")).collect();
            writeln!(f, "\nmanagement of one pod on {handler}: {}", processes.join(", "))?;
        }
        Ok(())
    }
}

fn figure(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_compares_with_the_first_handler() {
        let mut report = Report::new(&["a".to_owned(), "b".to_owned()], &VersionResponse::default()).unwrap();
        let mut of = |handler: &str, milliseconds: f64| {
            let samples = report.speed.entry(Step::ExecSync).or_default().entry(handler.to_owned()).or_default();
            samples.push(milliseconds);
        };
        of("a", 80.0);
        of("b", 20.0);
        let text = report.to_string();
        let line = text.lines().find(|line| line.contains("ExecSync")).unwrap();
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        assert_eq!(cells, ["", "ExecSync", "ms", "80.0", "80.0", "20.0", "20.0", "0.25", ""]);
    }

    #[test]
    fn what_was_not_measured_is_a_dash() {
        assert_eq!(figure(None, 1), "-");
    }
}
