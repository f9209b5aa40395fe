// SPDX-License-Identifier: Apache-2.0
//! (being written)

/// (being written)
pub fn run(_json: bool, _libexec: Option<std::path::PathBuf>) -> anyhow::Result<std::process::ExitCode> {
    Ok(std::process::ExitCode::SUCCESS)
}
