// SPDX-License-Identifier: Apache-2.0
//! WASI preview 1 as a program in C uses it (images/oci/wasm/wasi.c), an area at a time. The
//! program checks for itself what is the same on all engines; what differs it prints, and it is
//! expected here.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{PermissionsExt as _, chown, symlink},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, ensure};
use magnetar_cri::{ContainerSpec, Pod, PodSpec};
use magnetar_e2e::{Case, Scratch};
use nix::{sys::stat::Mode, unistd::mkfifo};

use super::engine::{Engine, ends, module, on_each_engine, pod};

const PROGRAM: &str = "wasi.wasm";

on_each_engine! {
    a_module_has_the_containers_arguments_and_environment,
    only_the_streams_and_the_root_are_open,
    standard_input_is_read_to_the_last_byte,
    a_module_can_wait_for_standard_input,
    standard_output_and_standard_error_are_separate,
    files_are_written_and_read_back,
    directories_are_made_and_listed,
    unusual_names_and_all_file_types_are_listed,
    links_are_followed,
    no_path_leads_out_of_a_modules_root,
    a_read_only_volume_cannot_be_changed,
    files_of_an_unmapped_owner_cannot_be_changed,
    file_permissions_apply_to_the_containers_user,
    clocks_tell_the_time,
    random_numbers_are_random,
    a_timer_waits_for_its_duration,
    memory_can_be_used_up_to_the_limit,
    a_deep_stack_and_floating_point_numbers_work,
    the_exit_code_of_a_module_is_that_of_its_container,
    the_cause_of_a_trap_is_in_the_log,
}

/// Runs an area to its end, which is with 0, and returns what it printed.
async fn area<const N: usize>(case: &Case, pod: &Pod, words: [&str; N]) -> Result<String> {
    holds(case, pod, &module(PROGRAM, words)).await
}

async fn holds(case: &Case, pod: &Pod, spec: &ContainerSpec) -> Result<String> {
    let (status, said, complaint) = ends(case, pod, spec).await?;
    ensure!(status.exit_code == 0 && complaint.is_empty(), "exit code {}: {complaint}", status.exit_code);
    Ok(said)
}

async fn a_module_has_the_containers_arguments_and_environment(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "surroundings").await?;
    let spec = module(PROGRAM, ["surroundings", "one", "two words", "", "größe"]).env("COLOUR", "blue=green").env("EMPTY", "");
    holds(case, &pod, &spec).await?;
    Ok(pod.remove().await?)
}

async fn only_the_streams_and_the_root_are_open(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "descriptors").await?;
    let said = area(case, &pod, ["descriptors"]).await?;
    assert_eq!(said.lines().collect::<Vec<_>>(), ["0 is no terminal", "1 is no terminal", "2 is no terminal", "to standard output"]);
    let said = holds(case, &pod, &module(PROGRAM, ["descriptors"]).stdin(false).tty()).await?;
    assert_eq!(said.lines().collect::<Vec<_>>(), ["0 is a terminal", "1 is a terminal", "2 is a terminal", "to standard output"]);
    Ok(pod.remove().await?)
}

async fn standard_input_is_read_to_the_last_byte(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "copy").await?;
    assert_eq!(area(case, &pod, ["copy"]).await?, "", "there is no standard input");
    let container = pod.run(&module(PROGRAM, ["copy"]).stdin(true)).await?;
    let mut session = container.attach(true, false).await?;
    let lines: String = (0..20_000).map(|number| format!("line {number}\n")).collect();
    for part in lines.as_bytes().chunks(10_000) {
        session.send(part).await?;
    }
    // Not before all has come back: the server forgets what it has not passed on when the client
    // closes the connection.
    container.logged(case.within(30), |log| log.stdout().ends_with("line 19999\n")).await?;
    session.close().await?;
    assert_eq!(container.exited(case.within(30)).await?.exit_code, 0);
    ensure!(case.whole_log(&container).await?.stdout() == lines, "it is not what went in");
    Ok(pod.remove().await?)
}

async fn a_module_can_wait_for_standard_input(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "await").await?;
    let container = pod.run(&module(PROGRAM, ["await"]).stdin(true)).await?;
    let mut session = container.attach(true, false).await?;
    container.logged(case.soon(), |log| log.stdout() == "nothing yet\n").await?;
    session.send(b"something\n").await?;
    assert_eq!(container.exited(case.within(30)).await?.exit_code, 0, "{}", container.log()?.stderr());
    assert_eq!(case.whole_log(&container).await?.stdout(), "nothing yet\nthen something\n");
    session.close().await?;
    Ok(pod.remove().await?)
}

async fn standard_output_and_standard_error_are_separate(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "streams").await?;
    let (status, said, complaint) = ends(case, &pod, &module(PROGRAM, ["streams"])).await?;
    assert_eq!(status.exit_code, 0);
    let expected = |name: &str| -> String { (0..10_000).map(|number| format!("{name} {number}\n")).collect() };
    ensure!(said == expected("standard output"), "{} bytes of standard output", said.len());
    ensure!(complaint == expected("standard error"), "{} bytes of standard error", complaint.len());
    Ok(pod.remove().await?)
}

/// A container with a fresh folder as `/data`, and another as `/other`.
fn with_data<const N: usize>(scratch: &Scratch, words: [&str; N]) -> Result<ContainerSpec> {
    for name in ["data", "other"] {
        fs::create_dir_all(scratch.path().join(name))?;
    }
    Ok(module(PROGRAM, words).mount(&scratch.join("data"), "/data").mount(&scratch.join("other"), "/other"))
}

async fn files_are_written_and_read_back(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "files").await?;
    let expected = match engine {
        // Of several parts it writes the first that is not empty, which is allowed. It reserves no
        // space, and has no name for the kernel's refusal.
        Engine::Wasmtime => "of a write in parts: 3 bytes\nreserving space: Not supported\nrenaming to another volume: I/O error\n",
        Engine::WasmEdge => "of a write in parts: 6 bytes\nreserving space: done\nrenaming to another volume: Cross-device link\n",
    };
    let scratch = Scratch::new()?;
    assert_eq!(holds(case, &pod, &with_data(&scratch, ["files", "/data", "/other/file"])?).await?, expected);
    let names = fs::read_dir(scratch.path().join("data"))?.map(|entry| Ok(entry?.file_name()));
    assert_eq!(names.collect::<Result<Vec<_>>>()?, ["größe"]);
    assert_eq!(fs::read_to_string(scratch.path().join("data/größe"))?, "line 1\nline 2\n");
    // In the container's own files as in a volume's.
    assert_eq!(holds(case, &pod, &with_data(&scratch, ["files", "/tmp", "/other/file"])?).await?, expected);
    Ok(pod.remove().await?)
}

async fn directories_are_made_and_listed(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "directories").await?;
    let scratch = Scratch::new()?;
    let said = holds(case, &pod, &with_data(&scratch, ["directories", "/data"])?).await?;
    let expected = [
        "out of an open directory: Operation not permitted",
        "out of it from below: Operation not permitted",
        "out of it by a link: Operation not permitted",
        "unlinking a directory: Is a directory",
    ];
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
    assert_eq!(fs::read_dir(scratch.path().join("data"))?.count(), 0);
    Ok(pod.remove().await?)
}

async fn unusual_names_and_all_file_types_are_listed(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "list").await?;
    let scratch = Scratch::new()?;
    let data = scratch.path();
    let long = "n".repeat(255);
    fs::write(data.join("a\tname with \u{1f980}"), "")?;
    fs::create_dir(data.join(&long))?;
    symlink("absent", data.join("link"))?;
    mkfifo(&data.join("pipe"), Mode::S_IRWXU)?;
    let listed = async || -> Result<Vec<String>> {
        let said = holds(case, &pod, &module(PROGRAM, ["list", "/data"]).mount(&scratch.join(""), "/data")).await?;
        let mut lines: Vec<_> = said.lines().filter(|line| !line.starts_with('.')).map(String::from).collect();
        lines.sort();
        Ok(lines)
    };
    let long = format!("{long}: directory");
    let mut expected = vec!["a\tname with \u{1f980}: file", "end: done", "link: link", &long, "pipe: something else"];
    assert_eq!(listed().await?, expected);

    // All text in WASI is UTF-8. WasmEdge leaves to the module what is not; Wasmtime then lists
    // nothing of the directory.
    fs::write(data.join(OsStr::from_bytes(b"\xff")), "")?;
    match engine {
        Engine::Wasmtime => expected = vec!["opendir: Illegal byte sequence"],
        Engine::WasmEdge => expected.push("\u{fffd}: file"),
    }
    assert_eq!(listed().await?, expected);
    Ok(pod.remove().await?)
}

async fn links_are_followed(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "links").await?;
    let scratch = Scratch::new()?;
    let said = holds(case, &pod, &with_data(&scratch, ["links", "/data"])?).await?;
    let expected = match engine {
        Engine::Wasmtime => [
            "a file as a directory: Not a directory",
            "a new file in place of a link: File exists",
            "which has made one: No such file or directory",
            "renamed: the link",
            "linked: the link",
            "making an absolute link: Operation not permitted",
            "making a link that leads out: done",
        ],
        // It follows links by itself, also where POSIX has none followed: where a file must be new,
        // and where one is renamed.
        Engine::WasmEdge => [
            "a file as a directory: Not a directory",
            "a new file in place of a link: done",
            "which has made one: done",
            "renamed: its target",
            "linked: the link",
            "making an absolute link: Operation not permitted",
            "making a link that leads out: Operation not permitted",
        ],
    };
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
    Ok(pod.remove().await?)
}

async fn no_path_leads_out_of_a_modules_root(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "out").await?;
    let scratch = Scratch::new()?;
    let refused = [
        "/../modules/text.wasm",
        "/data/../../modules/text.wasm",
        "/data/climb",
        "/data/folder/passwd",
        // What it says is below the root, but WASI knows no absolute links.
        "/data/absolute",
    ];
    let inside = ["/data/back", "/data/../modules/text.wasm"];
    let spec = with_data(&scratch, ["show"])?.edit(|config| config.args = refused.into_iter().chain(inside).map(String::from).collect());
    let data = scratch.path().join("data");
    symlink("../../../../../../../../etc/passwd", data.join("climb"))?;
    symlink("/etc", data.join("folder"))?;
    symlink("/modules/text.wasm", data.join("absolute"))?;
    symlink("../modules/text.wasm", data.join("back"))?;
    let said = holds(case, &pod, &spec).await?;
    let refused = refused.iter().map(|path| format!("{path}: Operation not permitted"));
    let inside = inside.iter().map(|path| format!("{path}: it says no module"));
    assert_eq!(said.lines().collect::<Vec<_>>(), refused.chain(inside).collect::<Vec<_>>());
    Ok(pod.remove().await?)
}

/// What `change` tries, in its order.
const CHANGES: [&str; 10] = ["write", "truncate", "create", "set times", "mkdir", "rmdir", "symlink", "link", "rename", "unlink"];

/// A folder as `change` wants it.
fn to_be_changed(scratch: &Scratch) -> Result<ContainerSpec> {
    let spec = with_data(scratch, ["change", "/fixed"])?;
    let data = scratch.path().join("data");
    fs::create_dir(data.join("directory"))?;
    fs::write(data.join("file"), "content\n")?;
    Ok(spec)
}

fn is_unchanged(scratch: &Scratch) -> Result<()> {
    let data = scratch.path().join("data");
    assert_eq!(fs::read_to_string(data.join("file"))?, "content\n");
    assert_eq!((fs::read_dir(&data)?.count(), data.join("directory").is_dir()), (2, true));
    Ok(())
}

async fn a_read_only_volume_cannot_be_changed(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "read-only").await?;
    let scratch = Scratch::new()?;
    let spec = to_be_changed(&scratch)?.mount_read_only(&scratch.join("data"), "/fixed");
    let said = holds(case, &pod, &spec).await?;
    // Wasmtime's WASI 0.2, which its preview 1 is built on, has no name for the kernel's refusal.
    let refusal = if engine == Engine::Wasmtime { "I/O error" } else { "Read-only file system" };
    assert_eq!(said.lines().collect::<Vec<_>>(), CHANGES.map(|change| format!("{change}: {refusal}")));
    is_unchanged(&scratch)?;
    let show = module(PROGRAM, ["show", "/fixed/file"]).mount_read_only(&scratch.join("data"), "/fixed");
    assert_eq!(holds(case, &pod, &show).await?, "/fixed/file: it says content\n");

    // All of it is done where the volume is not read-only; the last one finds the file renamed.
    let spec = module(PROGRAM, ["change", "/fixed"]).mount(&scratch.join("data"), "/fixed");
    let said = holds(case, &pod, &spec).await?;
    let results = CHANGES.map(|change| format!("{change}: {}", if change == "unlink" { "No such file or directory" } else { "done" }));
    assert_eq!(said.lines().collect::<Vec<_>>(), results);
    Ok(pod.remove().await?)
}

/// What a user gets to hear who may not change anything there.
fn denied(engine: Engine) -> [String; 10] {
    CHANGES.map(|change| match change {
        // It asks for the time that it is, and not for now, which the kernel leaves to the owner.
        "set times" if engine == Engine::Wasmtime => "set times: Operation not permitted".into(),
        // By the sysctl fs.protected_hardlinks, which distributions set.
        "link" => "link: Operation not permitted".into(),
        _ => format!("{change}: Permission denied"),
    })
}

async fn files_of_an_unmapped_owner_cannot_be_changed(case: &Case, engine: Engine) -> Result<()> {
    let spec = PodSpec::new("namespace", engine.handler()).own_pid().user_namespace(100_000, 65_536);
    let pod = case.node().run_pod(&spec).await?;
    let scratch = Scratch::new()?;
    let spec = to_be_changed(&scratch)?.mount(&scratch.join("data"), "/fixed");
    for name in ["data", "data/file", "data/directory"] {
        chown(scratch.path().join(name), Some(4_000_000), Some(4_000_000))?;
        fs::set_permissions(scratch.path().join(name), fs::Permissions::from_mode(0o755))?;
    }
    let said = holds(case, &pod, &spec).await?;
    assert_eq!(said.lines().collect::<Vec<_>>(), denied(engine));
    is_unchanged(&scratch)?;
    Ok(pod.remove().await?)
}

async fn file_permissions_apply_to_the_containers_user(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "user").await?;
    let scratch = Scratch::new()?;
    let spec = to_be_changed(&scratch)?.mount(&scratch.join("data"), "/fixed").user(1000);
    let (data, file) = (scratch.path().join("data"), scratch.path().join("data/file"));
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
    let said = holds(case, &pod, &spec).await?;
    assert_eq!(said.lines().collect::<Vec<_>>(), denied(engine));
    is_unchanged(&scratch)?;

    let show = || module(PROGRAM, ["show", "/fixed/file"]).mount(&scratch.join("data"), "/fixed").user(1000);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    assert_eq!(holds(case, &pod, &show()).await?, "/fixed/file: Permission denied\n");
    chown(&file, Some(1000), Some(1000))?;
    assert_eq!(holds(case, &pod, &show()).await?, "/fixed/file: it says content\n");
    Ok(pod.remove().await?)
}

fn nanoseconds() -> Result<u128> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())
}

async fn clocks_tell_the_time(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "clocks").await?;
    let before = nanoseconds()?;
    let told: u128 = area(case, &pod, ["clocks"]).await?.trim().parse()?;
    let after = nanoseconds()?;
    ensure!(before < told && told < after, "{told} is not between {before} and {after}");
    Ok(pod.remove().await?)
}

async fn random_numbers_are_random(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "chance").await?;
    area(case, &pod, ["chance"]).await?;
    Ok(pod.remove().await?)
}

async fn a_timer_waits_for_its_duration(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "waiting").await?;
    area(case, &pod, ["waiting"]).await?;
    Ok(pod.remove().await?)
}

async fn memory_can_be_used_up_to_the_limit(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "memory").await?;
    let take = |size: &'static str| module(PROGRAM, ["memory", size]).memory(128 << 20);
    assert_eq!(holds(case, &pod, &take("64")).await?, "taken\n");
    let (status, said, complaint) = ends(case, &pod, &take("256")).await?;
    ensure!(status.reason != "OOMKilled", "the kernel was first");
    match engine {
        Engine::Wasmtime => {
            assert_eq!((status.exit_code, said.as_str()), (engine.trapped(), ""));
            ensure!(complaint.contains("out of memory"), "{complaint:?}");
        }
        // It tells the module, which may do without.
        Engine::WasmEdge => assert_eq!((status.exit_code, said.as_str(), complaint.as_str()), (0, "refused\n", "")),
    }
    Ok(pod.remove().await?)
}

async fn a_deep_stack_and_floating_point_numbers_work(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "numbers").await?;
    area(case, &pod, ["stack"]).await?;
    area(case, &pod, ["numbers", "3"]).await?;
    Ok(pod.remove().await?)
}

async fn the_exit_code_of_a_module_is_that_of_its_container(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "endings").await?;
    let expected: [(&[&str], i32, &str); 5] = [
        (&["0"], 0, ""),
        (&["4"], 4, ""),
        (&["ending", "0"], 0, "in a buffer, said at the end"),
        (&["ending", "125"], 125, "in a buffer, said at the end"),
        (&["at-once", "5"], 5, ""),
    ];
    let spec = |words: &[&str]| module(PROGRAM, []).edit(|config| config.args = words.iter().map(ToString::to_string).collect());
    for (words, code, text) in expected {
        let (status, said, complaint) = ends(case, &pod, &spec(words)).await?;
        assert_eq!((status.exit_code, said.trim_end(), complaint.as_str()), (code, text, ""), "{words:?}");
    }
    // The last ones as the kernel does with them.
    for (word, code) in [("126", 126), ("255", 255), ("258", 2), ("-1", 255)] {
        let (status, said, complaint) = ends(case, &pod, &spec(&["ending", word])).await?;
        assert_eq!((status.exit_code, said.trim_end(), complaint.as_str()), (code, "in a buffer, said at the end", ""), "{word}");
    }
    Ok(pod.remove().await?)
}

async fn the_cause_of_a_trap_is_in_the_log(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "traps").await?;
    for (cause, word) in
        [("abort", "unreachable"), ("divide", "divide by zero"), ("bounds", "out of bounds"), ("call", "undefined element")]
    {
        let (status, _, complaint) = ends(case, &pod, &module(PROGRAM, ["trap", cause])).await?;
        ensure!(status.exit_code == engine.trapped() && complaint.contains(word), "{cause}: {} {complaint:?}", status.exit_code);
    }
    Ok(pod.remove().await?)
}
