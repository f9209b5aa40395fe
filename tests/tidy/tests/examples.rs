// SPDX-License-Identifier: Apache-2.0
//! The files that users apply can be parsed: examples, and the configuration that is installed.
//! What their keys mean is tested where they are read: handlers' options in `shim` and `vmm`.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use saphyr_parser::{Event, Parser};
use tidy::{Text, Tree};

const HANDLERS: &str = "shim/etc/containerd/conf.d/magnetar.toml";

/// The files of these folders whose names end so; there must be some.
fn files<'a>(tree: &'a Tree, extension: &str) -> Result<Vec<&'a Text>> {
    let ours = |file: &&Text| ["examples", "images/llm", "shim/etc"].iter().any(|folder| file.path.starts_with(folder));
    let files: Vec<_> = tree.files.iter().filter(ours).filter(|file| file.path.extension().is_some_and(|e| e == extension)).collect();
    ensure!(!files.is_empty(), "there is no file named *.{extension}");
    Ok(files)
}

/// The scalars of a file in YAML, in their order.
fn scalars(file: &Text) -> Result<Vec<String>> {
    let mut scalars = Vec::new();
    for event in Parser::new_from_str(&file.content) {
        if let (Event::Scalar(value, ..), _) = event.with_context(|| file.path.display().to_string())? {
            scalars.push(value.into_owned());
        }
    }
    Ok(scalars)
}

#[test]
fn toml_files_parse() -> Result<()> {
    for file in files(&Tree::read()?, "toml")? {
        toml::from_str::<toml::Table>(&file.content).with_context(|| file.path.display().to_string())?;
    }
    Ok(())
}

#[test]
fn json_files_parse() -> Result<()> {
    for file in files(&Tree::read()?, "json")? {
        serde_json::from_str::<serde_json::Value>(&file.content).with_context(|| file.path.display().to_string())?;
    }
    Ok(())
}

#[test]
fn yaml_files_parse_and_name_handlers_that_are_configured() -> Result<()> {
    let tree = Tree::read()?;
    let handlers = tree.files.iter().find(|file| file.path == Path::new(HANDLERS)).context(HANDLERS)?;
    for file in files(&tree, "yaml")? {
        let scalars = scalars(file)?;
        let named: Vec<_> = scalars.windows(2).filter(|pair| pair[0] == "handler" || pair[0] == "runtimeClassName").collect();
        // A file without containers, as one with a service, needs none.
        let has_containers = scalars.iter().any(|scalar| scalar == "containers");
        ensure!(!named.is_empty() || !has_containers, "{} names no handler", file.path.display());
        for pair in named {
            let table = format!(".containerd.runtimes.{}]", pair[1]);
            ensure!(handlers.content.contains(&table), "{}: {HANDLERS} has no handler {}", file.path.display(), pair[1]);
        }
    }
    Ok(())
}
