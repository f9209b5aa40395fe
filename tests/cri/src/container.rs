// SPDX-License-Identifier: Apache-2.0
//! A container of a pod.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_cri::v1::{self, ContainerState, LinuxContainerResources};
use tokio::time::Instant;

use crate::{Error, Log, Node, Result, Session};

/// How often a wait polls: the CRI has no call that waits for a container.
const LOOK: Duration = Duration::from_millis(20);

/// The output of a command in a container, and its exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit code.
    pub code: i32,
}

/// A created container. It is removed with its pod, or by [`Container::remove`].
#[derive(Clone, Debug)]
pub struct Container {
    node: Node,
    id: String,
    log: PathBuf,
}

impl Container {
    pub(crate) fn new(node: Node, id: String, log: PathBuf) -> Self {
        Self { node, id, log }
    }

    /// containerd's id of the container.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The file with its output.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// StartContainer.
    pub async fn start(&self) -> Result<()> {
        let request = v1::StartContainerRequest { container_id: self.id.clone() };
        self.node.runtime("StartContainer", request, async |mut c, r| c.start_container(r).await).await?;
        Ok(())
    }

    /// StopContainer: SIGTERM (or the image's stop signal), and SIGKILL after `grace` seconds.
    pub async fn stop(&self, grace: i64) -> Result<()> {
        let request = v1::StopContainerRequest { container_id: self.id.clone(), timeout: grace };
        let deadline = self.node.deadline() + Duration::from_secs(grace.unsigned_abs());
        self.node.runtime_within(deadline, "StopContainer", request, async |mut c, r| c.stop_container(r).await).await?;
        Ok(())
    }

    /// RemoveContainer, which also removes a running container.
    pub async fn remove(self) -> Result<()> {
        self.node.remove_container(&self.id).await
    }

    /// ExecSync, with no time limit but the node's deadline.
    pub async fn exec<S: Into<String>>(&self, command: impl IntoIterator<Item = S>) -> Result<ExecOutput> {
        self.exec_within(command, 0).await
    }

    /// ExecSync of a line for the container's shell.
    pub async fn shell(&self, script: &str) -> Result<ExecOutput> {
        self.exec(["sh", "-c", script]).await
    }

    /// ExecSync with a time limit in seconds, zero for none.
    pub async fn exec_within<S: Into<String>>(&self, command: impl IntoIterator<Item = S>, seconds: u32) -> Result<ExecOutput> {
        let request = v1::ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.into_iter().map(Into::into).collect(),
            timeout: i64::from(seconds),
        };
        let answer = self.node.runtime("ExecSync", request, async |mut c, r| c.exec_sync(r).await).await?;
        Ok(ExecOutput {
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
            code: answer.exit_code,
        })
    }

    /// ContainerStatus.
    pub async fn status(&self) -> Result<v1::ContainerStatus> {
        let missing = Error::Incomplete { call: "ContainerStatus", what: "status" };
        self.status_response(false).await?.status.ok_or(missing)
    }

    /// The verbose part of ContainerStatus: runtime details as JSON.
    pub async fn info(&self) -> Result<serde_json::Value> {
        let answer = self.status_response(true).await?;
        let text = answer.info.get("info").map_or("{}", String::as_str);
        serde_json::from_str(text).map_err(|_| Error::Incomplete { call: "ContainerStatus", what: "readable info" })
    }

    /// The process id on the node, as containerd reports it.
    pub async fn pid(&self) -> Result<i32> {
        self.info()
            .await?
            .get("pid")
            .and_then(serde_json::Value::as_i64)
            .and_then(|pid| i32::try_from(pid).ok())
            .ok_or(Error::Incomplete { call: "ContainerStatus", what: "pid" })
    }

    /// Waits until the container has exited.
    pub async fn exited(&self, within: Duration) -> Result<v1::ContainerStatus> {
        let end = Instant::now() + within;
        loop {
            let status = self.status().await?;
            if status.state == i32::from(ContainerState::ContainerExited) {
                return Ok(status);
            }
            if Instant::now() > end {
                return Err(Error::Deadline { call: "the container's exit", after: within });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// ContainerStats.
    pub async fn stats(&self) -> Result<v1::ContainerStats> {
        let request = v1::ContainerStatsRequest { container_id: self.id.clone() };
        self.node
            .runtime("ContainerStats", request, async |mut c, r| c.container_stats(r).await)
            .await?
            .stats
            .ok_or(Error::Incomplete { call: "ContainerStats", what: "stats" })
    }

    /// UpdateContainerResources.
    pub async fn update(&self, resources: LinuxContainerResources) -> Result<()> {
        let request = v1::UpdateContainerResourcesRequest { container_id: self.id.clone(), linux: Some(resources), ..Default::default() };
        self.node.runtime("UpdateContainerResources", request, async |mut c, r| c.update_container_resources(r).await).await?;
        Ok(())
    }

    /// ReopenContainerLog, which a kubelet calls when it has moved the log away.
    pub async fn reopen_log(&self) -> Result<()> {
        let request = v1::ReopenContainerLogRequest { container_id: self.id.clone() };
        self.node.runtime("ReopenContainerLog", request, async |mut c, r| c.reopen_container_log(r).await).await?;
        Ok(())
    }

    /// The container's output so far; empty if there is no file yet.
    pub fn log(&self) -> Result<Log> {
        match fs::read(&self.log) {
            Ok(bytes) => Log::parse(&bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Log::default()),
            Err(source) => Err(Error::File { path: self.log.clone(), source }),
        }
    }

    /// The whole output of a container that has ended.
    ///
    /// containerd may report the end before it has written the last line. It closes the file after
    /// that, so this waits until no process has the file open.
    ///
    /// # Errors
    /// [`Error::Deadline`] if it is open for longer than `within`.
    pub async fn whole_log(&self, within: Duration) -> Result<Log> {
        let end = Instant::now() + within;
        while is_open(&self.log).map_err(|source| Error::File { path: self.log.clone(), source })? {
            if Instant::now() > end {
                return Err(Error::Deadline { call: "the end of the container's output", after: within });
            }
            tokio::time::sleep(LOOK).await;
        }
        self.log()
    }

    /// Waits until the log satisfies `enough`.
    pub async fn logged(&self, within: Duration, enough: impl Fn(&Log) -> bool) -> Result<Log> {
        let end = Instant::now() + within;
        loop {
            let log = self.log()?;
            if enough(&log) {
                return Ok(log);
            }
            if Instant::now() > end {
                return Err(Error::Deadline { call: "the container's output", after: within });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Exec: a command with streams of its own.
    pub async fn exec_stream<S: Into<String>>(&self, command: impl IntoIterator<Item = S>, stdin: bool, tty: bool) -> Result<Session> {
        let request = v1::ExecRequest {
            container_id: self.id.clone(),
            cmd: command.into_iter().map(Into::into).collect(),
            tty,
            stdin,
            stdout: true,
            stderr: !tty,
        };
        let answer = self.node.runtime("Exec", request, async |mut c, r| c.exec(r).await).await?;
        Session::open(&answer.url).await
    }

    /// Attach: the streams of the container's own process, from now on.
    pub async fn attach(&self, stdin: bool, tty: bool) -> Result<Session> {
        let request = v1::AttachRequest { container_id: self.id.clone(), stdin, tty, stdout: true, stderr: !tty };
        let answer = self.node.runtime("Attach", request, async |mut c, r| c.attach(r).await).await?;
        Session::open(&answer.url).await
    }

    async fn status_response(&self, verbose: bool) -> Result<v1::ContainerStatusResponse> {
        let request = v1::ContainerStatusRequest { container_id: self.id.clone(), verbose };
        self.node.runtime("ContainerStatus", request, async |mut c, r| c.container_status(r).await).await
    }
}

/// Whether any process that this one can see has the file open.
fn is_open(path: &Path) -> io::Result<bool> {
    // The links in /proc name files in this form.
    let path = match path.canonicalize() {
        Ok(path) => path,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    for entry in fs::read_dir("/proc")? {
        // Not every entry is a process, and a process may have ended.
        let Ok(descriptors) = fs::read_dir(entry?.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            if fs::read_link(descriptor.path()).is_ok_and(|file| file == path) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_open_until_its_last_descriptor_is_closed() {
        let path = std::env::temp_dir().join(format!("magnetar-is-open-{}", std::process::id()));
        assert!(!is_open(&path).unwrap());
        let first = fs::File::create(&path).unwrap();
        let second = first.try_clone().unwrap();
        assert!(is_open(&path).unwrap());
        drop(first);
        assert!(is_open(&path).unwrap());
        drop(second);
        assert!(!is_open(&path).unwrap());
        fs::remove_file(path).unwrap();
    }
}
