// SPDX-License-Identifier: Apache-2.0
//! Files of the node that one handler's containers get. Each handler has its own, so that none sees
//! what another has changed.

use std::{cell::RefCell, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use magnetar_e2e::Scratch;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A folder of the node with what was made in it; all of it is gone with this value.
pub struct Files {
    mounted: RefCell<Vec<PathBuf>>,
    scratch: Scratch,
}

impl Files {
    pub fn new() -> Result<Self> {
        Ok(Self { mounted: RefCell::default(), scratch: Scratch::new()? })
    }

    /// The path of a file or folder, whether it is there or not.
    pub fn path(&self, name: &str) -> String {
        self.scratch.join(name)
    }

    /// Makes a folder, with those above it.
    pub fn dir(&self, name: &str) -> Result<String> {
        let path = self.path(name);
        fs::create_dir_all(&path).with_context(|| path.clone())?;
        Ok(path)
    }

    /// Makes a file with one line, and the folders above it.
    pub fn file(&self, name: &str, line: &str) -> Result<String> {
        let path = PathBuf::from(self.path(name));
        if let Some(above) = path.parent() {
            fs::create_dir_all(above)?;
        }
        fs::write(&path, format!("{line}\n")).with_context(|| path.display().to_string())?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Makes a folder with the file `word` in it.
    pub fn volume(&self, name: &str) -> Result<String> {
        self.file(&format!("{name}/word"), "here")?;
        Ok(self.path(name))
    }

    /// Makes a folder that a file system of its own is mounted on.
    pub fn tmpfs(&self, name: &str, flags: MsFlags) -> Result<String> {
        let path = self.dir(name)?;
        mount(Some("tmpfs"), path.as_str(), Some("tmpfs"), flags, Some("mode=755")).with_context(|| path.clone())?;
        self.mounted.borrow_mut().push(PathBuf::from(&path));
        Ok(path)
    }

    /// The text without the path of these files.
    pub fn without_path(&self, text: &str) -> String {
        text.replace(self.scratch.path().to_string_lossy().as_ref(), "<files>")
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for path in self.mounted.borrow().iter().rev() {
            // What stays mounted is found by the leak check.
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
}
