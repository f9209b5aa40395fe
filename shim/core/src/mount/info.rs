// SPDX-License-Identifier: Apache-2.0
//! Reads mountinfo line by line, because a node with many pods has thousands of mounts.
//!
//! The format is that of proc_pid_mountinfo(5).

use crate::error::{Context, Result};
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One mount of our mount namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// The directory of the filesystem that is mounted: `/`, unless it is a bind mount or a cgroup
    /// below our namespace's root.
    pub root: PathBuf,
    /// The mount point.
    pub target: PathBuf,
    /// The filesystem type, such as `overlay` or `cgroup2`.
    pub fs_type: String,
    /// The options of the filesystem instance, comma-separated: for cgroup v1, the controllers are
    /// among them.
    pub super_options: String,
}

impl MountEntry {
    /// Reads one line: `36 35 98:0 /root /target rw,noatime master:1 - ext3 /dev/root
    /// rw,errors=continue`.
    ///
    /// `None` for any other text.
    pub(super) fn parse(line: &[u8]) -> Option<MountEntry> {
        let mut fields = line.split(|byte| *byte == b' ');
        let root = path(fields.nth(3)?);
        let target = path(fields.next()?);
        // Any number of tags may be between the mount's own options and the dash.
        let mut after_dash = fields.skip_while(|field| *field != b"-").skip(1);
        let fs_type = text(after_dash.next()?);
        let super_options = text(after_dash.nth(1)?);
        Some(MountEntry { root, target, fs_type, super_options })
    }
}

/// Calls `visit` for every mount of our mount namespace, oldest first.
///
/// # Errors
///
/// If mountinfo cannot be read.
pub fn for_each_mount(mut visit: impl FnMut(MountEntry)) -> Result<()> {
    // A thread can have a mount namespace of its own, and /proc/self shows the first thread's.
    const MOUNTINFO: &str = "/proc/thread-self/mountinfo";
    let what = || MOUNTINFO.to_owned();
    let mut lines = BufReader::new(std::fs::File::open(MOUNTINFO).context(what)?);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).context(what)? > 0 {
        if let Some(entry) = MountEntry::parse(line.trim_ascii_end()) {
            visit(entry);
        }
        line.clear();
    }
    Ok(())
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

/// Undoes the kernel's escapes: space, tab, newline, backslash and `#` appear as a backslash and
/// three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', beyond @ ..] if first == b'\\' => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = beyond;
            }
            _ => {
                plain.push(first);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_line_with_and_without_tags() {
        let tagged = MountEntry::parse(b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue").unwrap();
        assert_eq!((tagged.root.as_path(), tagged.target.as_path()), (Path::new("/mnt1"), Path::new("/mnt2")));
        assert_eq!((tagged.fs_type.as_str(), tagged.super_options.as_str()), ("ext3", "rw,errors=continue"));
        let plain = MountEntry::parse(b"33 31 0:30 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu").unwrap();
        assert_eq!((plain.fs_type.as_str(), plain.super_options.as_str()), ("cgroup", "rw,cpu"));
    }

    #[test]
    fn escapes_are_undone() {
        let entry = MountEntry::parse(br"1 2 0:1 / /a\040b\134\011c\12x rw - tmpfs a\040b rw").unwrap();
        assert_eq!(entry.target, Path::new("/a b\\\tc\\12x"));
    }

    #[test]
    fn invalid_lines_are_not_mounts() {
        for line in ["", "36", "36 35 98:0 / /mnt rw", "36 35 98:0 / /mnt rw - ext3", "a b c d e f g h"] {
            assert_eq!(MountEntry::parse(line.as_bytes()), None, "{line:?}");
        }
    }

    #[test]
    fn our_own_mounts_are_readable() {
        let mut targets = Vec::new();
        for_each_mount(|entry| targets.push(entry.target)).unwrap();
        assert!(targets.contains(&PathBuf::from("/")), "{targets:?}");
    }
}
