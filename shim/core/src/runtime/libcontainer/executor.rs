// SPDX-License-Identifier: Apache-2.0
//! The last step: the process becomes the user's program.
//!
//! Looks the program up before the container counts as created, so that a missing one is an error of
//! Create with its name in it. An `execve` that fails is a program that ends with 255 and a line.

use super::{Images, label, report};
use crate::error::{Code, Error, Result};
use libcontainer::oci_spec::runtime::{Process, Spec};
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, access, execve, faccessat};
use serde_json::Value;
use std::collections::HashMap;
use std::ffi::CString;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Where programs are looked for in a container whose environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How a file ends that may be executed and that the kernel does not execute.
const NO_PROGRAM: i32 = 255;

/// What the process of a container becomes.
pub trait Program: Executor + Clone + 'static {
    /// Looks at the container on the host before it is made: at its specification, which it may change, and at the bundle,
    /// whose root is mounted. Its image can be asked for at `images`.
    ///
    /// # Errors
    /// Why there can be no such container.
    fn prepare(&mut self, spec: &mut Value, bundle: &Path, images: Option<&Images>) -> Result<()>;
}

/// Runs native programs.
#[derive(Debug, Clone, Default)]
pub struct Native;

impl Program for Native {
    fn prepare(&mut self, _: &mut Value, _: &Path, _: Option<&Images>) -> Result<()> {
        Ok(())
    }
}

impl Executor for Native {
    fn validate(&self, spec: &Spec) -> std::result::Result<(), ExecutorValidationError> {
        look_for_program(spec).map_err(|error| {
            report::failed(error.clone());
            ExecutorValidationError::ArgValidationError(error.to_string())
        })
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> std::result::Result<(), ExecutorSetEnvsError> {
        // The environment goes with execve; ours was empty from the start.
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> std::result::Result<(), ExecutorError> {
        let Err(error) = process(spec).and_then(run);
        report::failed(error.clone());
        Err(ExecutorError::Other(error.to_string()))
    }
}

/// Looks for a container's program, from inside of the container.
///
/// # Errors
/// `NotFound` or `PermissionDenied`, with the program's name.
pub fn look_for_program(spec: &Spec) -> Result<()> {
    process(spec).and_then(find).map(drop)
}

fn process(spec: &Spec) -> Result<&Process> {
    spec.process().as_ref().ok_or_else(|| Error::invalid("the specification has no process"))
}

fn run(process: &Process) -> Result<std::convert::Infallible> {
    let program = find(process)?;
    let strings = |texts: &Option<Vec<String>>| -> Result<Vec<CString>> {
        let terminated = |text: &String| CString::new(text.as_str()).map_err(|_| Error::invalid(format!("{text:?} has a zero byte")));
        texts.iter().flatten().map(terminated).collect()
    };
    let path = CString::new(program.as_os_str().as_encoded_bytes()).map_err(|_| Error::invalid("the program's name has a zero byte"))?;
    let (args, env) = (strings(process.args())?, strings(process.env())?);
    label::for_next_program(process.selinux_label().as_deref())?;
    let Err(errno) = execve(&path, &args, &env);
    // A script without `#!` or whose interpreter is missing, a program for another processor, more arguments than there may be. As
    // with runc, it counts as a program that has run and has ended so.
    report::program_runs();
    let _unheard = writeln!(std::io::stderr(), "exec {}: {}", program.display(), errno.desc().to_lowercase());
    std::process::exit(NO_PROGRAM);
}

/// The program's path, as a shell finds it.
fn find(process: &Process) -> Result<PathBuf> {
    let name = process.args().as_ref().and_then(|args| args.first()).map(String::as_str);
    let name = name.ok_or_else(|| Error::invalid("no program was given: there are no arguments"))?;
    if name.is_empty() {
        return Err(Error::invalid("cannot run \"\": a program without a name is not looked for in $PATH"));
    }
    let mut worst = Errno::ENOENT;
    for candidate in candidates(name, process.env().iter().flatten().map(String::as_str)) {
        match may_execute(&candidate) {
            // A PATH with such an element runs whatever somebody has left in a working directory.
            Ok(()) if !candidate.is_dir() && !candidate.is_absolute() && !name.contains('/') => {
                return Err(Error::invalid(format!("cannot run {name:?}: it was found only in the working directory, by PATH")));
            }
            Ok(()) if !candidate.is_dir() => return Ok(candidate),
            Ok(()) => worst = Errno::EACCES,
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(other) => worst = other,
        }
    }
    Err(failure(Path::new(name), worst))
}

/// Asked with the rights that the process has, and not with those of its real user: it may have been given more.
fn may_execute(program: &Path) -> nix::Result<()> {
    match faccessat(AT_FDCWD, program, AccessFlags::X_OK, AtFlags::AT_EACCESS) {
        // A kernel, or a seccomp filter, that does not know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => access(program, AccessFlags::X_OK),
        asked => asked,
    }
}

/// Where a shell looks for a program, with this environment; what is not absolute is below the working directory.
pub fn candidates<'a>(name: &str, mut env: impl Iterator<Item = &'a str>) -> Vec<PathBuf> {
    if name.contains('/') {
        return vec![name.into()];
    }
    let path = env.find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    // An empty element means the working directory.
    path.split(':').map(|dir| if dir.is_empty() { Path::new(".").join(name) } else { Path::new(dir).join(name) }).collect()
}

fn failure(program: &Path, errno: Errno) -> Error {
    let code = match errno {
        Errno::ENOENT | Errno::ENOTDIR => Code::NotFound,
        Errno::EACCES | Errno::EPERM => Code::PermissionDenied,
        _ => Code::InvalidArgument,
    };
    Error::new(code, format!("cannot run {:?}: {}", program.display().to_string(), errno.desc().to_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use libcontainer::oci_spec::runtime::ProcessBuilder;

    fn find_in(args: &[&str], env: &[&str]) -> Result<PathBuf> {
        let strings = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        find(&ProcessBuilder::default().args(strings(args)).env(strings(env)).build().unwrap())
    }

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/bin/sh", dir.path().join("shell")).unwrap();
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        std::fs::write(dir.path().join("text"), "").unwrap();
        let path = format!("PATH=/nowhere:{}", dir.path().display());
        assert_eq!(find_in(&["shell"], &[&path]).unwrap(), dir.path().join("shell"));
        assert_eq!(find_in(&["/bin/sh"], &[]).unwrap(), Path::new("/bin/sh"));
        assert!(find_in(&["sh"], &[]).is_ok(), "there is a default");
        assert_eq!(find_in(&["folder"], &[&path]).unwrap_err().code(), Code::PermissionDenied);
        let missing = find_in(&["no-such-program"], &[&path]).unwrap_err();
        assert_eq!(missing.code(), Code::NotFound);
        assert!(missing.to_string().contains("no-such-program"), "{missing}");
        assert_eq!(find_in(&[""], &[]).unwrap_err().code(), Code::InvalidArgument);
    }
}
