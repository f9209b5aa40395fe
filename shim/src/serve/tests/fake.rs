// SPDX-License-Identifier: Apache-2.0
//! A fake sandboxer: scripts execute this test program itself, and the script's name tells it what
//! to do wrong.

use async_trait::async_trait;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_async::{Sandbox, create_sandbox};
use magnetar_core::record::PodDir;
use magnetar_core::sandbox::update::{METHOD, SERVICE};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use ttrpc::Code::{FAILED_PRECONDITION, OK};
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{MethodHandler, TtrpcContext};
use ttrpc::proto::ResponseInit;

/// The kinds of fake sandboxer, each of which does something else wrong.
pub const KINDS: [&str; 9] = ["good", "refuses", "dies", "hangs", "unready", "slow", "silent", "fixed", "old"];

/// Makes a script for each kind.
pub fn install(folder: &Path) {
    let exe = std::env::current_exe().unwrap();
    for kind in KINDS {
        let path = folder.join(format!("magnetar-{kind}"));
        let run = format!("exec {} --exact serve::tests::fake::sandboxer --nocapture", exe.display());
        std::fs::write(&path, format!("#!/bin/sh\nFAKE_KIND={kind} FAKE_POD=\"$2\" {run} \"$2\" >/dev/null 2>&1\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Not a test, but the fake sandboxer itself if the environment says so.
#[test]
fn sandboxer() {
    let (Ok(kind), Ok(pod)) = (std::env::var("FAKE_KIND"), std::env::var("FAKE_POD")) else { return };
    // A test that fails must not leave this process behind.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    let dir = PodDir::existing(pod.into());
    if kind == "silent" {
        // Alive, but without the lock and without an id in the record.
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
    let _lock = dir.try_lock().unwrap().unwrap();
    let mut record = dir.pod().unwrap();
    record.pid = std::process::id();
    dir.write_pod(&record).unwrap();
    let listener = magnetar_sys::listener::inherit().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (ended, mut end) = watch::channel(Phase::Running);
        let listener = UnixListenerStream::new(tokio::net::UnixListener::from_std(listener).unwrap());
        let update = Update(dir.clone(), kind.clone());
        let mut services = create_sandbox(Arc::new(Fake { kind, phase: ended }));
        if update.1 != "old" {
            services.get_mut(SERVICE).unwrap().methods.insert(METHOD.into(), Box::new(update));
        }
        let mut server = ttrpc::asynchronous::Server::new().add_listener(Listener::new(listener)).register_service(services);
        server.start().await.unwrap();
        end.wait_for(|phase| *phase == Phase::Ended).await.unwrap();
        server.shutdown().await.unwrap();
    });
}

/// UpdateSandbox: keeps what it was asked, or refuses.
struct Update(PodDir, String);

#[async_trait]
impl MethodHandler for Update {
    async fn handler(&self, _: TtrpcContext, request: ttrpc::Request) -> ttrpc::Result<ttrpc::Response> {
        std::fs::write(self.0.path().join("update"), request.payload).unwrap();
        let (code, why) = if self.1 == "fixed" { (FAILED_PRECONDITION, "carved in stone") } else { (OK, "") };
        Ok(ttrpc::Response::init_status(ttrpc::get_status(code, why)))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Stopped,
    Ended,
}

struct Fake {
    kind: String,
    phase: watch::Sender<Phase>,
}

fn refuse<T>(message: &str) -> ttrpc::Result<T> {
    Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::RESOURCE_EXHAUSTED, message)))
}

#[async_trait]
impl Sandbox for Fake {
    async fn create_sandbox(&self, _: &TtrpcContext, _: api::CreateSandboxRequest) -> ttrpc::Result<api::CreateSandboxResponse> {
        match self.kind.as_str() {
            "refuses" => refuse("no more sandboxes"),
            "dies" => std::process::exit(3),
            "hangs" => std::future::pending().await,
            _ => Ok(api::CreateSandboxResponse::new()),
        }
    }

    async fn start_sandbox(&self, _: &TtrpcContext, _: api::StartSandboxRequest) -> ttrpc::Result<api::StartSandboxResponse> {
        match self.kind.as_str() {
            "unready" => refuse("never ready"),
            "slow" => std::future::pending().await,
            _ => Ok(api::StartSandboxResponse { pid: std::process::id(), ..Default::default() }),
        }
    }

    async fn wait_sandbox(&self, _: &TtrpcContext, _: api::WaitSandboxRequest) -> ttrpc::Result<api::WaitSandboxResponse> {
        let mut phase = self.phase.subscribe();
        phase.wait_for(|phase| *phase != Phase::Running).await.unwrap();
        let exited_at = MessageField::some(Timestamp { seconds: 7, ..Default::default() });
        Ok(api::WaitSandboxResponse { exit_status: 5, exited_at, ..Default::default() })
    }

    async fn stop_sandbox(&self, _: &TtrpcContext, _: api::StopSandboxRequest) -> ttrpc::Result<api::StopSandboxResponse> {
        self.phase.send_replace(Phase::Stopped);
        Ok(api::StopSandboxResponse::new())
    }

    async fn sandbox_status(&self, _: &TtrpcContext, req: api::SandboxStatusRequest) -> ttrpc::Result<api::SandboxStatusResponse> {
        let pid = std::process::id();
        Ok(api::SandboxStatusResponse { sandbox_id: req.sandbox_id, pid, state: "SANDBOX_READY".into(), ..Default::default() })
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, _: api::PingRequest) -> ttrpc::Result<api::PingResponse> {
        Ok(api::PingResponse::new())
    }

    async fn shutdown_sandbox(&self, _: &TtrpcContext, _: api::ShutdownSandboxRequest) -> ttrpc::Result<api::ShutdownSandboxResponse> {
        self.phase.send_replace(Phase::Ended);
        Ok(api::ShutdownSandboxResponse::new())
    }
}
