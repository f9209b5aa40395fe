// SPDX-License-Identifier: Apache-2.0
//! Tests the parser, and mounts on this kernel. The latter need root, and say so when they are
//! skipped.

use super::*;
use nix::sched::{CloneFlags, unshare};

/// Runs `test` with an empty directory on a tmpfs, in a new mount namespace.
///
/// Without the privilege to make one, it says so and runs nothing.
pub(crate) fn in_private_mounts(test: impl FnOnce(&Path) + Send) {
    std::thread::scope(|scope| {
        let body = move || {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS) {
                eprintln!("skipped: a private mount namespace needs root ({error})");
                return;
            }
            rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            let scratch = tempfile::tempdir().unwrap();
            Mount::parse("tmpfs", "tmpfs", &[]).unwrap().mount_at(scratch.path()).unwrap();
            test(scratch.path());
            unmount(scratch.path()).unwrap();
        };
        scope.spawn(body).join().unwrap();
    });
}

fn parse(kind: &str, options: &[&str]) -> Result<Mount> {
    Mount::parse(kind, "/source", &options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
}

#[test]
fn flags_propagation_and_data_are_separated() {
    let mount = parse("overlay", &["index=off", "ro", "nodev", "rslave", "lowerdir=/a:/b"]).unwrap();
    assert_eq!(mount.flags, MountFlags::RDONLY | MountFlags::NODEV);
    assert_eq!(mount.propagation, Some(MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC));
    assert_eq!(mount.data, ["index=off", "lowerdir=/a:/b"]);
    assert!(mount.is_read_only() && !mount.is_bind());
}

#[test]
fn the_last_of_contradicting_flags_counts() {
    assert!(!parse("bind", &["ro", "rw"]).unwrap().is_read_only());
    assert!(parse("bind", &["rw", "ro"]).unwrap().is_read_only());
}

#[test]
fn a_bind_mount_is_recognised_by_type_or_option() {
    assert!(parse("bind", &[]).unwrap().is_bind());
    assert!(parse("none", &["rbind"]).unwrap().flags.contains(MountFlags::REC));
    assert!(parse("rbind", &[]).unwrap().flags.contains(MountFlags::REC));
}

#[test]
fn unsupported_options_are_refused_by_name() {
    for option in ["loop", "remount"] {
        let error = parse("ext4", &[option]).unwrap_err();
        assert_eq!(error.code(), Code::Unimplemented);
        assert!(error.to_string().contains(option), "{error}");
    }
    assert_eq!(parse("tmpfs", &["size=1\0"]).unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(parse("", &[]).unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(Mount::parse("bind", "", &[]).unwrap_err().code(), Code::InvalidArgument);
}

#[test]
fn unmounting_nothing_succeeds() {
    let nowhere = tempfile::tempdir().unwrap();
    unmount(nowhere.path()).unwrap();
    unmount(&nowhere.path().join("absent")).unwrap();
    unmount(Path::new("/proc/self/status/x")).unwrap();
}

#[test]
fn a_read_only_bind_mount_keeps_the_flags_of_its_source() {
    in_private_mounts(|scratch| {
        let (source, target) = (scratch.join("source"), scratch.join("target"));
        std::fs::create_dir(&source).unwrap();
        std::fs::create_dir(&target).unwrap();
        let tmpfs = Mount::parse("tmpfs", "tmpfs", &["nosuid".to_owned(), "size=64k".to_owned()]).unwrap();
        tmpfs.mount_at(&source).unwrap();
        let bind = Mount::parse("bind", source.to_str().unwrap(), &["rbind".to_owned(), "ro".to_owned(), "rprivate".to_owned()]).unwrap();
        bind.mount_at(&target).unwrap();
        let flags = inherited_flags(&open_target(&target).unwrap()).unwrap();
        assert!(flags.contains(MountFlags::RDONLY | MountFlags::NOSUID), "{flags:?}");
        assert!(std::fs::write(target.join("file"), "").is_err());
        std::fs::write(source.join("file"), "").unwrap();

        let below = mounts_below(scratch).unwrap();
        assert_eq!(below.last().unwrap(), scratch);
        assert_eq!(below[..2], [target.clone(), source.clone()]);
        unmount(&target).unwrap();
        unmount(&target).unwrap();
        assert_eq!(mounts_below(&target).unwrap(), Vec::<PathBuf>::new());
    });
}

#[test]
fn a_mount_deep_in_a_directory_is_found() {
    in_private_mounts(|scratch| {
        let (dir, deep) = (scratch.join("dir"), scratch.join("dir/deep/deeper"));
        std::fs::create_dir_all(&deep).unwrap();
        std::os::unix::fs::symlink("/proc", dir.join("link")).unwrap();
        assert_eq!(mounted_in(&dir).unwrap(), None);
        assert_eq!(mounted_in(&dir.join("absent")).unwrap(), None);
        // A bind mount of the same filesystem, which device numbers cannot show.
        let bind = Mount::parse("bind", scratch.join("dir/deep").to_str().unwrap(), &[]).unwrap();
        bind.mount_at(&deep).unwrap();
        assert_eq!(mounted_in(&dir).unwrap(), Some(deep.clone()));
        unmount(&deep).unwrap();
        assert_eq!(mounted_in(&dir).unwrap(), None);
    });
}

#[test]
fn unmount_removes_all_bind_mounts_stacked_on_a_file() {
    in_private_mounts(|scratch| {
        let (source, target) = (scratch.join("source"), scratch.join("target"));
        std::fs::write(&source, "source").unwrap();
        std::fs::write(&target, "target").unwrap();
        let bind = Mount::parse("bind", source.to_str().unwrap(), &[]).unwrap();
        bind.mount_at(&target).unwrap();
        bind.mount_at(&target).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "source");
        unmount(&target).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "target");
    });
}

#[test]
fn a_symbolic_link_is_refused_as_a_target() {
    in_private_mounts(|scratch| {
        let (real, link) = (scratch.join("real"), scratch.join("link"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let error = Mount::parse("tmpfs", "tmpfs", &[]).unwrap().mount_at(&link).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert_eq!(mounts_below(&real).unwrap(), Vec::<PathBuf>::new());
    });
}
