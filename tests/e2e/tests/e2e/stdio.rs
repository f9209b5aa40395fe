// SPDX-License-Identifier: Apache-2.0
//! Streams of a container's own process: log, attach, terminal.

use anyhow::ensure;
use magnetar_e2e::on_node;

#[test]
fn a_megabyte_written_just_before_exit_is_logged_completely() {
    on_node(async |case| {
        let pod = case.pod("megabyte").await?;
        // 16384 numbered lines of 64 bytes.
        let script = "i=10000; while [ $i -lt 26384 ]; do i=$((i + 1)); \
                      echo \"$i .........................................................\"; done";
        let container = pod.run(&case.script(&format!("({script}) >/all; exec cat /all"))).await?;
        assert_eq!(container.exited(case.within(60)).await?.exit_code, 0);
        let text = case.whole_log(&container).await?.stdout();
        assert_eq!(text.len(), 1 << 20);
        for (n, line) in text.lines().enumerate() {
            ensure!(line.starts_with(&format!("{} ", 10001 + n)), "line {n} is {line:?}");
        }
        Ok(pod.remove().await?)
    });
}

#[test]
fn output_of_short_lived_containers_is_never_lost() {
    on_node(async |case| {
        let pod = case.pod("last-words").await?;
        for n in 0..20 {
            let spec = case.script(&format!("echo out {n}; echo err {n} >&2")).named(&format!("c{n}"));
            let container = pod.run(&spec).await?;
            container.exited(case.soon()).await?;
            let log = case.whole_log(&container).await?;
            assert_eq!((log.stdout(), log.stderr()), (format!("out {n}\n"), format!("err {n}\n")));
        }
        Ok(pod.remove().await?)
    });
}

#[test]
fn output_without_a_final_newline_is_logged() {
    on_node(async |case| {
        let pod = case.pod("no-newline").await?;
        let container = pod.run(&case.script("printf 'no end'")).await?;
        container.exited(case.soon()).await?;
        let log = case.whole_log(&container).await?;
        assert_eq!(log.stdout().trim_end(), "no end");
        Ok(pod.remove().await?)
    });
}

#[test]
fn output_is_in_the_log_while_the_container_runs() {
    on_node(async |case| {
        let pod = case.pod("live-log").await?;
        let container = pod.run(&case.script("echo first; sleep 1000")).await?;
        container.logged(case.soon(), |log| log.stdout() == "first\n").await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_rotated_log_is_reopened() {
    on_node(async |case| {
        let pod = case.pod("rotate").await?;
        let container = pod.run(&case.script("while :; do echo tick; sleep 0.05; done")).await?;
        container.logged(case.soon(), |log| !log.entries.is_empty()).await?;
        std::fs::rename(container.log_path(), container.log_path().with_extension("old"))?;
        container.reopen_log().await?;
        container.logged(case.soon(), |log| !log.entries.is_empty()).await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn an_attached_client_writes_to_stdin_and_reads_the_output() {
    on_node(async |case| {
        let pod = case.pod("attach").await?;
        let spec = case.script("while read -r line; do echo \"got $line\"; done; echo end").stdin(false);
        let container = pod.run(&spec).await?;
        let mut session = container.attach(true, false).await?;
        session.send(b"one\n").await?;
        assert_eq!(session.receive_until("\n").await?, "got one\n");
        session.close().await?;
        // Stdin is not bound to one client: a second one goes on.
        let mut session = container.attach(true, false).await?;
        session.send(b"two\n").await?;
        assert_eq!(session.receive_until("\n").await?, "got two\n");
        session.close().await?;
        container.logged(case.soon(), |log| log.stdout() == "got one\ngot two\n").await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn stdin_once_ends_stdin_with_the_first_client() {
    on_node(async |case| {
        let pod = case.pod("stdin-once").await?;
        let container = pod.run(&case.script("head -c 100000 | wc -c; wc -c; echo end").stdin(true)).await?;
        let mut session = container.attach(true, false).await?;
        session.send(&[b'x'; 100_000]).await?;
        // Not before all has arrived: the server forgets what it has not passed on when the
        // client closes the connection.
        session.receive_until("100000\n").await?;
        session.close().await?;
        assert_eq!(container.exited(case.soon()).await?.exit_code, 0);
        assert_eq!(case.whole_log(&container).await?.stdout(), "100000\n0\nend\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_container_without_stdin_reads_nothing() {
    on_node(async |case| {
        let pod = case.pod("no-stdin").await?;
        assert_eq!(case.output(&pod, &case.script("wc -c")).await?, "0\n");
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_container_runs_on_when_an_attached_client_disconnects() {
    on_node(async |case| {
        let pod = case.pod("detach").await?;
        let container = pod.run(&case.script("while :; do echo tick; sleep 0.05; done")).await?;
        for _ in 0..5 {
            let mut session = container.attach(false, false).await?;
            session.receive_until("tick").await?;
            // No goodbye: the connection just breaks.
            drop(session);
        }
        let before = container.log()?.entries.len();
        container.logged(case.soon(), |log| log.entries.len() > before + 5).await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_container_has_a_terminal_that_follows_the_clients_size() {
    on_node(async |case| {
        let pod = case.pod("terminal").await?;
        let container = pod.run(&case.script("tty; while read -r _; do stty size; done").stdin(false).tty()).await?;
        let mut session = container.attach(true, true).await?;
        container.logged(case.soon(), |log| log.stdout().contains("/dev/pts/")).await?;
        session.resize(77, 33).await?;
        // The size travels beside the input: ask until it is there.
        let end = std::time::Instant::now() + case.soon();
        loop {
            session.send(b"\n").await?;
            let answer = session.receive_until("\r\n").await?;
            if answer.contains("33 77") || session.receive_until("\r\n").await?.contains("33 77") {
                break;
            }
            ensure!(std::time::Instant::now() < end, "the size did not arrive: {answer:?}");
        }
        session.close().await?;
        Ok(pod.remove().await?)
    });
}

#[test]
fn an_interrupt_character_on_the_terminal_interrupts_the_process() {
    on_node(async |case| {
        let pod = case.pod("interrupt").await?;
        let container = pod.run(&case.script("trap 'exit 42' INT; echo ready; while :; do sleep 0.1; done").stdin(false).tty()).await?;
        container.logged(case.soon(), |log| log.stdout().contains("ready")).await?;
        let mut session = container.attach(true, true).await?;
        session.send(&[3]).await?;
        assert_eq!(container.exited(case.soon()).await?.exit_code, 42);
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_megabyte_written_to_a_terminal_is_logged_completely() {
    on_node(async |case| {
        let pod = case.pod("terminal-megabyte").await?;
        let container = pod.run(&case.script("yes 0123456789abcde | head -n 65536").tty()).await?;
        assert_eq!(container.exited(case.within(60)).await?.exit_code, 0);
        let text = case.whole_log(&container).await?.stdout();
        assert_eq!(text.lines().filter(|&line| line == "0123456789abcde").count(), 65536);
        Ok(pod.remove().await?)
    });
}
