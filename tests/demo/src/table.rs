// SPDX-License-Identifier: Apache-2.0
//! The demo's table.

use std::fmt::Write as _;

use anyhow::Result;

use crate::{
    kind::Kind,
    life::{Shown, milliseconds},
};

const HEAD: [&str; 6] = ["KIND", "HANDLER", "READY", "FIRST OUTPUT", "MEMORY", "SAID"];

/// A line for every kind; for one that failed, the reason.
pub fn draw(shown: &[(&Kind, Result<Shown>)]) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(shown.iter().map(|(kind, result)| row(kind, result)));
    let mut widths = [0; HEAD.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::from("\n");
    for row in &rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text.push_str(
        "\nMEMORY is what one more such pod costs beyond its container: the processes that came with it, without their programs.\n\
         That of a virtual machine holds the container too: it is all that the guest has touched so far, with its kernel and caches.\n",
    );
    text
}

fn row(kind: &Kind, result: &Result<Shown>) -> [String; HEAD.len()] {
    let (name, handler) = (kind.name.to_owned(), kind.handler.to_owned());
    match result {
        Ok(shown) => [
            name,
            handler,
            milliseconds(shown.ready),
            milliseconds(shown.first_output),
            format!("{} KiB", shown.management.own / 1024),
            shown.said.clone(),
        ],
        Err(error) => {
            let what = if kind.is_missing(error) { "not on this node" } else { "failed" };
            [name, handler, "-".into(), "-".into(), "-".into(), format!("{what}: {error:#}")]
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use magnetar_observe::Memory;

    use super::*;
    use crate::kind::KINDS;

    #[test]
    fn columns_are_aligned_and_failures_have_their_reason() {
        let good = Shown {
            ready: Duration::from_millis(7),
            first_output: Duration::from_millis(1234),
            management: Memory { own: 80 << 10, ..Memory::default() },
            said: "hello".to_owned(),
        };
        let text = draw(&[(&KINDS[0], Ok(good)), (&KINDS[0], Err(anyhow::anyhow!("no kernel")))]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "KIND  HANDLER        READY  FIRST OUTPUT  MEMORY  SAID");
        assert_eq!(lines[2], "runc  magnetar-runc  7 ms   1234 ms       80 KiB  hello");
        assert_eq!(lines[3], "runc  magnetar-runc  -      -             -       failed: no kernel");
        let clh = KINDS.iter().find(|kind| kind.name == "clh").unwrap();
        for (error, said) in
            [("Cloud Hypervisor needs KVM, but there is none", "not on this node: Cloud"), ("out of memory", "failed: out")]
        {
            let text = draw(&[(clh, Err(anyhow::anyhow!(error).context("the pod did not start")))]);
            let said = said.replace(": ", ": the pod did not start: ");
            assert!(text.contains(&said), "{text}");
        }
    }
}
