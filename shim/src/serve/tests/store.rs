// SPDX-License-Identifier: Apache-2.0
//! A fake of containerd's sandbox store, on a socket of its own. The generated code has no server
//! for it, so this one is written by hand, for the one call that is used.

use containerd_client::services::v1::sandbox::{StoreGetRequest, StoreGetResponse};
use containerd_client::types::Sandbox;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// The store's answer about a pod. For pods without an entry it answers that they do not exist.
#[derive(Debug, Clone, Copy)]
pub enum Says {
    /// The pod exists.
    Known,
    /// The store cannot answer now.
    Unavailable,
}

/// The store. It ends when it is dropped.
pub struct FakeStore {
    service: StoreService,
    _tasks: JoinSet<()>,
}

#[derive(Clone, Default)]
struct StoreService {
    entries: Arc<Mutex<HashMap<String, Says>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl FakeStore {
    /// Answers at `path` from now on.
    pub fn serve(path: &Path, entries: &[(&str, Says)]) -> Self {
        let service = StoreService::default();
        service.entries.lock().unwrap().extend(entries.iter().map(|(id, says)| (id.to_string(), *says)));
        let _replaced = std::fs::remove_file(path);
        let listener = UnixListenerStream::new(UnixListener::bind(path).unwrap());
        let server = Server::builder().add_service(service.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { server.serve_with_incoming(listener).await.unwrap() });
        Self { service, _tasks: tasks }
    }

    /// Adds or changes an entry.
    pub fn set(&self, id: &str, says: Says) {
        self.service.entries.lock().unwrap().insert(id.into(), says);
    }

    /// How often the store was asked about a pod.
    pub fn asked(&self, id: &str) -> usize {
        self.service.asked.lock().unwrap().iter().filter(|asked| *asked == id).count()
    }
}

impl StoreService {
    fn get(&self, request: Request<StoreGetRequest>) -> Result<Response<StoreGetResponse>, Status> {
        let namespace = request.metadata().get("containerd-namespace").and_then(|value| value.to_str().ok());
        assert_eq!(namespace, Some("n"));
        let id = request.into_inner().sandbox_id;
        self.asked.lock().unwrap().push(id.clone());
        match self.entries.lock().unwrap().get(&id) {
            Some(Says::Known) => Ok(Response::new(StoreGetResponse { sandbox: Some(Sandbox { sandbox_id: id, ..Default::default() }) })),
            Some(Says::Unavailable) => Err(Status::unavailable("not now")),
            None => Err(Status::not_found("sandbox does not exist")),
        }
    }
}

impl NamedService for StoreService {
    const NAME: &'static str = "containerd.services.sandbox.v1.Store";
}

impl UnaryService<StoreGetRequest> for StoreService {
    type Response = StoreGetResponse;
    type Future = Ready<Result<Response<StoreGetResponse>, Status>>;

    fn call(&mut self, request: Request<StoreGetRequest>) -> Self::Future {
        ready(self.get(request))
    }
}

impl Service<http::Request<Body>> for StoreService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        assert_eq!(request.uri().path(), "/containerd.services.sandbox.v1.Store/Get");
        let service = self.clone();
        Box::pin(async move { Ok(Grpc::new(tonic_prost::ProstCodec::default()).unary(service, request).await) })
    }
}
