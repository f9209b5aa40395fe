// SPDX-License-Identifier: Apache-2.0
//! A pod's own socket, without containerd in between: what containerd would never ask, somebody
//! else may, and every refusal has the code that containerd acts on.

use std::{fs, os::unix::fs::symlink, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use containerd_shim_protos::{
    api::{CloseIORequest, CreateTaskRequest, Mount, PidsRequest, ResizePtyRequest, Status, UpdateTaskRequest},
    protobuf::well_known_types::any::Any,
};
use magnetar_e2e::{eventually, on_magnetar, on_magnetar_with_shared_kernel};
use nix::{sys::stat::Mode, unistd::mkfifo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};
use ttrpc::Code;

use crate::bench::{Bench, patience, socket};

const OURS: &str = "only our pods have a socket that is known to us";

/// The answer must be a refusal with this code and all of these words.
fn refuses<T: std::fmt::Debug>(answer: ttrpc::Result<T>, code: Code, words: &[&str]) -> Result<()> {
    match answer {
        Err(ttrpc::Error::RpcStatus(status)) => {
            ensure!(status.code.enum_value() == Ok(code), "the code is {:?}, not {code:?}: {}", status.code, status.message);
            let missing = words.iter().find(|&&word| !status.message.contains(word));
            ensure!(missing.is_none(), "the refusal does not say {missing:?}: {}", status.message);
            Ok(())
        }
        other => bail!("not a refusal: {other:?}"),
    }
}

#[test]
fn a_container_lives_from_create_to_delete() {
    on_magnetar(OURS, async |case| {
        let bench = Bench::new(case).await?;
        bench.create("life", "bundle").await?;
        assert_eq!(bench.state("life").await?, Status::CREATED);
        let pid = bench.start("life").await?;
        assert_eq!(bench.state("life").await?, Status::RUNNING);
        let pids = bench.task.pids(patience(), &PidsRequest { id: "life".to_owned(), ..Default::default() }).await?;
        assert_eq!(pids.processes.iter().map(|p| p.pid).collect::<Vec<_>>(), [pid]);
        bench.kill("life").await?;
        assert_eq!(bench.wait("life").await?, 137);
        assert_eq!(bench.state("life").await?, Status::STOPPED);
        bench.delete("life").await?;
        refuses(bench.state("life").await, Code::NOT_FOUND, &["life"])?;
        bench.close(case).await
    });
}

#[test]
fn a_second_container_of_the_same_id_is_refused_and_the_first_runs_on() {
    on_magnetar(OURS, async |case| {
        let bench = Bench::new(case).await?;
        bench.write_bundle("other", "sleep 1000")?;
        bench.create("twin", "bundle").await?;
        bench.start("twin").await?;
        refuses(bench.create("twin", "other").await, Code::ALREADY_EXISTS, &["twin"])?;
        assert_eq!(bench.state("twin").await?, Status::RUNNING);
        bench.end("twin").await?;
        bench.close(case).await
    });
}

#[test]
fn ids_that_could_be_paths_are_refused() {
    on_magnetar(OURS, async |case| {
        let bench = Bench::new(case).await?;
        for id in ["", ".", "..", "../escape", "a/b", "/etc", "a/../../b", "-option", "a b", "a\0b", "a\nb", &"x".repeat(200)] {
            refuses(bench.create(id, "bundle").await, Code::INVALID_ARGUMENT, &[]).with_context(|| format!("create {id:?}"))?;
        }
        bench.create("good", "bundle").await?;
        bench.start("good").await?;
        for exec in ["..", "../escape", "a/b"] {
            refuses(bench.exec("good", exec).await, Code::INVALID_ARGUMENT, &[]).with_context(|| format!("exec {exec:?}"))?;
        }
        bench.end("good").await?;
        bench.close(case).await
    });
}

#[test]
fn every_call_for_an_unknown_container_returns_not_found() {
    on_magnetar(OURS, async |case| {
        let bench = Bench::new(case).await?;
        let id = || "nobody".to_owned();
        refuses(bench.state("nobody").await, Code::NOT_FOUND, &["nobody"])?;
        refuses(bench.start("nobody").await, Code::NOT_FOUND, &["nobody"])?;
        refuses(bench.kill("nobody").await, Code::NOT_FOUND, &["nobody"])?;
        refuses(bench.wait("nobody").await, Code::NOT_FOUND, &["nobody"])?;
        refuses(bench.delete("nobody").await, Code::NOT_FOUND, &["nobody"])?;
        refuses(bench.exec("nobody", "e").await, Code::NOT_FOUND, &["nobody"])?;
        let resize = ResizePtyRequest { id: id(), width: 80, height: 24, ..Default::default() };
        refuses(bench.task.resize_pty(patience(), &resize).await, Code::NOT_FOUND, &["nobody"])?;
        let close = CloseIORequest { id: id(), stdin: true, ..Default::default() };
        refuses(bench.task.close_io(patience(), &close).await, Code::NOT_FOUND, &["nobody"])?;
        bench.close(case).await
    });
}

#[test]
fn a_command_in_a_stopped_container_is_a_failed_precondition() {
    on_magnetar(OURS, async |case| {
        let bench = Bench::new(case).await?;
        bench.create("stopped", "bundle").await?;
        bench.start("stopped").await?;
        bench.kill("stopped").await?;
        bench.wait("stopped").await?;
        refuses(bench.exec("stopped", "late").await, Code::FAILED_PRECONDITION, &["stopped"])?;
        refuses(bench.start("stopped").await, Code::FAILED_PRECONDITION, &["stopped"])?;
        // To kill what is dead is what `kill` on a shell answers, too: there is no such process.
        refuses(bench.kill("stopped").await, Code::NOT_FOUND, &["stopped"])?;
        bench.delete("stopped").await?;
        bench.close(case).await
    });
}

/// containerd takes «not found», and no other refusal, for an end that it has not heard of yet.
#[test]
fn updating_limits_of_an_ended_container_returns_not_found() {
    on_magnetar(OURS, async |case| {
        let bench = Bench::new(case).await?;
        bench.create("ended", "bundle").await?;
        bench.start("ended").await?;
        let limits = || {
            let resources = Any { value: br#"{"pids":{"limit":100}}"#.to_vec(), ..Default::default() };
            UpdateTaskRequest { id: "ended".to_owned(), resources: Some(resources).into(), ..Default::default() }
        };
        bench.task.update(patience(), &limits()).await.context("while it runs")?;
        bench.kill("ended").await?;
        bench.wait("ended").await?;
        refuses(bench.task.update(patience(), &limits()).await, Code::NOT_FOUND, &["ended"])?;
        bench.delete("ended").await?;
        refuses(bench.task.update(patience(), &limits()).await, Code::NOT_FOUND, &["ended"])?;
        bench.close(case).await
    });
}

#[test]
fn a_running_container_cannot_be_deleted() {
    on_magnetar(OURS, async |case| {
        let bench = Bench::new(case).await?;
        bench.create("busy", "bundle").await?;
        bench.start("busy").await?;
        refuses(bench.delete("busy").await, Code::FAILED_PRECONDITION, &["busy"])?;
        assert_eq!(bench.state("busy").await?, Status::RUNNING);
        bench.end("busy").await?;
        bench.close(case).await
    });
}

#[test]
fn a_second_command_of_the_same_id_is_refused() {
    on_magnetar(OURS, async |case| {
        let bench = Bench::new(case).await?;
        bench.create("execs", "bundle").await?;
        bench.start("execs").await?;
        bench.exec("execs", "one").await?;
        refuses(bench.exec("execs", "one").await, Code::ALREADY_EXISTS, &["one"])?;
        bench.end("execs").await?;
        bench.close(case).await
    });
}

#[test]
fn a_bundle_that_is_missing_or_not_a_directory_is_refused() {
    on_magnetar(OURS, async |case| {
        let bench = Bench::new(case).await?;
        refuses(bench.create("nowhere", "missing").await, Code::NOT_FOUND, &["missing"])?;
        symlink(bench.scratch.path().join("bundle"), bench.scratch.path().join("link"))?;
        refuses(bench.create("linked", "link").await, Code::INVALID_ARGUMENT, &["link"])?;
        fs::write(bench.scratch.path().join("file"), "")?;
        refuses(bench.create("file", "file").await, Code::INVALID_ARGUMENT, &["file"])?;
        let relative = CreateTaskRequest { id: "relative".to_owned(), bundle: "bundle".to_owned(), ..Default::default() };
        refuses(bench.task.create(patience(), &relative).await, Code::INVALID_ARGUMENT, &["bundle"])?;
        // Whatever was refused can be asked for again in a better way.
        bench.create("linked", "bundle").await?;
        bench.start("linked").await?;
        bench.end("linked").await?;
        bench.close(case).await
    });
}

#[test]
fn an_unreadable_specification_is_refused() {
    on_magnetar(OURS, async |case| {
        let bench = Bench::new(case).await?;
        let bundle = bench.write_bundle("broken", "true")?;
        for text in ["", "{", "\"text\"", "{\"process\": 7}"] {
            fs::write(bundle.join("config.json"), text)?;
            refuses(bench.create("broken", "broken").await, Code::INVALID_ARGUMENT, &["config.json"])
                .with_context(|| format!("{text:?}"))?;
        }
        fs::remove_file(bundle.join("config.json"))?;
        refuses(bench.create("broken", "broken").await, Code::NOT_FOUND, &["config.json"])?;
        bench.close(case).await
    });
}

#[test]
fn a_root_filesystem_that_cannot_be_mounted_is_an_error_and_leaves_nothing() {
    on_magnetar(OURS, async |case| {
        let bench = Bench::new(case).await?;
        let mounts = [
            ("bind", "/nonexistent/root", vec!["rbind".to_owned()]),
            ("no-such-type", "none", vec![]),
            ("overlay", "overlay", vec!["lowerdir=/nonexistent".to_owned()]),
        ];
        for (kind, source, options) in mounts {
            let mut request = bench.request("rootless", "bundle");
            request.rootfs = vec![Mount { type_: kind.to_owned(), source: source.to_owned(), options, ..Default::default() }];
            match bench.task.create(patience(), &request).await {
                Err(ttrpc::Error::RpcStatus(status)) => {
                    ensure!(status.message.contains("rootfs") || status.message.contains(source), "{kind}: {}", status.message)
                }
                other => bail!("{kind}: not a refusal: {other:?}"),
            }
        }
        fs::remove_dir_all(bench.scratch.path().join("bundle/rootfs"))?;
        ensure!(bench.create("rootless", "bundle").await.is_err(), "a container without a root filesystem was made");
        bench.close(case).await
    });
}

#[test]
fn a_program_keeps_running_when_the_reader_of_its_pipe_is_gone() {
    on_magnetar(OURS, async |case| {
        let bench = Bench::new(case).await?;
        let bundle = bench.write_bundle("writer", "while :; do echo tick; sleep 0.01; done")?;
        let pipe = bundle.join("stdout");
        mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let mut request = bench.request("writer", "writer");
        request.stdout = pipe.to_string_lossy().into_owned();
        let reader = tokio::net::unix::pipe::OpenOptions::new().open_receiver(&pipe)?;
        bench.task.create(patience(), &request).await?;
        bench.start("writer").await?;
        reader.readable().await?;
        drop(reader);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(bench.state("writer").await?, Status::RUNNING);
        // A new reader, as a restarted containerd is one, gets what comes now.
        let reader = tokio::net::unix::pipe::OpenOptions::new().open_receiver(&pipe)?;
        tokio::time::timeout(case.soon(), reader.readable()).await.context("nothing came")??;
        drop(reader);
        bench.end("writer").await?;
        bench.close(case).await
    });
}

#[test]
fn missing_stdio_pipes_are_refused_and_leave_nothing() {
    on_magnetar(OURS, async |case| {
        let bench = Bench::new(case).await?;
        let mut request = bench.request("pipeless", "bundle");
        request.stdout = bench.scratch.join("no-such-pipe");
        refuses(bench.task.create(patience(), &request).await, Code::NOT_FOUND, &["no-such-pipe"])?;
        bench.close(case).await
    });
}

/// Whatever arrives on the socket, the process behind it goes on. Each message is a connection.
#[test]
fn malformed_messages_on_the_socket_disturb_no_other_client() {
    on_magnetar(OURS, async |case| {
        let bench = Bench::new(case).await?;
        // A header is the length, the stream, the type (1: request) and flags.
        let framed = |length: u32, kind: u8, body: &[u8]| {
            let mut message = length.to_be_bytes().to_vec();
            message.extend(1_u32.to_be_bytes());
            message.extend([kind, 0]);
            message.extend(body);
            message
        };
        let messages = [
            b"GET / HTTP/1.1\r\nHost: pod\r\n\r\n".to_vec(),
            vec![0; 4096],
            vec![0xff; 4096],
            framed(4, 1, &[0xff; 4]),
            framed(u32::MAX, 1, b"short"),
            framed(1 << 30, 1, b"short"),
            framed(100, 1, b"cut off"),
            framed(4, 9, &[0; 4]),
            framed(0, 1, b""),
        ];
        for (number, message) in messages.iter().enumerate() {
            let mut stream = UnixStream::connect(socket(case, &bench.pod)).await?;
            // It may hang up before it has read all of this.
            let _ = stream.write_all(message).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let ended = tokio::time::timeout(case.soon(), stream.read_to_end(&mut answer)).await;
            ensure!(ended.is_ok(), "message {number}: neither an answer nor an end");
            refuses(bench.state("nobody").await, Code::NOT_FOUND, &[]).with_context(|| format!("after message {number}"))?;
        }
        bench.close(case).await
    });
}

#[test]
fn a_hundred_silent_connections_disturb_no_other_client() {
    on_magnetar(OURS, async |case| {
        let bench = Bench::new(case).await?;
        let mut idle = Vec::new();
        for _ in 0..100 {
            idle.push(UnixStream::connect(socket(case, &bench.pod)).await?);
        }
        refuses(bench.state("nobody").await, Code::NOT_FOUND, &[])?;
        drop(idle);
        let pid = case.sandbox_pid(&bench.pod)?;
        eventually("their descriptors are closed", case.soon(), async || Ok((magnetar_observe::open_files(pid)? < 50).then_some(())))
            .await?;
        bench.close(case).await
    });
}

/// Its init is killed at every step between its making and its end: what is killed with it is the
/// container alone.
#[test]
fn an_init_killed_at_any_step_ends_only_its_container() {
    on_magnetar_with_shared_kernel(OURS, "the process that stands for a container in a virtual machine is the machine", async |case| {
        let bench = Bench::new(case).await?;
        let other = bench.create("other", "bundle").await?;
        bench.start("other").await?;
        for round in 0..12 {
            let id = format!("killed-{round}");
            bench.write_bundle(&id, "sleep 1000")?;
            let pid = bench.create(&id, &id).await?;
            // Zero would be this test's own process group.
            ensure!(pid > 1, "the init is process {pid}");
            let kill_it = || nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGKILL);
            match round % 3 {
                0 => {
                    kill_it()?;
                    // Refused, or over at once: dying takes the kernel a moment.
                    let _either = bench.start(&id).await;
                }
                1 => {
                    let (started, killed) = tokio::join!(bench.start(&id), async { kill_it() });
                    killed?;
                    // It may have been faster.
                    let _either = started;
                }
                _ => {
                    bench.start(&id).await?;
                    kill_it()?;
                }
            }
            assert_eq!(bench.wait(&id).await?, 137, "round {round}");
            bench.delete(&id).await?;
            assert_eq!(bench.state("other").await?, Status::RUNNING);
            assert!(std::path::Path::new(&format!("/proc/{other}")).exists());
        }
        bench.end("other").await?;
        bench.close(case).await
    });
}
