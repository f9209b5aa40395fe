// SPDX-License-Identifier: Apache-2.0
//! The last step: the process becomes the user's program.
//!
//! The program is searched before the container counts as created, so that Create fails with the
//! name of a missing program. A failed `execve` counts as a program that ended with 255 and a
//! message.

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

/// The folders in which programs are searched if the container's environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The exit code of an executable file that the kernel cannot execute.
const NO_PROGRAM: i32 = 255;

/// The program that a container's process becomes.
pub trait Program: Executor + Clone + 'static {
    /// Prepares on the host, before the container is made. It may change the specification. The
    /// bundle's root is mounted. `images` says where to ask for the container's image.
    ///
    /// # Errors
    /// Why the container cannot be made.
    fn prepare(&mut self, spec: &mut Value, bundle: &Path, images: Option<&Images>) -> Result<Prepared>;

    /// Prepares on the host, before another process is started in a container.
    ///
    /// # Errors
    /// Why the process cannot be started.
    fn prepare_exec(&mut self, _: &Entry<'_>) -> Result<Prepared> {
        Ok(Prepared::Ready)
    }
}

/// Whether a maker can make what it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepared {
    /// It can.
    Ready,
    /// The other maker can ([`Libcontainer::with_other`](super::Libcontainer::with_other)). This
    /// one has changed nothing.
    ByOther,
}

/// Another process of a running container.
#[derive(Debug)]
pub struct Entry<'a> {
    /// The folder with the container's `config.json`, which has its own process.
    pub bundle: &'a Path,
    /// `process` of the OCI specification, as JSON.
    pub process: &'a str,
    /// The container's first process, by its id on the host.
    pub init: u32,
    /// Where to ask for the container's image.
    pub images: Option<&'a Images>,
}

/// Runs native programs.
#[derive(Debug, Clone, Default)]
pub struct Native;

impl Program for Native {
    fn prepare(&mut self, _: &mut Value, _: &Path, _: Option<&Images>) -> Result<Prepared> {
        Ok(Prepared::Ready)
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
        // execve passes the environment. This process's own is empty.
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> std::result::Result<(), ExecutorError> {
        let Err(error) = process(spec).and_then(run);
        report::failed(error.clone());
        Err(ExecutorError::Other(error.to_string()))
    }
}

/// Searches a container's program, inside the container.
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
    // For example a script without `#!` or with a missing interpreter, a program for another
    // processor, or too many arguments. As with runc, it counts as a program that ran and ended.
    report::program_runs();
    let _unheard = writeln!(std::io::stderr(), "exec {}: {}", program.display(), errno.desc().to_lowercase());
    std::process::exit(NO_PROGRAM);
}

/// The program's path, as a shell finds it.
fn find(process: &Process) -> Result<PathBuf> {
    let name = process.args().as_ref().and_then(|args| args.first()).map(String::as_str);
    let name = name.ok_or_else(|| Error::invalid("no program was given: there are no arguments"))?;
    if name.is_empty() {
        return Err(Error::invalid("cannot run \"\": a program without a name cannot be found in $PATH"));
    }
    let mut worst = Errno::ENOENT;
    for candidate in candidates(name, process.env().iter().flatten().map(String::as_str)) {
        match may_execute(&candidate) {
            // A PATH with a relative element would run any file that someone has left in the
            // working directory.
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

/// Checks with the rights of the process, and not with those of its real user: the process may have
/// more.
fn may_execute(program: &Path) -> nix::Result<()> {
    match faccessat(AT_FDCWD, program, AccessFlags::X_OK, AtFlags::AT_EACCESS) {
        // The kernel, or the seccomp filter, does not know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => access(program, AccessFlags::X_OK),
        asked => asked,
    }
}

/// The paths at which a shell searches a program, with this environment. Relative ones are below
/// the working directory.
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
    fn programs_are_searched_as_by_a_shell() {
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
