// SPDX-License-Identifier: Apache-2.0
//! Commands in a running container.

use anyhow::ensure;
use magnetar_cri::{Code, Frame};
use magnetar_e2e::{eventually, kernel, on_node, refused};

#[test]
fn stdout_stderr_and_exit_code_of_a_command_are_returned_separately() {
    on_node(async |case| {
        let pod = case.pod("exec").await?;
        let container = pod.run(&case.sleeper()).await?;
        let output = container.shell("echo out; echo err >&2; exit 5").await?;
        assert_eq!((output.stdout.as_str(), output.stderr.as_str(), output.code), ("out\n", "err\n", 5));
        assert_eq!(container.exec(["true"]).await?.code, 0);
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_command_killed_by_a_signal_has_that_exit_code() {
    on_node(async |case| {
        let pod = case.pod("exec-signal").await?;
        let container = pod.run(&case.sleeper()).await?;
        assert_eq!(container.shell("kill -KILL $$").await?.code, 137);
        assert_eq!(container.shell("kill -TERM $$").await?.code, 143);
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_command_gets_the_containers_environment_directory_user_and_privileges() {
    on_node(async |case| {
        let pod = case.pod("exec-context").await?;
        let spec = case
            .sleeper()
            .env("MARK", "here")
            .working_dir("/tmp")
            .user(1000)
            .group(2000)
            .supplemental_groups(&[3000])
            .capabilities(&[], &["ALL"])
            .seccomp_default()
            .no_new_privs();
        let container = pod.run(&spec).await?;
        let output = container.shell("echo $MARK $PWD $(id -u) $(id -g) $(id -G)").await?;
        assert_eq!(output.stdout, "here /tmp 1000 2000 2000 3000\n");
        let status = container.exec(["cat", "/proc/self/status"]).await?.stdout;
        assert_eq!(kernel::field(&status, "CapBnd")?, "0000000000000000");
        assert_eq!(kernel::field(&status, "NoNewPrivs")?, "1");
        assert_eq!(kernel::field(&status, "Seccomp")?, "2");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_command_is_in_the_containers_namespaces_and_cgroup() {
    on_node(async |case| {
        let pod = case.pod("exec-place").await?;
        let container = pod.run(&case.sleeper()).await?;
        let output = container.shell("for n in mnt pid ipc uts net; do readlink /proc/self/ns/$n; done; cat /proc/self/cgroup").await?;
        for kind in ["mnt", "pid", "ipc", "uts", "net"] {
            let namespace = if case.is_vm() {
                container.exec(["readlink".to_owned(), format!("/proc/1/ns/{kind}")]).await?.stdout
            } else {
                kernel::namespace(container.pid().await?, kind)?
            };
            ensure!(namespace.starts_with(kind) && output.stdout.contains(&namespace), "not in {namespace}: {}", output.stdout);
        }
        let init = container.exec(["cat", "/proc/1/cgroup"]).await?.stdout;
        ensure!(output.stdout.ends_with(&init), "{} is not {init}", output.stdout);
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_command_that_takes_too_long_is_killed() {
    on_node(async |case| {
        let pod = case.pod("exec-timeout").await?;
        let container = pod.run(&case.sleeper()).await?;
        let answer = container.exec_within(["sleep", "987"], 1).await;
        assert_eq!(answer.as_ref().err().and_then(magnetar_cri::Error::code), Some(Code::DeadlineExceeded), "{answer:?}");
        eventually("the command is gone", case.soon(), async || {
            let processes = container.exec(["ps", "-o", "args"]).await?.stdout;
            Ok((!processes.contains("sleep 987")).then_some(()))
        })
        .await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_command_in_a_stopped_container_is_refused() {
    on_node(async |case| {
        let pod = case.pod("exec-stopped").await?;
        let container = pod.run(&case.script("exit 0")).await?;
        container.exited(case.soon()).await?;
        refused(container.exec(["true"]).await, &["CONTAINER_EXITED"])?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_missing_command_is_named_in_the_error_and_its_container_runs_on() {
    on_node(async |case| {
        let pod = case.pod("exec-missing").await?;
        let container = pod.run(&case.sleeper()).await?;
        refused(container.exec(["no-such-program"]).await, &["no-such-program"])?;
        assert_eq!(container.exec(["echo", "alive"]).await?.stdout, "alive\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn five_megabytes_of_output_are_returned_completely() {
    on_node(async |case| {
        let pod = case.pod("exec-large").await?;
        let container = pod.run(&case.sleeper()).await?;
        let output = container.shell("yes 0123456789abcde | head -n 327680; echo end >&2").await?;
        assert_eq!(output.stdout.len(), 5 << 20);
        assert_eq!(output.stderr, "end\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn fifty_short_commands_in_a_row_never_lose_their_output() {
    on_node(async |case| {
        let pod = case.pod("exec-row").await?;
        let container = pod.run(&case.sleeper()).await?;
        for n in 0..50 {
            assert_eq!(container.exec(["echo".to_owned(), n.to_string()]).await?.stdout, format!("{n}\n"));
        }
        Ok(pod.remove().await?)
    });
}

#[test]
fn outputs_of_thirty_concurrent_commands_are_not_mixed() {
    on_node(async |case| {
        let pod = case.pod("exec-parallel").await?;
        let container = pod.run(&case.sleeper()).await?;
        let commands = (0..30).map(|n| {
            let container = &container;
            async move { (n, container.shell(&format!("sleep 0.$((RANDOM % 5)); echo {n}; exit {n}")).await) }
        });
        for (n, output) in futures_util::future::join_all(commands).await {
            let output = output?;
            assert_eq!((output.stdout, output.code), (format!("{n}\n"), n));
        }
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_streamed_command_reads_stdin_and_returns_its_exit_code() {
    on_node(async |case| {
        let pod = case.pod("exec-stream").await?;
        let container = pod.run(&case.sleeper()).await?;
        let script = "read -r line; echo \"got $line\"; echo oops >&2; exit 9";
        let mut session = container.exec_stream(["sh", "-c", script], true, false).await?;
        session.send(b"a word\n").await?;
        let output = session.finish().await?;
        assert_eq!(String::from_utf8_lossy(&output.stdout), "got a word\n");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "oops\n");
        assert_eq!(output.code, Some(9));
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_streamed_command_sees_the_end_of_its_stdin() {
    on_node(async |case| {
        let pod = case.pod("exec-eof").await?;
        let container = pod.run(&case.sleeper()).await?;
        let script = "head -c 100000 | wc -c; wc -c >/tmp/count.part; mv /tmp/count.part /tmp/count";
        let mut session = container.exec_stream(["sh", "-c", script], true, false).await?;
        session.send(&[b'x'; 100_000]).await?;
        session.receive_until("100000\n").await?;
        session.close().await?;
        let count = eventually("the command has read to the end", case.soon(), async || {
            let output = container.exec(["cat", "/tmp/count"]).await?;
            Ok((output.code == 0).then_some(output.stdout))
        })
        .await?;
        assert_eq!(count, "0\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_terminal_resize_reaches_a_streamed_command() {
    on_node(async |case| {
        let pod = case.pod("exec-terminal").await?;
        let container = pod.run(&case.sleeper()).await?;
        let script = "tty; until [ \"$(stty size)\" = '33 77' ]; do sleep 0.05; done; echo resized; exit 4";
        let mut session = container.exec_stream(["sh", "-c", script], true, true).await?;
        session.receive_until("/dev/pts/").await?;
        session.resize(77, 33).await?;
        session.receive_until("resized").await?;
        assert_eq!(session.finish().await?.code, Some(4));
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_streamed_command_ends_with_its_container() {
    on_node(async |case| {
        let pod = case.pod("exec-orphan").await?;
        let container = pod.run(&case.sleeper()).await?;
        let mut session = container.exec_stream(["sh", "-c", "echo ready; sleep 1000"], false, false).await?;
        session.receive_until("ready").await?;
        container.stop(0).await?;
        match session.receive().await? {
            Some(Frame::Exit(137)) => {}
            other => anyhow::bail!("the session ended with {other:?}"),
        }
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_command_whose_client_disconnects_leaves_nothing_behind() {
    on_node(async |case| {
        let pod = case.pod("exec-abandoned").await?;
        let container = pod.run(&case.sleeper()).await?;
        for _ in 0..5 {
            let mut session = container.exec_stream(["sh", "-c", "while :; do echo tick; sleep 0.01; done"], true, false).await?;
            session.receive_until("tick").await?;
            drop(session);
        }
        assert_eq!(container.exec(["echo", "alive"]).await?.stdout, "alive\n");
        Ok(pod.remove().await?)
    });
}
