// SPDX-License-Identifier: Apache-2.0
//! Logs go to standard error, one line each: the journal, or containerd's, adds the rest.

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
    // An error means that somebody has started logging before.
    let _started_before = tracing::subscriber::set_global_default(subscriber);
}
