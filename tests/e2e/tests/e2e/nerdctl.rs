// SPDX-License-Identifier: Apache-2.0
//! Containers without a pod, as nerdctl and docker make them. Both have the same commands; where
//! the node lacks one, its tests say that they are skipped. nerdctl gives networks by hooks and
//! reads logs by a program of its own, docker does both itself, and mounts the container's root as
//! well.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use magnetar_e2e::{
    BUSYBOX, Case, Output, Scratch, Terminal, Tool, calm, eventually, on_warm_node,
    podless::{NAMESPACE, bring_image, kill_sandbox_process, runtime},
};

use super::engine::MODULES;

/// A shell that does nothing until it is stopped, and then ends with code 9.
const UNTIL_STOPPED: &str = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.2; done";

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Nerdctl,
    Docker,
}

/// A client of this node, with the runtime under test.
struct Client<'a> {
    case: &'a Case,
    name: Name,
    tool: Tool,
    runtime: String,
}

macro_rules! by_each_client {
    ($($test:ident,)*) => {
        mod by_nerdctl {
            $(#[test] fn $test() { super::by(super::Name::Nerdctl, stringify!($test), super::$test); })*
        }
        mod by_docker {
            $(#[test] fn $test() { super::by(super::Name::Docker, stringify!($test), super::$test); })*
        }
    };
}

by_each_client! {
    a_container_runs_to_its_end_and_is_removed,
    a_container_has_a_terminal,
    a_container_in_the_background_has_a_log_and_runs_commands,
    a_container_is_paused_stopped_and_started_again,
    statistics_and_processes_of_a_container_are_shown,
    a_published_port_is_reached_from_the_node,
    containers_of_a_network_resolve_each_others_names,
    bind_mounts_and_named_volumes_keep_their_files,
    the_exit_code_of_a_module_is_reported,
    a_container_that_cannot_be_created_leaves_nothing,
    a_container_without_its_sandbox_process_can_be_removed,
}

/// A test by one client, when that has made its first container and what it keeps is there.
fn by(name: Name, test: &str, run: impl AsyncFnOnce(&Client) -> Result<()>) {
    let warm = async |case: &Case| match Client::new(case, name) {
        Ok(client) => client.warm().await,
        Err(_) => Ok(()),
    };
    on_warm_node(warm, async |case| match Client::new(case, name) {
        Ok(client) => run(&client).await,
        // Past libtest's capture: whoever reads the output must see what was not tested.
        Err(because) => Ok(writeln!(std::io::stderr(), "skipped nerdctl::{name:?}::{test}: {because}")?),
    });
}

impl<'a> Client<'a> {
    /// The client, or why it cannot be tested.
    fn new(case: &'a Case, name: Name) -> std::result::Result<Self, &'static str> {
        let (tool, missing) = match name {
            Name::Nerdctl => (Tool::nerdctl(case.within(60)), "the node has no nerdctl"),
            Name::Docker => (Tool::docker(case.within(60)), "the node has no docker"),
        };
        tool.map(|tool| Self { case, name, tool, runtime: runtime(case) }).ok_or(missing)
    }

    async fn warm(&self) -> Result<()> {
        static WARM: Mutex<Vec<Name>> = Mutex::new(Vec::new());
        if WARM.lock().unwrap_or_else(PoisonError::into_inner).contains(&self.name) {
            return Ok(());
        }
        let namespace = match self.name {
            Name::Nerdctl => NAMESPACE,
            Name::Docker => "moby",
        };
        for image in [BUSYBOX, MODULES] {
            bring_image(self.case, image, namespace)?;
        }
        if self.name == Name::Docker {
            start_dockerd(self).await?;
        }
        self.ok(&["run", "--rm", "--runtime", &self.runtime, "-p", "8089:80", BUSYBOX, "true"])?;
        WARM.lock().unwrap_or_else(PoisonError::into_inner).push(self.name);
        calm(self.case).await
    }

    fn ok(&self, words: &[&str]) -> Result<String> {
        self.tool.run(words)
    }

    /// `run` with the runtime under test.
    fn run(&self, words: &[&str]) -> Result<Output> {
        self.tool.try_run(&[&["run", "--runtime", &self.runtime][..], words].concat())
    }

    /// A container in the background that runs a script.
    fn start(&self, name: &str, options: &[&str], script: &str) -> Result<()> {
        let words = [&["--detach", "--name", name][..], options, &[BUSYBOX, "sh", "-c", script]].concat();
        let said = self.run(&words)?;
        ensure!(said.success, "{}", said.stderr);
        Ok(())
    }

    /// What a command in a container says; it must succeed.
    fn says(&self, container: &str, script: &str) -> Result<String> {
        self.ok(&["exec", container, "sh", "-c", script])
    }

    fn inspect(&self, container: &str, what: &str) -> Result<String> {
        Ok(self.ok(&["inspect", "--format", &format!("{{{{{what}}}}}"), container])?.trim().to_owned())
    }

    async fn logs(&self, container: &str, word: &str) -> Result<()> {
        eventually("the log has it", self.case.soon(), async || Ok(self.ok(&["logs", container])?.contains(word).then_some(()))).await
    }

    fn on_terminal(&self, words: &[&str]) -> Result<Terminal> {
        Terminal::run(self.tool.command(words))
    }

    fn remove(&self, container: &str) -> Result<()> {
        self.ok(&["rm", "--force", container]).map(drop)
    }
}

/// docker's daemon on the node's containerd. It runs until the node stops.
async fn start_dockerd(client: &Client<'_>) -> Result<()> {
    if client.tool.try_run(&["version"])?.success {
        return Ok(());
    }
    let log = fs::File::create("/var/log/dockerd.log")?;
    // Nobody waits for it: it is still there when the tests are over, for the next ones in this
    // node.
    Command::new("dockerd").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
    eventually("docker's daemon answers", client.case.within(60), async || Ok(client.tool.try_run(&["version"])?.success.then_some(())))
        .await
}

async fn a_container_runs_to_its_end_and_is_removed(client: &Client<'_>) -> Result<()> {
    let before = client.ok(&["ps", "--all", "--quiet"])?;
    let said = client.run(&["--rm", "--hostname", "the-host", BUSYBOX, "sh", "-c", "hostname; echo err >&2; exit 7"])?;
    assert_eq!((said.stdout.as_str(), said.stderr.as_str(), said.code), ("the-host\n", "err\n", Some(7)));
    assert_eq!(client.ok(&["ps", "--all", "--quiet"])?, before);
    Ok(())
}

async fn a_container_has_a_terminal(client: &Client<'_>) -> Result<()> {
    let script = "tty; read -r line; echo \"got $line\"; exit 3";
    let words = ["run", "--runtime", &client.runtime, "--rm", "-it", BUSYBOX, "sh", "-c", script];
    let mut terminal = client.on_terminal(&words)?;
    terminal.shows("/dev/pts/0", client.case.within(30))?;
    terminal.type_line("a line")?;
    let (code, said) = terminal.ends(client.case.soon())?;
    ensure!(code == Some(3) && said.contains("got a line"), "exit code {code:?}, {said:?}");
    Ok(())
}

async fn a_container_in_the_background_has_a_log_and_runs_commands(client: &Client<'_>) -> Result<()> {
    client.start("logs", &[], UNTIL_STOPPED)?;
    client.logs("logs", "ready").await?;
    let said = client.tool.try_run(&["exec", "logs", "sh", "-c", "echo in; exit 4"])?;
    ensure!(said.stdout == "in\n" && !said.success, "{said:?}");
    // nerdctl ends with 1 and says the code.
    ensure!(said.code == Some(4) || said.stderr.contains("exit code 4"), "{said:?}");
    let mut terminal = client.on_terminal(&["exec", "-it", "logs", "sh", "-c", "tty; read -r line; echo \"got $line\""])?;
    terminal.shows("/dev/pts/", client.case.soon())?;
    terminal.type_line("a line")?;
    let (code, said) = terminal.ends(client.case.soon())?;
    ensure!(code == Some(0) && said.contains("got a line"), "exit code {code:?}, {said:?}");
    client.remove("logs")
}

async fn a_container_is_paused_stopped_and_started_again(client: &Client<'_>) -> Result<()> {
    client.start("life", &[], UNTIL_STOPPED)?;
    client.ok(&["pause", "life"])?;
    assert_eq!(client.inspect("life", ".State.Status")?, "paused");
    client.ok(&["unpause", "life"])?;
    client.logs("life", "ready").await?;
    client.ok(&["stop", "life"])?;
    assert_eq!((client.inspect("life", ".State.Status")?, client.inspect("life", ".State.ExitCode")?), ("exited".into(), "9".into()));
    client.ok(&["start", "life"])?;
    assert_eq!(client.says("life", "echo again")?, "again\n");
    client.ok(&["kill", "life"])?;
    eventually("it has ended", client.case.soon(), async || Ok((client.inspect("life", ".State.ExitCode")? == "137").then_some(())))
        .await?;
    client.ok(&["rm", "life"]).map(drop)
}

async fn statistics_and_processes_of_a_container_are_shown(client: &Client<'_>) -> Result<()> {
    client.start("figures", &["--memory", "64m"], "sleep 1000 & sleep 1000")?;
    let stats = client.ok(&["stats", "--no-stream", "--format", "{{.MemUsage}}", "figures"])?;
    let usage = stats.trim();
    ensure!(!usage.is_empty() && !usage.starts_with("0B"), "no memory in use: {usage:?}");
    ensure!(client.case.is_vm() || usage.ends_with("/ 64MiB"), "{usage:?}");
    if client.case.is_vm() {
        return client.remove("figures");
    }
    eventually("its processes are listed", client.case.soon(), async || {
        let listed = client.ok(&["top", "figures"])?;
        Ok((listed.lines().skip(1).count() == 2 && listed.matches("sleep 1000").count() == 2).then_some(()))
    })
    .await?;
    client.remove("figures")
}

async fn a_published_port_is_reached_from_the_node(client: &Client<'_>) -> Result<()> {
    client.start("port", &["-p", "8089:80"], "mkdir /w; echo page >/w/index.html; exec httpd -f -p 80 -h /w")?;
    // The node's own address: what goes to its loopback is not redirected everywhere.
    eventually("the page comes", client.case.soon(), async || {
        let Ok(mut stream) = TcpStream::connect("198.51.100.2:8089") else { return Ok(None) };
        stream.set_read_timeout(Some(client.case.within(5)))?;
        let mut said = String::new();
        let asked = stream.write_all(b"GET / HTTP/1.0\r\n\r\n").and_then(|()| stream.read_to_string(&mut said));
        Ok((asked.is_ok() && said.ends_with("page\n")).then_some(()))
    })
    .await?;
    client.remove("port")
}

async fn containers_of_a_network_resolve_each_others_names(client: &Client<'_>) -> Result<()> {
    client.ok(&["network", "create", "magnetar-e2e"])?;
    client.start("named", &["--network", "magnetar-e2e"], UNTIL_STOPPED)?;
    let address = client.says("named", "ip -4 -o address show dev eth0 | sed 's/.*inet //; s/[/].*//'")?;
    // docker's name server is on the loopback of the network namespace, and a machine's kernel has
    // a loopback of its own.
    let by_address = client.name == Name::Docker && client.case.is_vm();
    let to = if by_address { address.trim() } else { "named" };
    let said = client.run(&["--rm", "--network", "magnetar-e2e", BUSYBOX, "ping", "-c", "1", "-W", "5", to])?;
    ensure!(said.success && said.stdout.contains(" 0% packet loss"), "{said:?}");
    let alone = client.run(&["--rm", "--network", "none", BUSYBOX, "ls", "/sys/class/net"])?;
    assert_eq!(alone.stdout, "lo\n", "{alone:?}");
    client.remove("named")?;
    client.ok(&["network", "rm", "magnetar-e2e"])?;
    // CNI's host-local keeps the folder of a network that is gone.
    if client.name == Name::Nerdctl {
        fs::remove_dir_all("/var/lib/cni/networks/magnetar-e2e")?;
    }
    Ok(())
}

async fn bind_mounts_and_named_volumes_keep_their_files(client: &Client<'_>) -> Result<()> {
    let scratch = Scratch::new()?;
    fs::write(scratch.path().join("in"), "word\n")?;
    let bind = format!("{}:/mnt", scratch.path().display());
    let script = "cat /mnt/in; echo new >/mnt/out; echo kept >/data/file";
    let said = client.run(&["--rm", "-v", &bind, "-v", "magnetar-e2e:/data", BUSYBOX, "sh", "-c", script])?;
    ensure!(said.success && said.stdout == "word\n", "{said:?}");
    assert_eq!(fs::read_to_string(scratch.path().join("out"))?, "new\n");
    let said = client.run(&["--rm", "-v", "magnetar-e2e:/data", BUSYBOX, "cat", "/data/file"])?;
    assert_eq!(said.stdout, "kept\n", "{said:?}");
    client.ok(&["volume", "rm", "magnetar-e2e"]).map(drop)
}

async fn the_exit_code_of_a_module_is_reported(client: &Client<'_>) -> Result<()> {
    let words = ["--rm", "--entrypoint", "/modules/exit.wat", MODULES];
    if client.case.handler().starts_with("magnetar-wasm") {
        let said = client.run(&words)?;
        assert_eq!(said.code, Some(7), "{said:?}");
    } else {
        // What is no program for this kind is said by its name.
        let said = client.run(&words)?;
        ensure!(!said.success && said.stderr.contains("exit.wat"), "{said:?}");
    }
    Ok(())
}

async fn a_container_that_cannot_be_created_leaves_nothing(client: &Client<'_>) -> Result<()> {
    let before = client.ok(&["ps", "--all", "--quiet"])?;
    let failed = client.run(&["--name", "fails", BUSYBOX, "/no/such/program"])?;
    // docker keeps the container, nerdctl does not.
    client.tool.try_run(&["rm", "--force", "fails"])?;
    ensure!(!failed.success && failed.stderr.contains("/no/such/program"), "{failed:?}");
    let failed = client.run(&["--name", "fails", "--mount", "type=bind,src=/no/such/folder,dst=/mnt", BUSYBOX, "true"])?;
    client.tool.try_run(&["rm", "--force", "fails"])?;
    ensure!(!failed.success && failed.stderr.contains("/no/such/folder"), "{failed:?}");
    assert_eq!(client.ok(&["ps", "--all", "--quiet"])?, before);
    Ok(())
}

async fn a_container_without_its_sandbox_process_can_be_removed(client: &Client<'_>) -> Result<()> {
    client.start("killed", &[], UNTIL_STOPPED)?;
    client.logs("killed", "ready").await?;
    let id = client.inspect("killed", ".Id")?;
    let before = sockets()?;
    kill_sandbox_process(&id).context("the container's sandbox process")?;
    eventually("the client has noticed", client.case.soon(), async || {
        Ok((client.inspect("killed", ".State.Status")? != "running").then_some(()))
    })
    .await?;
    client.remove("killed")?;
    if !client.case.is_magnetar() {
        // The stock shim leaves its sockets.
        for socket in before {
            fs::remove_file(socket)?;
        }
    }
    Ok(())
}

fn sockets() -> Result<Vec<std::path::PathBuf>> {
    let Ok(entries) = fs::read_dir("/run/containerd/s") else { return Ok(Vec::new()) };
    Ok(entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?)
}
