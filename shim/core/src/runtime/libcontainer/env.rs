// SPDX-License-Identifier: Apache-2.0
//! The environment of a container's process, as runc makes it: the last value of each variable
//! counts, and a missing or empty `HOME` is taken from the container's `passwd`.

use crate::error::{Error, Result};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use std::collections::HashSet;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

/// How many bytes of `passwd` are searched.
const MAX_PASSWD: u64 = 1 << 20;

/// The variables that a process gets. `home` is called if `HOME` is missing or empty.
///
/// # Errors
/// `InvalidArgument` for an invalid variable.
pub fn settled(given: Vec<String>, home: impl FnOnce() -> String) -> Result<Vec<String>> {
    let (mut names, mut settled) = (HashSet::new(), Vec::new());
    // From the end: the last value counts, and keeps its position.
    for variable in given.into_iter().rev() {
        let name = variable.split_once('=').map(|(name, _)| name.to_owned());
        let name = name.ok_or_else(|| Error::invalid(format!("invalid environment variable {variable:?}: it has no \"=\"")))?;
        if name.is_empty() {
            return Err(Error::invalid(format!("invalid environment variable {variable:?}: it has no name")));
        }
        if names.insert(name) {
            settled.push(variable);
        }
    }
    settled.reverse();
    if !settled.iter().any(|variable| variable.strip_prefix("HOME=").is_some_and(|home| !home.is_empty())) {
        settled.retain(|variable| variable != "HOME=");
        settled.push(format!("HOME={}", home()));
    }
    Ok(settled)
}

/// A user's home by the `passwd` of the container with this root. Links cannot lead out of the
/// root.
pub fn home_in(rootfs: &Path, uid: u64) -> Option<String> {
    let dir = rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    home_below(&dir, uid)
}

/// [`home_in`] for an open root.
pub fn home_below(root: impl AsFd, uid: u64) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = rustix::fs::openat2(root, "etc/passwd", flags, Mode::empty(), resolve).ok()?;
    let mut text = Vec::new();
    std::fs::File::from(file).take(MAX_PASSWD).read_to_end(&mut text).ok()?;
    home_of(&String::from_utf8_lossy(&text), uid)
}

/// A user's home in the container that this process has entered.
pub fn home_here(uid: u64) -> Option<String> {
    let root = rustix::fs::openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    home_below(root, uid)
}

/// The home of a user that is not in the container's `passwd`.
pub fn default_home() -> String {
    "/".into()
}

fn home_of(passwd: &str, uid: u64) -> Option<String> {
    let mut users = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let user = users.find(|fields| fields.get(2).and_then(|id| id.parse().ok()) == Some(uid))?;
    user.get(5).map(ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(given: &[&str]) -> Result<Vec<String>> {
        settled(given.iter().map(ToString::to_string).collect(), || "/house".into())
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        assert_eq!(made(&["A=1", "HOME=/x", "B=2", "A=", "C=a=b"]).unwrap(), ["HOME=/x", "B=2", "A=", "C=a=b"]);
    }

    #[test]
    fn a_missing_or_empty_home_is_looked_up() {
        assert_eq!(made(&["A=1"]).unwrap(), ["A=1", "HOME=/house"]);
        assert_eq!(made(&["HOME=", "A=1"]).unwrap(), ["A=1", "HOME=/house"]);
        assert_eq!(made(&["HOME=/x", "HOME="]).unwrap(), ["HOME=/house"]);
    }

    #[test]
    fn invalid_variables_are_refused() {
        assert!(made(&["A"]).unwrap_err().to_string().contains("no \"=\""));
        assert!(made(&["=x"]).unwrap_err().to_string().contains("no name"));
    }

    #[test]
    fn homes_are_read_from_passwd() {
        let passwd = "root:x:0:0::/root:/bin/sh\nbroken\nweb:x:33:33::/var/www:\nnone:x:34:34:::\n";
        assert_eq!(home_of(passwd, 33).as_deref(), Some("/var/www"));
        assert_eq!(home_of(passwd, 34).as_deref(), Some(""));
        assert_eq!(home_of(passwd, 35), None);
    }
}
