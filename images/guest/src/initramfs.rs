// SPDX-License-Identifier: Apache-2.0
//! What an initramfs holds: the guest's first program as /init, modules in /modules and
//! /modules/later, directories to mount on, and the two devices that a first program has before it
//! mounts any.

use crate::cpio::Archive;
use anyhow::{Context, Result};
use std::fs;
use std::io::Write;
use std::path::Path;

/// The directory of modules that are loaded when the kernel asks for them.
const LATER: &str = "later";

/// Writes an initramfs with `init`, the modules `modules/*.ko` and all files of `modules/later`, if
/// there are any.
///
/// # Errors
/// Where a file cannot be read, or the initramfs cannot be written.
pub fn write(init: &Path, modules: &Path, to: impl Write) -> Result<()> {
    let mut archive = Archive::new(to);
    for name in ["dev", "proc", "run", "sys", "modules", "modules/later"] {
        archive.directory(name, 0o755)?;
    }
    archive.directory("tmp", 0o1777)?;
    // The kernel opens /dev/console as the first program's standard input and outputs, if it is
    // there.
    archive.device("dev/console", 0o600, 5, 1)?;
    archive.device("dev/null", 0o666, 1, 3)?;
    archive.file("init", 0o755, &crate::read(init)?)?;
    for name in names(modules)?.iter().filter(|name| name.ends_with(".ko")) {
        archive.file(&format!("modules/{name}"), 0o644, &crate::read(&modules.join(name))?)?;
    }
    let later = modules.join(LATER);
    // A kernel with everything built in has none.
    for name in if later.exists() { names(&later)? } else { Vec::new() } {
        archive.file(&format!("modules/{LATER}/{name}"), 0o644, &crate::read(&later.join(&name))?)?;
    }
    archive.finish()?;
    Ok(())
}

/// The names in a directory, sorted: the order in which a directory lists them is any.
fn names(directory: &Path) -> Result<Vec<String>> {
    let what = || format!("cannot list {}", directory.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).with_context(what)? {
        let name = entry.with_context(what)?.file_name();
        names.push(name.into_string().map_err(|name| anyhow::anyhow!("{}: {name:?} is not UTF-8", what()))?);
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;

    fn names_in(archive: &[u8]) -> Vec<String> {
        let (mut rest, mut names) = (archive, Vec::new());
        loop {
            let reader = Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return names;
            }
            names.push(reader.entry().name().to_owned());
            rest = reader.finish().unwrap();
        }
    }

    #[test]
    fn it_holds_init_and_modules_in_order_and_is_the_same_every_time() {
        let dir = tempfile::tempdir().unwrap();
        let (init, modules) = (dir.path().join("agent"), dir.path().join("modules"));
        fs::create_dir_all(modules.join(LATER)).unwrap();
        // Not in the order of their names.
        for file in ["agent", "modules/101-b.ko", "modules/100-c.ko", "modules/note", "modules/later/z.ko.xz", "modules/later/aliases"] {
            fs::write(dir.path().join(file), file).unwrap();
        }
        let (mut once, mut again) = (Vec::new(), Vec::new());
        write(&init, &modules, &mut once).unwrap();
        write(&init, &modules, &mut again).unwrap();
        assert!(once == again);
        assert_eq!(
            names_in(&once)[9..],
            ["init", "modules/100-c.ko", "modules/101-b.ko", "modules/later/aliases", "modules/later/z.ko.xz"]
        );
        assert!(once.windows("modules/101-b.ko".len()).any(|window| window == b"modules/101-b.ko"));
    }

    #[test]
    fn without_modules_there_is_the_program_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (init, modules) = (dir.path().join("agent"), dir.path().join("modules"));
        fs::write(&init, "agent").unwrap();
        let error = write(&init, &modules, Vec::new()).unwrap_err().to_string();
        assert!(error.contains("cannot list"), "{error}");
        fs::create_dir(&modules).unwrap();
        let mut archive = Vec::new();
        write(&init, &modules, &mut archive).unwrap();
        assert_eq!(names_in(&archive)[9..], ["init"]);
    }
}
