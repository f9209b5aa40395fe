// SPDX-License-Identifier: Apache-2.0
//! Containers and execs, brought to the states that the table has columns for.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use containerd_shim_protos::{
    api::{DeleteRequest, ExecProcessRequest, KillRequest, PauseRequest, ResumeRequest, StartRequest, WaitRequest},
    protobuf::{MessageField, well_known_types::any::Any},
};
use nix::{sys::stat::Mode, unistd::mkfifo};
use serde_json::{Value, json};
use tokio::net::unix::pipe;

use super::calls::Call;
use crate::bench::{Bench, patience};

/// The exec of those columns that have one.
const EXEC: &str = "exec";

/// How far something has come in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Nobody has heard of it.
    Unknown,
    /// It was made, and not started.
    Created,
    Running,
    Paused,
    /// It has ended.
    Stopped,
    Deleted,
}

/// One column of the table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub name: &'static str,
    container: Life,
    /// What is asked about is an exec of the container, which has come this far.
    exec: Option<Life>,
}

impl Column {
    const fn container(name: &'static str, container: Life) -> Self {
        Self { name, container, exec: None }
    }

    const fn exec(name: &'static str, exec: Life, container: Life) -> Self {
        Self { name, container, exec: Some(exec) }
    }

    /// Every state of a container.
    pub const CONTAINERS: &[Self] = &[
        Self::container("unknown", Life::Unknown),
        Self::container("created", Life::Created),
        Self::container("running", Life::Running),
        Self::container("paused", Life::Paused),
        Self::container("stopped", Life::Stopped),
        Self::container("deleted", Life::Deleted),
    ];

    /// Every state of an exec in a running container, and those that it can have in one that does
    /// not run.
    pub const EXECS: &[Self] = &[
        Self::exec("unknown", Life::Unknown, Life::Running),
        Self::exec("added", Life::Created, Life::Running),
        Self::exec("running", Life::Running, Life::Running),
        Self::exec("ended", Life::Stopped, Life::Running),
        Self::exec("deleted", Life::Deleted, Life::Running),
        Self::exec("added, container created", Life::Created, Life::Created),
        Self::exec("added, container paused", Life::Created, Life::Paused),
        Self::exec("running, container paused", Life::Running, Life::Paused),
        Self::exec("ended, container paused", Life::Stopped, Life::Paused),
        Self::exec("added, container stopped", Life::Created, Life::Stopped),
        Self::exec("ended, container stopped", Life::Stopped, Life::Stopped),
        Self::exec("running, container deleted", Life::Running, Life::Deleted),
    ];

    /// The calls that it has a cell for.
    pub fn calls(self) -> &'static [Call] {
        if self.exec.is_some() { Call::OF_EXECS } else { Call::OF_CONTAINERS }
    }

    /// What is asked about is a container that was made and not started.
    pub fn is_created_container(self) -> bool {
        self.exec.is_none() && self.container == Life::Created
    }

    /// The column's name among all.
    pub fn full_name(self) -> String {
        format!("{} {}", if self.exec.is_some() { "exec" } else { "container" }, self.name)
    }
}

/// A container, and an exec where the column has one.
pub struct Subject {
    pub id: String,
    pub exec: Option<String>,
    _ends: Vec<Ends>,
}

/// What a process has for standard input, output and errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    None,
    Pipes,
    Terminal,
}

/// The ends of a process's streams that containerd would have.
struct Ends {
    _stdin: pipe::Sender,
    _outputs: [pipe::Receiver; 2],
}

impl Subject {
    /// Makes what is in `column`.
    pub async fn new(bench: &Bench, column: Column, id: String, streams: Streams) -> Result<Self> {
        let mut made = Self { id, exec: column.exec.map(|_| EXEC.to_owned()), _ends: Vec::new() };
        made.bring_to(bench, column, streams).await.with_context(|| format!("{} as {}", made.id, column.full_name()))?;
        Ok(made)
    }

    async fn bring_to(&mut self, bench: &Bench, column: Column, streams: Streams) -> Result<()> {
        let Column { container, exec, .. } = column;
        let bundle = bench.write_bundle_for(&self.id, &program(streams))?;
        if container == Life::Unknown {
            return Ok(());
        }
        let mut request = bench.request(&self.id, &self.id);
        request.terminal = streams == Streams::Terminal;
        [request.stdin, request.stdout, request.stderr] = self.open(&bundle.join("init"), streams)?;
        bench.task.create(patience(), &request).await?;
        if container == Life::Created {
            return self.bring_exec_to(bench, exec, &bundle, streams).await;
        }
        bench.start(&self.id).await?;
        self.bring_exec_to(bench, exec, &bundle, streams).await?;
        match container {
            Life::Unknown | Life::Created | Life::Running => {}
            Life::Paused => drop(bench.task.pause(patience(), &PauseRequest { id: self.id.clone(), ..Default::default() }).await?),
            Life::Stopped => self.end(bench).await?,
            Life::Deleted => bench.end(&self.id).await?,
        }
        Ok(())
    }

    async fn bring_exec_to(&mut self, bench: &Bench, exec: Option<Life>, bundle: &Path, streams: Streams) -> Result<()> {
        let Some(exec) = exec.filter(|&exec| exec != Life::Unknown) else { return Ok(()) };
        let (id, exec_id) = (self.id.clone(), EXEC.to_owned());
        let mut request = ExecProcessRequest { id: id.clone(), exec_id: exec_id.clone(), ..Default::default() };
        request.terminal = streams == Streams::Terminal;
        request.spec = MessageField::some(process(streams));
        [request.stdin, request.stdout, request.stderr] = self.open(&bundle.join("exec"), streams)?;
        bench.task.exec(patience(), &request).await?;
        if exec == Life::Created {
            return Ok(());
        }
        bench.task.start(patience(), &StartRequest { id: id.clone(), exec_id: exec_id.clone(), ..Default::default() }).await?;
        if exec == Life::Running {
            return Ok(());
        }
        let kill = KillRequest { id: id.clone(), exec_id: exec_id.clone(), signal: 9, ..Default::default() };
        bench.task.kill(patience(), &kill).await?;
        bench.task.wait(patience(), &WaitRequest { id: id.clone(), exec_id: exec_id.clone(), ..Default::default() }).await?;
        if exec == Life::Deleted {
            bench.task.delete(patience(), &DeleteRequest { id, exec_id, ..Default::default() }).await?;
        }
        Ok(())
    }

    /// Makes FIFOs as containerd does, all three: the stock shim is stuck when it is given an input
    /// and no output. Returns their paths.
    fn open(&mut self, folder: &Path, streams: Streams) -> Result<[String; 3]> {
        if streams == Streams::None {
            return Ok(Default::default());
        }
        let fifo = |name: &str| {
            let path = folder.join(name);
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).map(|()| path)
        };
        fs::create_dir(folder)?;
        let (stdin, stdout, stderr) = (fifo("stdin")?, fifo("stdout")?, fifo("stderr")?);
        // Open for both, so that it need not wait for the other side.
        let _stdin = pipe::OpenOptions::new().read_write(true).open_sender(&stdin)?;
        let _outputs = [pipe::OpenOptions::new().open_receiver(&stdout)?, pipe::OpenOptions::new().open_receiver(&stderr)?];
        self._ends.push(Ends { _stdin, _outputs });
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        // A terminal's errors come with its output.
        Ok([text(stdin), text(stdout), if streams == Streams::Terminal { String::new() } else { text(stderr) }])
    }

    /// What State says of the container and of the exec: a call that changes neither leaves the
    /// subject to the next one.
    pub async fn states(&self, bench: &Bench) -> Result<[String; 2]> {
        let container = bench.state(&self.id).await;
        let exec = self.exec.as_ref().map(|exec| (self.id.clone(), exec.clone()));
        let exec = match exec {
            Some((id, exec_id)) => {
                let asked = containerd_shim_protos::api::StateRequest { id, exec_id, ..Default::default() };
                format!("{:?}", bench.task.state(patience(), &asked).await.map(|state| state.status))
            }
            None => String::new(),
        };
        Ok([format!("{container:?}"), exec])
    }

    async fn end(&self, bench: &Bench) -> Result<()> {
        bench.kill(&self.id).await?;
        bench.wait(&self.id).await?;
        Ok(())
    }

    /// Removes the container, whatever state it is in.
    pub async fn remove(self, bench: &Bench) -> Result<()> {
        let id = self.id.clone();
        let is_gone =
            |error: &ttrpc::Error| matches!(error, ttrpc::Error::RpcStatus(s) if s.code.enum_value() == Ok(ttrpc::Code::NOT_FOUND));
        match bench.state(&id).await {
            Err(error) if is_gone(&error) => return Ok(()),
            state => state.with_context(|| format!("the state of {id}"))?,
        };
        // Refused where it is not paused.
        let _running = bench.task.resume(patience(), &ResumeRequest { id: id.clone(), ..Default::default() }).await;
        match bench.kill(&id).await {
            Err(error) if !is_gone(&error) => return Err(error).with_context(|| format!("killing {id}")),
            _ => {}
        }
        bench.wait(&id).await.with_context(|| format!("the end of {id}"))?;
        bench.delete(&id).await.with_context(|| format!("deleting {id}"))
    }
}

/// The process of an exec.
pub fn process(streams: Streams) -> Any {
    Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
        value: program(streams).to_string().into(),
        ..Default::default()
    }
}

/// It reads nothing: the end of its input is not its own.
fn program(streams: Streams) -> Value {
    json!({
        "args": ["sh", "-c", "sleep 1000"], "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 }, "terminal": streams == Streams::Terminal,
    })
}
