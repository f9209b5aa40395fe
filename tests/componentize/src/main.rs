// SPDX-License-Identifier: Apache-2.0
//! `componentize MODULE COMPONENT` makes a component of a core module: what wasm-component-ld does
//! in toolchains that have it. Debian's rustc comes without.
//!
//! ```text
//!   module ──imports WASI preview 1?──> adapter: preview 1 in terms of WASI 0.2
//!     │                                   │
//!     └── what it says of its world ──> wit-component ──> component, validated
//! ```
//!
//! A module for wasm32-wasip1 needs an adapter, and one for wasm32-wasip2 none. The adapter is that
//! of the Wasmtime that Magnetar has. Deliberately absent: linking, which is done before.

use std::{env, fs, path::Path, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use wasi_preview1_component_adapter_provider as adapters;
use wasmparser::{Parser, Payload};
use wit_component::ComponentEncoder;

/// The function that the loader of a command calls.
const START: &str = "_start";

fn main() -> ExitCode {
    let words: Vec<_> = env::args_os().skip(1).collect();
    let [module, component] = words.as_slice() else {
        eprintln!("usage: componentize MODULE COMPONENT");
        return ExitCode::from(2);
    };
    match convert(module.as_ref(), component.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("componentize: {}: {error:#}", Path::new(module).display());
            ExitCode::FAILURE
        }
    }
}

fn convert(from: &Path, to: &Path) -> Result<()> {
    let module = fs::read(from).context("cannot be read")?;
    let mut encoder = ComponentEncoder::default().validate(true).module(&module).context("cannot become a component")?;
    if let Some(adapter) = Interface::of(&module)?.adapter() {
        encoder = encoder.adapter(adapters::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, adapter).context("WASI's adapter is not accepted")?;
    }
    let component = encoder.encode().context("cannot become a component")?;
    fs::write(to, component).with_context(|| format!("{} cannot be written", to.display()))
}

/// What decides on the adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Interface {
    imports_preview1: bool,
    is_command: bool,
}

impl Interface {
    fn of(module: &[u8]) -> Result<Self> {
        let mut found = Self::default();
        for payload in Parser::new(0).parse_all(module) {
            match payload? {
                Payload::ComponentSection { .. } => bail!("it is a component already"),
                Payload::ImportSection(imports) => {
                    for import in imports.into_imports() {
                        found.imports_preview1 |= import?.module == adapters::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME;
                    }
                }
                Payload::ExportSection(exports) => {
                    for export in exports {
                        found.is_command |= export?.name == START;
                    }
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// The command's adapter exports `wasi:cli/run`, which calls the module's `_start`. Other
    /// modules have exports of their own.
    fn adapter(self) -> Option<&'static [u8]> {
        match (self.imports_preview1, self.is_command) {
            (false, _) => None,
            (true, true) => Some(adapters::WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER),
            (true, false) => Some(adapters::WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER),
        }
    }
}
