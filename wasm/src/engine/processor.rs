// SPDX-License-Identifier: Apache-2.0
//! The processors of the node, for which code is compiled.

use magnetar_core::error::{Context, Result};
use std::fs::File;
use std::io::Read as _;

/// A description of this node's processors, for which code is compiled: of the first one's kind and
/// abilities (proc_cpuinfo(5)). Nothing that changes while the node runs.
///
/// # Errors
/// The kernel's error.
pub fn abilities() -> Result<String> {
    const NAMES: [&str; 10] = [
        "vendor_id",
        "cpu family",
        "model",
        "stepping",
        "flags",
        "CPU implementer",
        "CPU architecture",
        "CPU variant",
        "CPU part",
        "Features",
    ];
    let what = || "cannot see which processors the node has".to_string();
    let mut text = String::new();
    // A node may have hundreds, and the first one's lines are a fraction of this.
    File::open("/proc/cpuinfo").context(what)?.take(8 << 10).read_to_string(&mut text).context(what)?;
    let first = text.split("\n\n").next().unwrap_or_default();
    let lines = first.lines().filter(|line| line.split_once(':').is_some_and(|(name, _)| NAMES.contains(&name.trim())));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}
