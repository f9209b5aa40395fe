// SPDX-License-Identifier: Apache-2.0
//! Reads the files of the checkout: those in git and those that could be added, but none that git
//! ignores.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// One text file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The path below the root of the checkout.
    pub path: PathBuf,
    /// The whole text.
    pub content: String,
}

/// All files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// Those that are text, sorted by path.
    pub files: Vec<Text>,
    /// The paths of all, pictures among them.
    pub paths: Vec<PathBuf>,
}

impl Tree {
    /// Reads the checkout that this crate is in.
    pub fn read() -> Result<Self> {
        let root = root();
        let output = Command::new("git")
            .arg("-C")
            .arg(&root)
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .output()
            .context("git")?;
        ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
        let names = String::from_utf8(output.stdout).context("a file's name")?;
        let paths: Vec<_> = names.split_terminator('\0').map(PathBuf::from).filter(|path| root.join(path).exists()).collect();
        let mut files: Vec<_> = paths.iter().filter_map(|path| read(&root, path)).collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        ensure!(!files.is_empty(), "no files in {}", root.display());
        Ok(Self { files, paths })
    }

    /// The Rust sources.
    pub fn rust(&self) -> impl Iterator<Item = &Text> {
        self.files.iter().filter(|file| file.path.extension().is_some_and(|e| e == "rs"))
    }

    /// The manifests of the workspace's members, not that of the workspace.
    pub fn manifests(&self) -> impl Iterator<Item = &Text> {
        self.files.iter().filter(|file| file.path.ends_with("Cargo.toml") && file.path.components().count() > 1)
    }
}

/// The root of the checkout.
pub fn root() -> PathBuf {
    // This crate is two levels below it.
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).map(Path::to_owned).unwrap_or_default()
}

/// `None` for a file that is not text, is a link, or was deleted without git knowing it yet.
fn read(root: &Path, path: &Path) -> Option<Text> {
    let file = root.join(path);
    if !file.symlink_metadata().ok()?.is_file() {
        return None;
    }
    Some(Text { path: path.to_owned(), content: fs::read_to_string(file).ok()? })
}
