// SPDX-License-Identifier: Apache-2.0
//! The program with small modules: what becomes a component, and what is said of the others.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use wasmparser::{Parser, Payload, Validator, WasmFeatures};

/// Runs the program on a module: the component, or what it has complained of.
fn componentize(module: &[u8]) -> Result<Result<Vec<u8>, String>> {
    let folder = tempfile::tempdir()?;
    let (from, to) = (folder.path().join("module.wasm"), folder.path().join("component.wasm"));
    fs::write(&from, module)?;
    let output = Command::new(env!("CARGO_BIN_EXE_componentize")).args([&from, &to]).output()?;
    let said = String::from_utf8(output.stderr)?;
    if output.status.success() {
        ensure!(said.is_empty(), "{said}");
        return Ok(Ok(fs::read(&to)?));
    }
    ensure!(!to.exists(), "a component was written all the same");
    Ok(Err(said))
}

/// The names of what a component imports and exports; it must be valid.
fn names(component: &[u8]) -> Result<(Vec<String>, Vec<String>)> {
    Validator::new_with_features(WasmFeatures::all()).validate_all(component)?;
    let (mut imports, mut exports, mut depth) = (Vec::new(), Vec::new(), 0);
    for payload in Parser::new(0).parse_all(component) {
        match payload? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    imports.push(import?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    exports.push(export?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok((imports, exports))
}

#[test]
fn a_program_of_preview_1_becomes_a_command_of_wasi_0_2() -> Result<()> {
    let module = wat::parse_str(
        r#"(module
             (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
             (memory (export "memory") 1)
             (func (export "_start")))"#,
    )?;
    let component = componentize(&module)?.map_err(anyhow::Error::msg)?;
    let (imports, exports) = names(&component)?;
    ensure!(exports.len() == 1 && exports[0].starts_with("wasi:cli/run@0.2."), "{exports:?}");
    ensure!(imports.iter().any(|name| name.starts_with("wasi:cli/stdout@0.2.")), "{imports:?}");
    // Once more is once too often.
    let said = componentize(&component)?.err().context("a component was taken for a module")?;
    ensure!(said.contains("module.wasm: "), "{said}");
    Ok(())
}

#[test]
fn an_import_that_nobody_has_is_named() -> Result<()> {
    let module = wat::parse_str(r#"(module (import "nonesuch" "call" (func)) (memory (export "memory") 1) (func (export "_start")))"#)?;
    let said = componentize(&module)?.err().context("it became a component")?;
    ensure!(said.contains("module.wasm: cannot become a component") && said.contains("nonesuch"), "{said}");
    Ok(())
}

#[test]
fn what_is_no_module_is_refused() -> Result<()> {
    let said = componentize(b"no module")?.err().context("it became a component")?;
    ensure!(said.contains("module.wasm: "), "{said}");
    Ok(())
}
