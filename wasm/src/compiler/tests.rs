// SPDX-License-Identifier: Apache-2.0
//! What a compiler may do, and what it says.

use super::*;
use crate::engine::End;
use crate::guest::Guest;
use crate::payload::Module;
use std::fmt::Debug;

/// An engine that does in the compiler whatever the module says.
#[derive(Debug, Clone)]
struct TakenOver;

impl Engine for TakenOver {
    const NAME: &'static str = "taken over";

    const TRAPPED: u8 = 1;

    const COMPILES: bool = true;

    fn load() -> Result<()> {
        Ok(())
    }

    fn compatibility() -> Result<String> {
        Ok(String::new())
    }

    fn compile(module: &[u8], _: Format, _: Effort, into: &mut File) -> std::result::Result<(), Failure> {
        match module {
            b"attacks" => {
                into.write_all(attacks().join("\n").as_bytes()).unwrap();
                Ok(())
            }
            b"refuses" => Err(Failure::Refused("it is no module".into())),
            b"hogs" => {
                into.write_all(&vec![1; 64 << 20]).unwrap();
                Ok(())
            }
            b"aborts" => std::process::abort(),
            b"spins" => loop {
                std::hint::spin_loop();
            },
            _ => panic!("no such module"),
        }
    }

    fn run(_: &Module, _: &Guest) -> End {
        End::Exited(0)
    }
}

fn shown<T: Debug>(name: &str, outcome: std::io::Result<T>) -> String {
    format!("{name}: {:?}", outcome.map_err(|error| error.kind()))
}

/// What a module tries that has taken over its compiler.
fn attacks() -> Vec<String> {
    let open = |path: &str| shown(path, File::open(path).map(drop));
    let init = Pid::INIT;
    vec![
        open("/etc/passwd"),
        open("/proc/self/maps"),
        open("/proc/1/environ"),
        shown("what is there", std::fs::read_dir("/").map(Iterator::count)),
        shown("write a file", std::fs::write("/file", "content")),
        shown("a thread", Ok(std::thread::spawn(|| 7).join().unwrap())),
        shown("code", magnetar_sys::memory::map_code()),
        shown("a program", std::process::Command::new("/file").spawn().map(drop)),
        shown("a process", fork::spawn(|| 0)),
        shown("a socket", std::os::unix::net::UnixDatagram::unbound().map(drop)),
        shown("a signal", rustix::process::kill_process(init, Signal::KILL).map_err(Into::into)),
        shown("another process", rustix::process::pidfd_open(init, rustix::process::PidfdFlags::empty()).map(drop).map_err(Into::into)),
        shown("a higher limit", rustix::process::setrlimit(Resource::Data, Rlimit { current: None, maximum: None }).map_err(Into::into)),
        shown("a mount", rustix::mount::fsopen("tmpfs", FsOpenFlags::empty()).map(drop).map_err(Into::into)),
        shown("a namespace", magnetar_sys::namespace::user_namespace("0 0 1", "0 0 1").map(drop)),
        shown("root", rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).map_err(Into::into)),
        shown("the user", Ok(rustix::process::getuid().as_raw())),
    ]
}

fn compiled(module: &str, memory: u64) -> std::result::Result<String, Failure> {
    // Other threads of the test runner do not matter to what the copy does.
    compile::<TakenOver>(module.as_bytes(), Format::Binary, Effort::Full, Some(memory)).map(|mut code| {
        let mut text = String::new();
        code.read_to_string(&mut text).unwrap();
        assert!(code.write_all(b"more").is_err(), "it can still be changed");
        text
    })
}

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: a compiler can only be confined by root");
    }
    is_root
}

#[test]
fn a_module_that_takes_over_its_compiler_reaches_nothing() {
    if !is_root() {
        return;
    }
    let expected = [
        "/etc/passwd: Err(NotFound)",
        "/proc/self/maps: Err(NotFound)",
        "/proc/1/environ: Err(NotFound)",
        "what is there: Ok(0)",
        "write a file: Ok(())",
        "a thread: Ok(7)",
        "code: Err(Unsupported)",
        "a program: Err(Unsupported)",
        "a process: Err(Unsupported)",
        "a socket: Err(Unsupported)",
        "a signal: Err(Unsupported)",
        "another process: Err(Unsupported)",
        "a higher limit: Err(Unsupported)",
        "a mount: Err(Unsupported)",
        "a namespace: Err(Unsupported)",
        "root: Err(Unsupported)",
        "the user: Ok(65534)",
    ];
    assert_eq!(compiled("attacks", 64 << 20).unwrap().lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_compiler_without_code_says_why() {
    if !is_root() {
        return;
    }
    assert_eq!(compiled("refuses", 64 << 20), Err(Failure::Refused("it is no module".into())));
    let Err(Failure::Failed(why)) = compiled("aborts", 64 << 20) else { panic!("it did not fail") };
    assert!(why.ends_with("(the compiler was ended by signal 6)"), "{why}");
}

#[test]
fn a_compiler_without_an_end_is_ended() {
    if !is_root() {
        return;
    }
    assert_eq!(compiled("spins", 64 << 20), Err(Failure::Failed("compiling it takes more than 1 s of processor time".into())));
}

#[test]
fn a_compiler_has_the_memory_of_the_containers_limit() {
    if !is_root() {
        return;
    }
    assert_eq!(compiled("hogs", 256 << 20).unwrap().len(), 64 << 20);
    let Err(Failure::Failed(why)) = compiled("hogs", 1 << 20) else { panic!("it was not limited") };
    assert!(why.starts_with("out of memory: it cannot be compiled with the 1 MiB"), "{why}");
}
