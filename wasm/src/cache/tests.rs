// SPDX-License-Identifier: Apache-2.0
//! What a container gets of the cache, and what stays in it.

use super::*;
use std::io::Write as _;

fn cache(root: &tempfile::TempDir) -> Cache {
    Cache::open(&root.path().join("cache"), "engine-1", "tenant").unwrap()
}

fn look(root: &tempfile::TempDir, outcome: std::result::Result<&[u8], Failure>) -> std::result::Result<Vec<u8>, Failure> {
    let null = File::open("/dev/null").unwrap();
    let compile = |bytes: &[u8], _: Effort| {
        assert_eq!(bytes, b"module");
        let mut code = tempfile::tempfile().unwrap();
        code.write_all(outcome.clone()?).unwrap();
        code.rewind().unwrap();
        Ok(code)
    };
    let found = cache(root).look(&b"module"[..], null.as_fd(), false, || Ok(b"module".to_vec()), compile).unwrap();
    found.code(None).map(|(mut code, _)| {
        let mut bytes = Vec::new();
        code.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

#[test]
fn code_is_compiled_once() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(look(&root, Ok(b"code")).unwrap(), b"code");
    assert_eq!(look(&root, Ok(b"other")).unwrap(), b"code");
}

#[test]
fn a_failure_reaches_the_container_and_nothing_is_kept() {
    let root = tempfile::tempdir().unwrap();
    let refused = look(&root, Err(Failure::Refused("it is no module".into())));
    assert_eq!(refused, Err(Failure::Refused("it is no module".into())));
    assert_eq!(look(&root, Err(Failure::Failed("no memory".into()))), Err(Failure::Failed("no memory".into())));
    assert_eq!(look(&root, Ok(b"code")).unwrap(), b"code");
}

#[test]
fn a_module_with_which_two_containers_begin_at_once_is_compiled_once() {
    let root = tempfile::tempdir().unwrap();
    let goes_on = root.path().join("goes-on");
    let begin = |code: &'static [u8]| {
        let compile = |_: &[u8], _: Effort| {
            // A compiler has no descriptors but its own, so it looks for a file.
            while !goes_on.exists() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(code).unwrap();
            file.rewind().unwrap();
            Ok(file)
        };
        let null = File::open("/dev/null").unwrap();
        cache(&root).look(&b"module"[..], null.as_fd(), false, || Ok(b"module".to_vec()), compile).unwrap()
    };
    let both = [begin(b"first"), begin(b"second")];
    File::create(&goes_on).unwrap();
    let code = both.map(|found| std::io::read_to_string(found.code(None).unwrap().0).unwrap());
    assert_eq!(code[0], code[1]);
}

fn compiling(keeper: OwnedFd) -> Found {
    Found::Compiling(Compiling { keeper, since: Duration::ZERO })
}

#[test]
fn nobody_waits_for_a_compilation_that_was_too_long_before() {
    let root = tempfile::tempdir().unwrap();
    let module = || &b"slow module"[..];
    let (blocks, ends) = std::io::pipe().unwrap();
    let found = |patience: Duration| {
        let read = || {
            // Until the test has ended.
            let _end = std::io::copy(&mut &blocks, &mut std::io::sink());
            Ok(module().to_vec())
        };
        let found = cache(&root).look(module(), blocks.as_fd(), false, read, |_, _| Err(Failure::Failed(String::new())));
        found.unwrap().code(Some(patience)).unwrap_err()
    };
    assert_eq!(found(Duration::from_millis(1)), Failure::Failed("compiling it takes more than 0 s".into()));
    let mark = root.path().join("cache");
    let folder = std::fs::read_dir(mark).unwrap().next().unwrap().unwrap().path();
    let mark = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let before = std::time::SystemTime::now() - Duration::from_secs(7200);
    File::options().write(true).open(mark).unwrap().set_modified(before).unwrap();
    assert_eq!(found(Duration::from_secs(3600)), Failure::Failed("compiling it takes more than 3600 s".into()));
    drop(ends);
}

#[test]
fn a_container_that_wants_a_draft_has_it_first_and_the_rest_is_kept() {
    let root = tempfile::tempdir().unwrap();
    let module = vec![1; LARGE];
    let null = File::open("/dev/null").unwrap();
    let found = |draft: bool| {
        let compile = |_: &[u8], effort: Effort| {
            let mut code = tempfile::tempfile().unwrap();
            write!(code, "{effort:?}").unwrap();
            code.rewind().unwrap();
            Ok(code)
        };
        cache(&root).look(module.as_slice(), null.as_fd(), draft, || Ok(module.clone()), compile).unwrap()
    };
    let first = found(true);
    let Found::Compiling(Compiling { keeper, since }) = &first else { panic!("it was there already") };
    let keeper = Found::Compiling(Compiling { keeper: keeper.try_clone().unwrap(), since: *since });
    assert_eq!(first.code(None).unwrap().1, Effort::Draft);
    // When the keeper says the next, it has stored it.
    assert_eq!(keeper.code(None).unwrap().1, Effort::Full);
    let (mut code, effort) = found(true).code(None).unwrap();
    let mut text = String::new();
    code.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), effort), ("Full", Effort::Full));
}

#[test]
fn a_container_waits_no_longer_than_it_wants() {
    let (ours, _theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let outcome = compiling(ours).code(Some(Duration::ZERO));
    assert_eq!(outcome.unwrap_err(), Failure::Failed("compiling it takes more than 0 s".into()));
}

#[test]
fn the_end_of_a_keeper_is_reported() {
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    drop(theirs);
    assert!(matches!(compiling(ours).code(None), Err(Failure::Failed(why)) if why.contains("was killed")));
}
