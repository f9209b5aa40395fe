// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::machine::size::Size;
use crate::machine::spec::Acceleration;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(&dir.path().join("a/templates"));
    (dir, store)
}

fn recipe(machine: &str) -> Recipe {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned();
    Recipe {
        key: Key { boot, files: Vec::new(), machine: machine.into(), caches_files: true },
        kernel: "/k".into(),
        initramfs: "/i".into(),
        parameters: Vec::new(),
        memory_mib: 1,
        vcpus: 1,
        most: Size { memory_mib: 1, vcpus: 1 },
        acceleration: Acceleration::Tcg,
        virtiofsd: None,
        interfaces: 1,
    }
}

fn make(store: &Store, recipe: &Recipe) -> bool {
    let Some(making) = store.begin(recipe).unwrap() else { return false };
    let (mut memory, mut state) = (making.memory().unwrap(), making.state().unwrap());
    memory.write_all(b"memory").unwrap();
    state.write_all(b"state").unwrap();
    making.finish("11.1".into(), &state).unwrap();
    true
}

/// The names in the store, but for its lock.
fn left(store: &Store) -> Vec<String> {
    let entries = std::fs::read_dir(&store.0).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).filter(|name| name != LOCK).collect()
}

#[test]
fn a_template_is_found_once_it_is_finished() {
    let (_dir, store) = store();
    let recipe = recipe("m");
    assert!(store.find(&recipe).unwrap().is_none());
    let making = store.begin(&recipe).unwrap().unwrap();
    assert!(store.find(&recipe).unwrap().is_none(), "it is not complete");
    assert!(store.begin(&recipe).unwrap().is_none(), "another process makes it");
    drop(making);
    assert_eq!(left(&store), [""; 0]);

    assert!(make(&store, &recipe));
    let mut template = store.find(&recipe).unwrap().unwrap();
    let mut text = String::new();
    template.state.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), template.version.as_str(), template.memory.metadata().unwrap().len()), ("state", "11.1", 1 << 20));
    assert!(!make(&store, &recipe), "there is one");
    assert!(store.find(&self::recipe("another")).unwrap().is_none());
    assert_eq!(store.0.metadata().unwrap().permissions().mode() & 0o7777, 0o700);

    store.discard(&recipe).unwrap();
    assert!(store.find(&recipe).unwrap().is_none());
    assert_eq!(left(&store), [""; 0]);
}

/// What is said of a damaged template, and what damages it.
type Damage<'a> = (&'a str, &'a dyn Fn(&Path));

#[test]
fn a_damaged_or_foreign_template_is_refused() {
    let recipe = recipe("m");
    let cases: [Damage; 8] = [
        ("state has 2 bytes instead of 5", &|dir| File::options().write(true).open(dir.join(STATE)).unwrap().set_len(2).unwrap()),
        ("memory has 7 bytes instead of 1048576", &|dir| {
            File::options().write(true).open(dir.join(MEMORY)).unwrap().set_len(7).unwrap();
        }),
        ("cannot open state", &|dir| std::fs::remove_file(dir.join(STATE)).unwrap()),
        ("manifest.json: EOF", &|dir| std::fs::write(dir.join(MANIFEST), "{\"key\":").unwrap()),
        ("of another machine", &|dir| {
            let text = std::fs::read_to_string(dir.join(MANIFEST)).unwrap();
            std::fs::write(dir.join(MANIFEST), text.replace("\"m\"", "\"n\"")).unwrap();
        }),
        ("only root may", &|dir| {
            std::fs::set_permissions(dir.join(MEMORY), std::fs::Permissions::from_mode(0o602)).unwrap();
        }),
        ("only root may", &|dir| {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777)).unwrap();
        }),
        ("cannot open state", &|dir| {
            std::fs::rename(dir.join(STATE), dir.join("elsewhere")).unwrap();
            std::os::unix::fs::symlink("elsewhere", dir.join(STATE)).unwrap();
        }),
    ];
    for (words, damage) in cases {
        let (_dir, store) = store();
        assert!(make(&store, &recipe));
        damage(&store.0.join(recipe.key.name()));
        let error = store.find(&recipe).err().unwrap_or_else(|| panic!("{words}: it is believed"));
        assert!(error.to_string().contains(words), "{words}: {error}");
        // It goes, and then the next one is good.
        store.discard(&recipe).unwrap();
        assert!(make(&store, &recipe));
        assert!(store.find(&recipe).unwrap().is_some());
    }
}

#[test]
fn a_store_that_others_can_write_to_is_refused() {
    let (_dir, store) = store();
    assert!(make(&store, &recipe("m")));
    std::fs::set_permissions(&store.0, std::fs::Permissions::from_mode(0o777)).unwrap();
    for error in [store.find(&recipe("m")).map(drop).unwrap_err(), store.begin(&recipe("n")).map(drop).unwrap_err()] {
        assert_eq!(error.code(), Code::PermissionDenied, "{error}");
    }
}

#[test]
fn what_a_crash_has_left_is_removed_by_the_next_one() {
    let (_dir, store) = store();
    let making = store.begin(&recipe("m")).unwrap().unwrap();
    let _memory = making.memory().unwrap();
    // As the end of the process does: the lock is free, and nothing is removed.
    let Making { root, .. } = &making;
    let lock = openat(root, LOCK, OFlags::RDWR, Mode::empty()).unwrap();
    flock(&making._lock, FlockOperation::Unlock).unwrap();
    std::mem::forget(making);
    drop(lock);
    assert_eq!(left(&store), [MAKING]);
    assert!(make(&store, &recipe("n")));
    assert_eq!(left(&store), [recipe("n").key.name()]);
}

#[test]
fn stale_templates_are_removed_and_their_number_is_bounded() {
    let (_dir, store) = store();
    let mut stale = recipe("stale");
    stale.key.boot = "an earlier boot".into();
    assert!(make(&store, &stale));
    for number in 0..MOST {
        assert!(make(&store, &recipe(&number.to_string())));
    }
    assert_eq!(left(&store).len(), MOST);
    assert!(store.find(&stale).unwrap().is_none());
    assert!(!make(&store, &recipe("one more")), "all of them were used just now");

    let long_ago = SystemTime::now() - KEPT - Duration::from_secs(1);
    for number in 0..MOST {
        let manifest = File::open(store.0.join(recipe(&number.to_string()).key.name()).join(MANIFEST)).unwrap();
        manifest.set_modified(long_ago - Duration::from_secs(number as u64)).unwrap();
    }
    // A use counts.
    assert!(store.find(&recipe(&(MOST - 1).to_string())).unwrap().is_some());
    assert!(make(&store, &recipe("one more")));
    assert!(store.find(&recipe(&(MOST - 2).to_string())).unwrap().is_none(), "it was used longest ago");
    assert!(store.find(&recipe(&(MOST - 1).to_string())).unwrap().is_some());
    assert_eq!(left(&store).len(), MOST);
}
