// SPDX-License-Identifier: Apache-2.0
//! Language models for modules: `wasi_ephemeral_nn`, as a program in C uses it
//! (images/oci/wasm/nn/nn.c), with a tiny model.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, ensure};
use magnetar_cri::{ContainerSpec, Pod, v1::ContainerState};
use magnetar_e2e::{Case, Scratch, eventually, on_node, taken_over::TakenOver};
use nix::{errno::Errno, libc};
use rustix::process::{Pid, Signal, kill_process};

use super::compromised::{gets_at, landlock, refused};
use super::engine::{Engine, ends, module, on_each_engine, pod, running};

/// The model, in the checkout as a node sees it.
pub const MODEL: &str = "/magnetar/images/llm/model/tiny.gguf";

/// Where containers have it.
const PATH: &str = "/models/tiny.gguf";

on_each_engine! {
    a_question_is_answered_piece_by_piece,
    a_question_is_answered_at_once,
    questions_follow_each_other_in_one_context,
    a_module_logs_lines_with_levels,
    a_text_has_an_embedding,
    several_questions_are_answered_at_the_same_time,
    what_an_application_gets_wrong_is_refused,
    a_prompt_that_is_too_long_and_a_full_context_have_their_codes,
    a_container_without_a_model_has_no_engine,
    a_model_that_is_not_there_is_named_when_the_container_is_made,
    a_file_that_is_no_model_is_refused_with_a_reason,
    a_model_larger_than_the_containers_memory_is_refused,
    a_model_that_takes_long_to_load_says_how_far_it_is,
    an_engine_that_is_killed_ends_its_container_alone,
    an_engine_ends_with_its_container,
    an_engine_has_nothing_of_the_host,
    an_engine_that_was_taken_over_reaches_nothing,
    an_engine_has_the_graphics_processor_of_its_container,
}

fn named(file: &str, args: &[&str]) -> ContainerSpec {
    let preload = format!("default:GGML:CPU:{PATH} embed:GGML:CPU:{PATH}");
    let words = ["/modules/nn.wasm"].iter().chain(args).map(ToString::to_string);
    one_processor(module("nn.wasm", []).command(words).mount_read_only(file, PATH).env("WASMEDGE_WASINN_PRELOAD", &preload))
}

/// Limits a container to one processor, so that the engine of its model has one thread: several
/// wait for each other by spinning, and tests run beside others.
pub fn one_processor(spec: ContainerSpec) -> ContainerSpec {
    spec.resources(|limits| (limits.cpu_quota, limits.cpu_period) = (100_000, 100_000))
}

pub fn question(text: &str) -> String {
    format!("<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
}

/// Runs an area to its end, which is with 0, and returns what it printed.
async fn area(case: &Case, pod: &Pod, args: &[&str]) -> Result<String> {
    let (status, said, complaint) = ends(case, pod, &named(MODEL, args)).await?;
    ensure!(status.exit_code == 0 && complaint.is_empty(), "exit code {}: {said}{complaint}", status.exit_code);
    Ok(said)
}

async fn a_question_is_answered_piece_by_piece(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "nn-ask").await?;
    let said = area(case, &pod, &["ask", "default", &question("What is the capital of France?"), "{\"temp\":0,\"n-predict\":64}"]).await?;
    let lines: Vec<_> = said.lines().collect();
    ensure!(lines[0].contains("Paris") && lines[1] == "100 after several pieces", "{said}");
    let usage: serde_json::Value = serde_json::from_str(lines[2])?;
    ensure!(usage["input_tokens"].as_u64() > Some(10) && usage["output_tokens"].as_u64() > Some(5), "{said}");
    Ok(pod.remove().await?)
}

async fn a_question_is_answered_at_once(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "nn-whole").await?;
    let said = area(case, &pod, &["whole", "default", &question("What is 2 plus 3?"), "{\"temp\":0}"]).await?;
    let lines: Vec<_> = said.lines().collect();
    ensure!(lines[0].contains("\"output_tokens\":0"), "its tokens are counted before: {said}");
    ensure!(lines[1].starts_with("0: ") && lines[1].contains('5') && !lines[2].contains("\"output_tokens\":0"), "{said}");
    Ok(pod.remove().await?)
}

/// With the numbers by which LlamaEdge says that there is no limit.
async fn questions_follow_each_other_in_one_context(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "nn-turns").await?;
    let said = area(case, &pod, &["turns", "default", &question("What is 2 plus 3?"), &question("What is the capital of France?")]).await?;
    let lines: Vec<_> = said.lines().collect();
    ensure!(lines.len() == 2 && lines.iter().all(|line| line.starts_with("100: ")), "{said}");
    ensure!(lines[0].contains('5') && lines[1].contains("Paris") && !lines[1].contains('5'), "{said}");
    Ok(pod.remove().await?)
}

async fn a_module_logs_lines_with_levels(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "nn-log").await?;
    let levels = ["trace", "debug", "info", "warn", "error", "critical"];
    for (context, words, is_output) in [("stdout", "", true), ("stderr", "", false), ("/etc/passwd", "/etc/passwd: ", false)] {
        let (status, said, log) = ends(case, &pod, &module("nn.wasm", ["log", context, "hello"])).await?;
        ensure!(status.exit_code == engine.trapped(), "the last level is none: {}", status.exit_code);
        let lines: String = levels.iter().map(|level| format!("[{level}] {words}hello\n")).collect();
        ensure!(if is_output { said == lines } else { said.is_empty() && log.starts_with(&lines) }, "{said}{log}");
        ensure!(log.contains("log: 6 is no level"), "{log}");
    }
    Ok(pod.remove().await?)
}

async fn a_text_has_an_embedding(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "nn-embed").await?;
    let mut embeddings = Vec::new();
    for text in ["The capital of France.", "The capital of France.", "The capital of Peru."] {
        let said: serde_json::Value = serde_json::from_str(&area(case, &pod, &["embed", "embed", text]).await?)?;
        let numbers: Vec<f64> = serde_json::from_value(said["embedding"].clone())?;
        ensure!(said["n_embedding"] == numbers.len() && numbers.len() > 16, "{said}");
        embeddings.push(numbers);
    }
    ensure!(embeddings[0] == embeddings[1] && embeddings[0] != embeddings[2]);
    Ok(pod.remove().await?)
}

async fn several_questions_are_answered_at_the_same_time(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "nn-several").await?;
    let questions = ["What is the capital of France?", "What is 2 plus 3?", "Count from 1 to 5.", "Who are you?"].map(question);
    let [one, two, three, four] = questions.each_ref().map(String::as_str);
    let said = area(case, &pod, &["several", "default", one, two, three, four]).await?;
    let lines: Vec<_> = said.lines().collect();
    for (line, word) in lines.iter().zip(["Paris", "5", "4", "Tiny"]) {
        ensure!(line.contains(word), "{word}: {said}");
    }
    assert_eq!(lines.len(), 4);
    Ok(pod.remove().await?)
}

async fn what_an_application_gets_wrong_is_refused(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "nn-refused").await?;
    let (status, said, log) = ends(case, &pod, &named(MODEL, &["refused", "default", PATH])).await?;
    ensure!(status.exit_code == 0 && said == "refused\n", "exit code {}: {said}{log}", status.exit_code);
    for word in ["names no model \"nonesuch\"; it names default, embed", "no model with the path /nonesuch", "temp: \"hot\""] {
        ensure!(log.contains(word), "{word}: {log}");
    }
    Ok(pod.remove().await?)
}

async fn a_prompt_that_is_too_long_and_a_full_context_have_their_codes(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "nn-long").await?;
    let long = "one two three ".repeat(200);
    let said = area_with_log(case, &pod, &["whole", "default", &long, "{\"ctx-size\":128}"], "exceeds the available context size").await?;
    ensure!(said.contains("102: "), "{said}");
    // A grammar without an end, so that the answer has none.
    let endless = "{\"ctx-size\":256,\"grammar\":\"root ::= \\\"a\\\" root\"}";
    let said = area(case, &pod, &["ask", "default", &question("Count."), endless]).await?;
    ensure!(said.contains("101 after several pieces"), "{said}");
    Ok(pod.remove().await?)
}

/// [`area`] that has a line with these words in its log.
async fn area_with_log(case: &Case, pod: &Pod, args: &[&str], words: &str) -> Result<String> {
    let (status, said, log) = ends(case, pod, &named(MODEL, args)).await?;
    ensure!(status.exit_code == 0 && log.contains(words), "exit code {}: {said}{log}", status.exit_code);
    Ok(said)
}

async fn a_container_without_a_model_has_no_engine(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "nn-none").await?;
    let (status, said, log) = ends(case, &pod, &module("nn.wasm", ["load", "default"])).await?;
    ensure!((status.exit_code, said.as_str()) == (0, "8\n"), "{} {said}{log}", status.exit_code);
    ensure!(log.contains("it names none: set WASMEDGE_WASINN_PRELOAD"), "{log}");
    ensure!(!case.state_dir(&pod).join("models").exists());
    Ok(pod.remove().await?)
}

async fn a_model_that_is_not_there_is_named_when_the_container_is_made(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "nn-absent").await?;
    let none = module("nn.wasm", ["load", "default"]).env("WASMEDGE_WASINN_PRELOAD", "default:GGML:CPU:/models/none.gguf");
    let error = refusal(pod.run(&none).await);
    ensure!(error.contains("the model default of the container: there is no file /models/none.gguf"), "{error}");
    let wrong = module("nn.wasm", ["load", "default"]).env("io.kuasar.wasm.nn_preload", "default:OpenVINO:CPU:/m");
    let error = refusal(pod.run(&wrong).await);
    ensure!(error.contains("models are of the encoding GGML, and not OpenVINO"), "{error}");
    Ok(pod.remove().await?)
}

pub fn refusal<T>(made: std::result::Result<T, magnetar_cri::Error>) -> String {
    made.err().map(|error| error.to_string()).unwrap_or_default()
}

async fn a_file_that_is_no_model_is_refused_with_a_reason(case: &Case, engine: Engine) -> Result<()> {
    let (pod, scratch) = (pod(case, engine, "nn-broken").await?, Scratch::new()?);
    let whole = fs::read(MODEL)?;
    for (name, bytes) in [("text", &b"no model at all"[..]), ("cut", &whole[..whole.len() / 2]), ("head", &whole[..64])] {
        let file = scratch.join(name);
        fs::write(&file, bytes)?;
        let (status, said, log) = ends(case, &pod, &named(&file, &["load", "default"])).await?;
        ensure!((status.exit_code, said.as_str()) == (0, "103\n"), "{name}: {} {said}{log}", status.exit_code);
        ensure!(log.contains("the model default (/models/tiny.gguf) cannot be loaded: "), "{name}: {log}");
        ensure!(["error loading model", "failed to read"].iter().any(|reason| log.contains(reason)), "{name}: {log}");
    }
    let secret = scratch.join("secret");
    fs::write(&secret, &whole)?;
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let (_, said, log) = ends(case, &pod, &named(&secret, &["load", "default"])).await?;
    ensure!(
        said == "103\n"
            && log.contains("the model default has the mode 0600: its engine runs as a user of its own, who may not read it: chmod o+r"),
        "{said}{log}"
    );
    Ok(pod.remove().await?)
}

async fn a_model_larger_than_the_containers_memory_is_refused(case: &Case, engine: Engine) -> Result<()> {
    let (pod, scratch) = (pod(case, engine, "nn-large").await?, Scratch::new()?);
    let file = scratch.join("large");
    fs::copy(MODEL, &file)?;
    // With a hole at its end, which takes no room.
    fs::OpenOptions::new().append(true).open(&file)?.set_len(256 << 20)?;
    let spec = named(&file, &["load", "default"]).memory(64 << 20);
    let (_, said, log) = ends(case, &pod, &spec).await?;
    let reason = "MiB: 256 for its file, 2 for a context of 1024 tokens, 18 to compute; the container's memory limit is 64 MiB";
    ensure!(said == "103\n" && log.contains(reason), "{said}{log}");
    let spec = named(MODEL, &["whole", "default", "Count.", "{\"ctx-size\":1000000}"]).memory(64 << 20);
    let (status, _, log) = ends(case, &pod, &spec).await?;
    ensure!(status.exit_code == 1 && log.contains("1954 for a context of 1000000 tokens"), "{log}");
    Ok(pod.remove().await?)
}

async fn a_model_that_takes_long_to_load_says_how_far_it_is(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "nn-slow").await?;
    // An engine takes as long to load its model as it is stopped. The model is so small that one
    // may have loaded it before.
    for _ in 0..20 {
        let container = pod.run(&named(MODEL, &["load", "default"])).await?;
        let server = loop {
            match servers()?.first() {
                Some(server) => break Some(*server),
                None if container.status().await?.state() == ContainerState::ContainerExited => break None,
                None => {}
            }
        };
        let _has_ended = server.map(|server| kill_process(server, Signal::STOP));
        let says_it = || Ok::<_, anyhow::Error>(container.log()?.stderr().contains("the model default is being loaded: about "));
        let told = eventually("the container says something or ends", case.soon(), async || {
            let has_ended = container.status().await?.state() == ContainerState::ContainerExited;
            Ok(if says_it()? { Some(true) } else { has_ended.then_some(false) })
        })
        .await;
        let _has_ended = server.map(|server| kill_process(server, Signal::CONT));
        if told? {
            assert_eq!(container.exited(case.soon()).await?.exit_code, 0);
            assert_eq!(case.whole_log(&container).await?.stdout(), "0\n");
            return Ok(pod.remove().await?);
        }
        container.remove().await?;
    }
    anyhow::bail!("no engine was stopped before it had loaded its model")
}

async fn an_engine_that_is_killed_ends_its_container_alone(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "nn-killed").await?;
    let other = running(case, &pod, &module("spin.wat", [])).await;
    let container = running(case, &pod, &named(MODEL, &["hold", "default"]).stdin(true)).await?;
    let [server] = servers()?[..] else { anyhow::bail!("not one engine: {:?}", servers()?) };
    kill_process(server, Signal::KILL)?;
    let status = container.exited(case.soon()).await?;
    let log = case.whole_log(&container).await?.stderr();
    ensure!(status.exit_code == 1, "{}", status.exit_code);
    ensure!(log.contains("the engine of the model default has died: llama-server was ended by signal 9"), "{log}");
    if let Ok(other) = other {
        ensure!(other.status().await?.state() == ContainerState::ContainerRunning);
    }
    Ok(pod.remove().await?)
}

async fn an_engine_ends_with_its_container(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "nn-ends").await?;
    let container = running(case, &pod, &named(MODEL, &["hold", "default"]).stdin(true)).await?;
    ensure!(servers()?.len() == 1);
    container.stop(0).await?;
    eventually("the engine ends", case.soon(), async || Ok(servers()?.is_empty().then_some(()))).await?;
    let folder = case.state_dir(&pod).join("models");
    eventually("its folder is removed", case.soon(), async || Ok(fs::read_dir(&folder)?.next().is_none().then_some(()))).await?;
    Ok(pod.remove().await?)
}

async fn an_engine_has_nothing_of_the_host(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "nn-walls").await?;
    let container = running(case, &pod, &named(MODEL, &["hold", "default"]).stdin(true)).await?;
    let [server] = servers()?[..] else { anyhow::bail!("not one engine: {:?}", servers()?) };
    let process = format!("/proc/{}", server.as_raw_nonzero());
    let status = fs::read_to_string(format!("{process}/status"))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:"), field("Groups:")), ("1".into(), "2".into(), String::new()));
    ensure!(field("Uid:").split('\t').all(|id| id.parse().is_ok_and(|id: u32| id >= 2_000_000_000)), "{status}");
    // Its own PID namespace, and the container's cgroup.
    ensure!(field("NSpid:").split('\t').count() > 1, "{status}");
    let cgroup = fs::read_to_string(format!("{process}/cgroup"))?;
    ensure!(cgroup.contains(container.id()), "{cgroup}");
    let mut open: Vec<_> = fs::read_dir(format!("{process}/fd"))?
        .map(|fd| Ok(fs::read_link(fd?.path())?.to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    open.retain(|file| !["/dev/null", "pipe:", "socket:", "anon_inode:"].iter().any(|own| file.starts_with(own)));
    let expected = |file: &String| Path::new(file).starts_with(case.state_dir(&pod)) || file.ends_with("tiny.gguf");
    ensure!(open.iter().all(expected), "{open:?}");
    let arguments = fs::read_to_string(format!("{process}/cmdline"))?;
    let has_one_thread = arguments.split('\0').collect::<Vec<_>>().windows(2).any(|pair| pair == ["--threads", "1"]);
    ensure!(has_one_thread, "it has the container's one processor: {arguments:?}");
    Ok(pod.remove().await?)
}

/// No test machine has a graphics processor: /dev/full stands for one, by its number.
async fn an_engine_has_the_graphics_processor_of_its_container(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "nn-device").await?;
    let spec = named(MODEL, &["hold", "default"]).stdin(true).device("/dev/full", "/dev/dri/renderD128", "rw");
    let container = running(case, &pod, &spec.device("/dev/full", "/dev/other", "rw")).await?;
    let [server] = servers()?[..] else { anyhow::bail!("not one engine: {:?}", servers()?) };
    {
        let mut taken = TakenOver::begin(server.as_raw_nonzero().get())?;
        let mut open = |path: &str| -> Result<_> {
            let text = taken.text(path)?;
            taken.call(libc::SYS_openat, [libc::AT_FDCWD as u64, text, libc::O_RDWR as u64, 0, 0, 0])
        };
        ensure!(open("/dev/dri/renderD128")?.is_ok(), "{:?}", open("/dev/dri/renderD128")?);
        for path in ["/dev/other", "/dev/full", "/dev/mem"] {
            refused(path, open(path)?, &[Errno::ENOENT])?;
        }
        for family in [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_VSOCK] {
            let socket = taken.call(libc::SYS_socket, [family as u64, libc::SOCK_DGRAM as u64, 0, 0, 0, 0])?;
            refused("a socket that leaves the host", socket, &[Errno::EPERM])?;
        }
    }
    ensure!(container.status().await?.state() == ContainerState::ContainerRunning);
    Ok(pod.remove().await?)
}

async fn an_engine_that_was_taken_over_reaches_nothing(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "nn-taken").await?;
    let container = running(case, &pod, &named(MODEL, &["hold", "default"]).stdin(true)).await?;
    let [server] = servers()?[..] else { anyhow::bail!("not one engine: {:?}", servers()?) };
    let mut free = Command::new("sleep").arg("60").spawn()?;
    let has_landlock = landlock(free.id() as i32);
    free.kill()?;
    free.wait()?;
    let has_landlock = has_landlock?;
    {
        let mut taken = TakenOver::begin(server.as_raw_nonzero().get())?;
        gets_at(&mut taken, std::process::id() as i32, &[Errno::ENOSYS])?;
        for (what, call) in [
            ("unshare", libc::SYS_unshare),
            ("setns", libc::SYS_setns),
            ("mount", libc::SYS_mount),
            ("keyctl", libc::SYS_keyctl),
            ("kill", libc::SYS_kill),
            ("chmod", libc::SYS_fchmodat),
        ] {
            refused(what, taken.call(call, [0; 6])?, &[Errno::ENOSYS])?;
        }
        for family in [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_VSOCK, libc::AF_PACKET] {
            let socket = taken.call(libc::SYS_socket, [family as u64, libc::SOCK_DGRAM as u64, 0, 0, 0, 0])?;
            refused("a socket that leaves the host", socket, &[Errno::ENOSYS])?;
        }
        // Without Landlock, which some kernels lack, the rights of users are what is left.
        if has_landlock {
            for path in ["/etc/passwd", "/proc/self/status", "/proc/1/cmdline", "/tmp/made"] {
                let text = taken.text(path)?;
                let flags = if path == "/tmp/made" { libc::O_CREAT | libc::O_WRONLY } else { libc::O_RDONLY };
                let opened = taken.call(libc::SYS_openat, [libc::AT_FDCWD as u64, text, flags as u64, 0o600, 0, 0])?;
                refused(path, opened, &[Errno::EACCES])?;
            }
        }
    }
    ensure!(container.status().await?.state() == ContainerState::ContainerRunning);
    Ok(pod.remove().await?)
}

/// The engines on the node.
fn servers() -> Result<Vec<Pid>> {
    let is_one = |process: &fs::DirEntry| fs::read_to_string(process.path().join("comm")).is_ok_and(|name| name == "llama-server\n");
    let processes = fs::read_dir("/proc")?.filter_map(|process| process.ok().filter(is_one));
    Ok(processes.filter_map(|process| Pid::from_raw(process.file_name().to_str()?.parse().ok()?)).collect())
}

#[test]
fn a_pods_annotation_names_a_model() {
    on_node(async |case| {
        let spec = magnetar_cri::PodSpec::new("nn-annotated", Engine::Wasmtime.handler()).own_pid().edit(|config| {
            config.annotations.insert("io.magnetar.wasm.nn-preload".into(), format!("default:GGML:AUTO:{PATH}"));
        });
        let pod = case.node().run_pod(&spec).await?;
        let (status, said, log) = ends(case, &pod, &module("nn.wasm", ["load", "default"]).mount_read_only(MODEL, PATH)).await?;
        ensure!((status.exit_code, said.as_str()) == (0, "0\n"), "{} {said}{log}", status.exit_code);
        Ok(pod.remove().await?)
    });
}
