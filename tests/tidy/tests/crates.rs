// SPDX-License-Identifier: Apache-2.0
//! Tests `images/crates` on an artificial target folder: which compiled crates it keeps, and what
//! it does with a damaged archive.

use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use walkdir::WalkDir;

/// The number of units, which is more than the least for which an archive is written.
const UNITS: u64 = 30;

/// A target folder and a cache.
struct Machine(TempDir);

impl Machine {
    /// Makes a target folder as cargo leaves it: units of a crate from a registry and of three
    /// crates of the workspace, a program of the workspace, and a file that belongs to no unit.
    fn new() -> Result<Self> {
        let machine = Self(tempfile::tempdir()?);
        for hash in 0..UNITS {
            machine.unit("triple/debug", "anyhow", hash)?;
            machine.unit("release", "anyhow", hash)?;
        }
        for ours in ["magnetar-core", "containerd-shim-magnetar-v2", "tidy"] {
            machine.unit("triple/debug", ours, UNITS)?;
        }
        machine.write("triple/debug/magnetar-runc")?;
        machine.write("triple/debug/deps/libanyhow-00000000000000ff.rlib")?;
        machine.write("CACHEDIR.TAG")?;
        Ok(machine)
    }

    fn target(&self) -> PathBuf {
        self.0.path().join("target")
    }

    fn write(&self, path: &str) -> Result<()> {
        let path = self.target().join(path);
        fs::create_dir_all(path.parent().context("no parent")?)?;
        Ok(fs::write(&path, path.as_os_str().as_encoded_bytes())?)
    }

    /// Makes one unit, with a folder as a build script fills it.
    fn unit(&self, profile: &str, package: &str, hash: u64) -> Result<()> {
        let name = package.replace('-', "_");
        self.write(&format!("{profile}/.fingerprint/{package}-{hash:016x}/lib-{name}"))?;
        self.write(&format!("{profile}/build/{package}-{hash:016x}/out/bindings.rs"))?;
        self.write(&format!("{profile}/deps/lib{name}-{hash:016x}.rlib"))?;
        self.write(&format!("{profile}/deps/{name}-{hash:016x}.d"))
    }

    /// Every file in the target folder, with its time of change.
    fn files(&self) -> Result<Vec<(PathBuf, SystemTime)>> {
        let mut files = Vec::new();
        for entry in WalkDir::new(self.target()).sort_by_file_name() {
            let entry = entry?;
            if entry.file_type().is_file() {
                files.push((entry.path().to_owned(), entry.metadata()?.modified()?));
            }
        }
        Ok(files)
    }

    /// Runs `images/crates`; returns its exit status and its output.
    fn crates(&self, verb: &str) -> Result<(Option<i32>, String)> {
        let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/crates"))
            .arg(verb)
            .env("CARGO_TARGET_DIR", self.target())
            .env("MAGNETAR_CACHE", self.0.path().join("cache"))
            .output()?;
        Ok((output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()))
    }

    fn archives(&self) -> Result<Vec<PathBuf>> {
        let entries = WalkDir::new(self.0.path().join("cache")).into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(entries.into_iter().map(walkdir::DirEntry::into_path).filter(|path| path.extension().is_some_and(|it| it == "zst")).collect())
    }

    fn lose_the_target(&self) -> Result<()> {
        Ok(fs::remove_dir_all(self.target())?)
    }
}

#[test]
fn only_third_party_crates_are_restored() -> Result<()> {
    let machine = Machine::new()?;
    let before = machine.files()?;
    let (status, said) = machine.crates("keep")?;
    ensure!(status == Some(0), "{said}");
    machine.lose_the_target()?;
    let (status, said) = machine.crates("restore")?;
    ensure!(status == Some(0), "{said}");

    let third_party = |path: &Path| {
        let path = path.to_string_lossy();
        path.contains("anyhow") && !path.contains("00ff")
    };
    let tag = machine.target().join("CACHEDIR.TAG");
    let wanted: Vec<_> = before.into_iter().filter(|(path, _)| third_party(path)).collect();
    let got: Vec<_> = machine.files()?.into_iter().filter(|(path, _)| *path != tag).collect();
    assert!(tag.exists());
    for (got, wanted) in got.iter().zip(&wanted) {
        assert_eq!(got, wanted);
    }
    assert_eq!(got.len(), wanted.len());
    // In each of two profiles, four files of each unit.
    assert_eq!(wanted.len() as u64, 2 * 4 * UNITS);
    Ok(())
}

#[test]
fn a_damaged_archive_is_removed_and_reported() -> Result<()> {
    let damages: [fn(&mut Vec<u8>); 2] = [
        |archive| archive.truncate(archive.len() / 2),
        |archive| {
            let middle = archive.len() / 2;
            archive[middle] ^= 1;
        },
    ];
    for damage in damages {
        let machine = Machine::new()?;
        machine.crates("keep")?;
        machine.lose_the_target()?;
        let archives = machine.archives()?;
        let [archive] = archives.as_slice() else { anyhow::bail!("{archives:?}") };
        let mut content = fs::read(archive)?;
        damage(&mut content);
        fs::write(archive, content)?;

        let (status, said) = machine.crates("restore")?;
        assert_eq!(status, Some(0), "{said}");
        assert!(said.contains("is damaged"), "{said}");
        assert!(!machine.target().exists());
        assert!(machine.archives()?.is_empty());
    }
    Ok(())
}

#[test]
fn an_existing_target_folder_is_not_changed() -> Result<()> {
    let machine = Machine::new()?;
    machine.crates("keep")?;
    machine.lose_the_target()?;
    machine.write("CACHEDIR.TAG")?;
    let before = machine.files()?;
    let (status, said) = machine.crates("restore")?;
    assert_eq!((status, said.as_str()), (Some(0), ""));
    assert_eq!(machine.files()?, before);
    Ok(())
}

#[test]
fn an_archive_is_written_again_only_for_many_new_units() -> Result<()> {
    let machine = Machine::new()?;
    machine.crates("keep")?;
    let [ref archive] = machine.archives()?[..] else { anyhow::bail!("not one archive") };
    let first = fs::metadata(archive)?.modified()?;
    let (_, said) = machine.crates("keep")?;
    assert!(said.contains("has them all"), "{said}");
    assert_eq!(fs::metadata(archive)?.modified()?, first);
    for hash in 0..UNITS {
        machine.unit("triple/engine", "anyhow", hash)?;
    }
    let (_, said) = machine.crates("keep")?;
    assert!(said.contains(&format!("{UNITS} units more")), "{said}");
    Ok(())
}

#[test]
fn a_target_folder_of_other_dependencies_is_not_kept() -> Result<()> {
    let machine = Machine::new()?;
    File::options()
        .append(true)
        .open(machine.target().join("CACHEDIR.TAG"))?
        .set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1))?;
    let (status, said) = machine.crates("keep")?;
    assert_eq!(status, Some(77), "{said}");
    assert!(said.contains("older than"), "{said}");
    assert!(machine.archives().map_or(true, |archives| archives.is_empty()));
    Ok(())
}
