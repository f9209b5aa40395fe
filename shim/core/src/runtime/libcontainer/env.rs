// SPDX-License-Identifier: Apache-2.0
//! The variables of a container's process, as runc makes them: each once, the last word counts, and `HOME` is never missing or empty
//! where the container's `passwd` knows better.

use crate::error::{Error, Result};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use std::collections::HashSet;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

/// A `passwd` larger than this is not searched to its end.
const MAX_PASSWD: u64 = 1 << 20;

/// The variables that a process gets. `home` is asked where nobody has said a home.
///
/// # Errors
/// `InvalidArgument` for what is no variable.
pub fn settled(given: Vec<String>, home: impl FnOnce() -> String) -> Result<Vec<String>> {
    let (mut names, mut settled) = (HashSet::new(), Vec::new());
    // From the end: what was said last counts, and stands where it was said.
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

/// The home of a user, as the `passwd` of the container with this root has it. Links in it lead nowhere but into it.
pub fn home_in(rootfs: &Path, uid: u64) -> Option<String> {
    let dir = rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    home_below(&dir, uid)
}

/// [`home_in`] for a root that is open, or for this process's own.
pub fn home_below(root: impl AsFd, uid: u64) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = rustix::fs::openat2(root, "etc/passwd", flags, Mode::empty(), resolve).ok()?;
    let mut text = Vec::new();
    std::fs::File::from(file).take(MAX_PASSWD).read_to_end(&mut text).ok()?;
    home_of(&String::from_utf8_lossy(&text), uid)
}

/// The home of a user in the container that this process has entered.
pub fn home_here(uid: u64) -> Option<String> {
    let root = rustix::fs::openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    home_below(root, uid)
}

/// The home of a user whom the container does not know.
pub fn home_of_nobody() -> String {
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
    fn the_last_word_on_a_variable_counts() {
        assert_eq!(made(&["A=1", "HOME=/x", "B=2", "A=", "C=a=b"]).unwrap(), ["HOME=/x", "B=2", "A=", "C=a=b"]);
    }

    #[test]
    fn a_home_that_is_missing_or_empty_comes_from_elsewhere() {
        assert_eq!(made(&["A=1"]).unwrap(), ["A=1", "HOME=/house"]);
        assert_eq!(made(&["HOME=", "A=1"]).unwrap(), ["A=1", "HOME=/house"]);
        assert_eq!(made(&["HOME=/x", "HOME="]).unwrap(), ["HOME=/house"]);
    }

    #[test]
    fn what_is_no_variable_is_refused() {
        assert!(made(&["A"]).unwrap_err().to_string().contains("no \"=\""));
        assert!(made(&["=x"]).unwrap_err().to_string().contains("no name"));
    }

    #[test]
    fn homes_come_from_passwd() {
        let passwd = "root:x:0:0::/root:/bin/sh\nbroken\nweb:x:33:33::/var/www:\nnone:x:34:34:::\n";
        assert_eq!(home_of(passwd, 33).as_deref(), Some("/var/www"));
        assert_eq!(home_of(passwd, 34).as_deref(), Some(""));
        assert_eq!(home_of(passwd, 35), None);
    }
}
