// SPDX-License-Identifier: Apache-2.0
//! The client for containerd's Task API in the guest. Wire types stop here.

use super::Connection;
use super::answers::{self, Answers};
use crate::relay::streams::StreamPaths;
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim_async::TaskClient;
use magnetar_core::cgroup::stats::{Metrics, Version};
use magnetar_core::error::Error;
use magnetar_core::ids::{ContainerId, ExecId};
use magnetar_core::terminal::Size;
use magnetar_vm_agent_api as agent;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::Context;

/// The containers in the guest. Cheap to clone. Calls have no timeout of their own: they end with
/// an answer or with the connection.
#[derive(Clone)]
pub struct GuestTasks(TaskClient);

/// Why a call has failed.
#[derive(Debug)]
pub enum Failure {
    /// The guest refuses it.
    Refused(Error),
    /// The connection to the guest is broken.
    Broken(Error),
}

/// The result of a call.
pub type Answer<T> = std::result::Result<T, Failure>;

impl GuestTasks {
    /// Uses a connection whose [`Purpose`](agent::Purpose) is `Tasks`.
    pub fn new(connection: Connection) -> Self {
        Self(TaskClient::new(Client::new(Socket::new(Answers::over(connection)))))
    }

    /// Makes a container from the bundle that the agent has written.
    pub async fn create(&self, container: &ContainerId, terminal: bool, streams: StreamPaths) -> Answer<()> {
        let bundle = format!("{}/{container}", agent::BUNDLES);
        let StreamPaths { stdin, stdout, stderr } = streams;
        let asked = api::CreateTaskRequest { id: container.to_string(), bundle, terminal, stdin, stdout, stderr, ..Default::default() };
        done(self.0.create(Context::default(), &asked).await)
    }

    /// Lets a container's program run, or runs an exec.
    pub async fn start(&self, container: &ContainerId, exec: Option<&ExecId>) -> Answer<()> {
        let asked = api::StartRequest { id: container.to_string(), exec_id: name(exec), ..Default::default() };
        done(self.0.start(Context::default(), &asked).await)
    }

    /// Announces an exec. `process` is `process` of the OCI specification, as JSON.
    pub async fn exec(&self, container: &ContainerId, exec: &ExecId, process: Vec<u8>, terminal: bool, streams: StreamPaths) -> Answer<()> {
        let StreamPaths { stdin, stdout, stderr } = streams;
        let (id, exec_id) = (container.to_string(), exec.to_string());
        let asked = api::ExecProcessRequest { id, exec_id, terminal, stdin, stdout, stderr, spec: json(process), ..Default::default() };
        done(self.0.exec(Context::default(), &asked).await)
    }

    /// Sends a signal.
    pub async fn kill(&self, container: &ContainerId, exec: Option<&ExecId>, signal: u32, all: bool) -> Answer<()> {
        let asked = api::KillRequest { id: container.to_string(), exec_id: name(exec), signal, all, ..Default::default() };
        done(self.0.kill(Context::default(), &asked).await)
    }

    /// Freezes (`true`) or thaws a container.
    pub async fn freeze(&self, container: &ContainerId, frozen: bool) -> Answer<()> {
        let id = container.to_string();
        done(if frozen {
            self.0.pause(Context::default(), &api::PauseRequest { id, ..Default::default() }).await
        } else {
            self.0.resume(Context::default(), &api::ResumeRequest { id, ..Default::default() }).await
        })
    }

    /// Changes a container's limits: `linux.resources` of the OCI specification, as JSON.
    pub async fn update(&self, container: &ContainerId, resources: Vec<u8>) -> Answer<()> {
        let asked = api::UpdateTaskRequest { id: container.to_string(), resources: json(resources), ..Default::default() };
        done(self.0.update(Context::default(), &asked).await)
    }

    /// Gives a process's terminal another size.
    pub async fn resize(&self, container: &ContainerId, exec: Option<&ExecId>, size: Size) -> Answer<()> {
        let (width, height) = (size.columns.into(), size.lines.into());
        let asked = api::ResizePtyRequest { id: container.to_string(), exec_id: name(exec), width, height, ..Default::default() };
        done(self.0.resize_pty(Context::default(), &asked).await)
    }

    /// Ends a process's input.
    pub async fn close_stdin(&self, container: &ContainerId, exec: Option<&ExecId>) -> Answer<()> {
        let asked = api::CloseIORequest { id: container.to_string(), exec_id: name(exec), stdin: true, ..Default::default() };
        done(self.0.close_io(Context::default(), &asked).await)
    }

    /// A container's resource usage. A guest has cgroup version 2. The type is checked here, so
    /// that the guest does not choose what containerd decodes.
    pub async fn statistics(&self, container: &ContainerId) -> Answer<Metrics> {
        let asked = api::StatsRequest { id: container.to_string(), ..Default::default() };
        let answer = self.0.stats(Context::default(), &asked).await.map_err(failure)?;
        let stats = answer.stats.into_option().filter(|any| any.type_url == Version::V2.type_url());
        let encoded = stats.and_then(|any| answers::statistics(&any.value));
        encoded.map(|encoded| Metrics { version: Version::V2, encoded }).ok_or_else(|| {
            let kind = Version::V2.type_url();
            Failure::Refused(Error::internal(format!("the guest's statistics of container {container} are no {kind}")))
        })
    }

    /// Removes an exec, or a container that has ended.
    pub async fn delete(&self, container: &ContainerId, exec: Option<&ExecId>) -> Answer<()> {
        let asked = api::DeleteRequest { id: container.to_string(), exec_id: name(exec), ..Default::default() };
        done(self.0.delete(Context::default(), &asked).await)
    }
}

/// An empty name is no exec.
fn name(exec: Option<&ExecId>) -> String {
    exec.map(ExecId::to_string).unwrap_or_default()
}

/// The agent reads the value only.
fn json(value: Vec<u8>) -> MessageField<Any> {
    MessageField::some(Any { value, ..Default::default() })
}

fn done<T>(answer: ttrpc::Result<T>) -> Answer<()> {
    answer.map(drop).map_err(failure)
}

fn failure(error: ttrpc::Error) -> Failure {
    match error {
        ttrpc::Error::RpcStatus(_) => Failure::Refused(answers::error(&error.into())),
        _ => Failure::Broken(error.into()),
    }
}
