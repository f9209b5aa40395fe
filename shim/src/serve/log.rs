// SPDX-License-Identifier: Apache-2.0
//! Sets up the log of `serve`. It goes to standard error; the journal adds time and unit.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;

/// Libraries that log every frame at the level at which we log every call.
const CHATTY: [&str; 4] = ["h2", "hyper", "hyper_util", "tower"];

/// Starts logging. A second call changes nothing.
pub fn start(level: LevelFilter) {
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        // Otherwise, when a line cannot be written (the journal restarts), the library reports that
        // on the same standard error, which fails again and panics.
        .log_internal_errors(false);
    let quiet = CHATTY.map(|library| (library, LevelFilter::WARN));
    let filter = Targets::new().with_default(level).with_targets(quiet);
    // An error means that logging was started before.
    let _started_before = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(filter).with(lines));
}
