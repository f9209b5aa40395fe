// SPDX-License-Identifier: Apache-2.0
//! Formats the report as a table for people.

use super::{Finding, Report, State};
use std::fmt::Write;

/// Spaces between columns.
const GAP: usize = 2;

/// The whole report as text.
pub fn render(report: &Report) -> String {
    let findings = || report.sections.iter().flat_map(|section| &section.findings);
    let name = findings().map(|finding| finding.name.chars().count()).max().unwrap_or(0) + GAP;
    let mut text = String::new();
    for section in &report.sections {
        // Each section has its own column width, so one long line does not widen all sections.
        let found = section.findings.iter().map(|finding| finding.found.chars().count()).max().unwrap_or(0) + GAP;
        line(&mut text, section.title);
        for finding in &section.findings {
            line(&mut text, &row(finding, name, found));
        }
        line(&mut text, "");
    }
    if report.usable.is_empty() {
        line(&mut text, "No kind of sandbox can be used on this host.");
    } else {
        line(&mut text, &format!("Kinds that can be used on this host: {}.", report.usable.join(", ")));
    }
    for obstacle in &report.obstacles {
        line(&mut text, &format!("No pods of kind runc: {obstacle}."));
    }
    text
}

fn row(finding: &Finding, name: usize, found: usize) -> String {
    let state = match finding.state {
        State::Yes => "yes",
        State::Partly => "partly",
        State::No => "no",
    };
    let cost = if finding.cost.is_empty() { String::new() } else { format!("{:<found$}{}", finding.found, finding.cost) };
    let rest = if cost.is_empty() { finding.found.clone() } else { cost };
    format!("  {:<name$}{state:<8}{rest}", finding.name)
}

fn line(text: &mut String, line: &str) {
    // Writing to a string cannot fail.
    let _written = writeln!(text, "{}", line.trim_end());
}

#[cfg(test)]
mod tests {
    use super::super::Section;
    use super::*;

    #[test]
    fn the_table_shows_what_is_missing_and_what_that_costs() {
        let findings = vec![Finding::yes("a", "/bin/a"), Finding::no("longer", "not there", "no b"), Finding::partly("c", "half", "slow")];
        let report = Report { usable: vec!["runc"], obstacles: vec![], sections: vec![Section { title: "things", findings }] };
        let text = render(&report);
        assert_eq!(
            text,
            "things\n  a       yes     /bin/a\n  longer  no      not there  no b\n  c       partly  half       slow\n\n\
             Kinds that can be used on this host: runc.\n"
        );
        let report = Report { usable: vec![], obstacles: vec!["this is not root".into()], sections: vec![] };
        assert!(render(&report).contains("No pods of kind runc: this is not root."));
    }
}
