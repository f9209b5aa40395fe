// SPDX-License-Identifier: Apache-2.0
//! Sets up logging to standard error, one line for each message. The journal or containerd's log
//! adds the rest.

use crate::config::LogLevel;
use tracing::level_filters::LevelFilter;

/// Starts logging. A second call changes nothing.
pub fn start(level: LogLevel) {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let subscriber =
        tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_ansi(false).with_target(false).finish();
    // An error means that logging was started before.
    let _started_before = tracing::subscriber::set_global_default(subscriber);
}
