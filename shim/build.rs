// SPDX-License-Identifier: Apache-2.0
//! Generates the server side of containerd's sandbox `Controller`.
//!
//! The messages come from the crate containerd-client, which generates only clients. So no protobuf
//! compiler runs here. `StartResponse` is ours, because containerd 2.3 added a field to it.

use tonic_build::manual::{Builder, Method, Service};

const MESSAGES: &str = "containerd_client::services::v1::sandbox";

fn main() {
    let methods = ["Create", "Start", "Platform", "Stop", "Wait", "Status", "Shutdown", "Metrics", "Update"];
    let service =
        methods.into_iter().fold(Service::builder().name("Controller").package("containerd.services.sandbox.v1"), |service, name| {
            let response = match name {
                "Start" => "crate::serve::wire::StartResponse".to_string(),
                _ => format!("{MESSAGES}::Controller{name}Response"),
            };
            let method = Method::builder()
                .name(name.to_lowercase())
                .route_name(name)
                .input_type(format!("{MESSAGES}::Controller{name}Request"))
                .output_type(response)
                .codec_path("tonic_prost::ProstCodec")
                .build();
            service.method(method)
        });
    Builder::new().build_client(false).compile(&[service.build()]);
    println!("cargo:rerun-if-changed=build.rs");
}
