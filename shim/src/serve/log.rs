// SPDX-License-Identifier: Apache-2.0
//! What `serve` logs, to standard error: the journal adds the rest.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;

/// Libraries that tell of every frame at the level at which we tell of every call.
const CHATTY: [&str; 4] = ["h2", "hyper", "hyper_util", "tower"];

/// Starts logging. A second call changes nothing.
pub fn start(level: LevelFilter) {
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        // Otherwise a line that cannot be written (the journal is being restarted) is complained about
        // on the same standard error, and that failure is a panic.
        .log_internal_errors(false);
    let quiet = CHATTY.map(|library| (library, LevelFilter::WARN));
    let filter = Targets::new().with_default(level).with_targets(quiet);
    // An error means that somebody has started logging before.
    let _started_before = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(filter).with(lines));
}
