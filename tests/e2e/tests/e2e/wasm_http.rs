// SPDX-License-Identifier: Apache-2.0
//! Components that answer HTTP requests.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http_body_util::{
    BodyExt as _,
    channel::{Channel, Sender},
};
use hyper::{
    HeaderMap, Request, StatusCode, Version,
    body::{Bytes, Incoming},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use magnetar_cri::PodSpec;
use magnetar_e2e::{eventually, on_node};
use tokio::task::JoinSet;

use super::engine::{Engine, ends, get, module, pod, running};

#[test]
fn a_component_answers_each_http_request_in_a_new_instance() {
    on_node(async |case| {
        let pod = pod(case, Engine::Wasmtime, "http").await?;
        let container = running(case, &pod, &module("http.wat", []).env("PORT", "8081")).await?;
        ensure!(container.log()?.stderr().contains("answers HTTP on port 8081"), "{:?}", container.log()?.stderr());
        let address = format!("{}:8081", pod.ip().await?);
        for path in ["/one", "/two?x=1"] {
            assert_eq!(get(&address, path)?, (200, format!("request 1 of this instance: {path}")));
        }
        assert_eq!(get(&address, "/trap")?.0, 500);
        container.logged(case.soon(), |log| log.stderr().contains("GET /trap") && log.stderr().contains("unreachable")).await?;
        // The head was there, and the body is cut off.
        let (status, body) = get(&address, "/late")?;
        assert_eq!((status, body.as_str()), (200, ""));
        container
            .logged(case.soon(), |log| log.stderr().contains("GET /late, after its answer") && log.stderr().contains("unreachable"))
            .await?;
        assert_eq!(get(&address, "/three")?.0, 200);
        container.stop(10).await?;
        assert_eq!(container.status().await?.exit_code, 0, "it has no client and ends in order");

        let annotated = PodSpec::new("http-annotated", Engine::Wasmtime.handler()).edit(|config| {
            config.annotations.insert("io.magnetar.wasm.http-port".into(), "8082".into());
        });
        let other = case.node().run_pod(&annotated).await?;
        running(case, &other, &module("http.wat", []).env("PORT", "8081")).await?;
        assert_eq!(get(&format!("{}:8082", other.ip().await?), "/")?, (200, "request 1 of this instance: /".into()));
        other.remove().await?;

        let (status, _, said) = ends(case, &pod, &module("http.wat", []).env("PORT", "none")).await?;
        ensure!(status.exit_code == 1 && said.contains("\"none\" is not a port number"), "{} {said:?}", status.exit_code);
        Ok(pod.remove().await?)
    });
}

#[test]
fn a_request_that_computes_without_end_is_ended_and_holds_up_no_other() {
    on_node(async |case| {
        let spec = PodSpec::new("http-limits", Engine::Wasmtime.handler()).edit(|config| {
            for (name, value) in [("timeout", "10"), ("requests", "3"), ("access-log", "true")] {
                config.annotations.insert(format!("io.magnetar.wasm.http-{name}"), value.into());
            }
        });
        let pod = case.node().run_pod(&spec).await?;
        let container = running(case, &pod, &module("http.wat", [])).await?;
        let address = format!("{}:8080", pod.ip().await?);
        let spin = || {
            let address = address.clone();
            // An answered request has its place for a moment longer.
            std::thread::spawn(move || {
                loop {
                    match get(&address, "/spin")? {
                        (503, _) => std::thread::sleep(Duration::from_millis(10)),
                        answer => return Ok(answer),
                    }
                }
            })
        };
        let (first, second) = (spin(), spin());
        // Both compute, on a node that may have one processor.
        eventually("another request is answered beside them", case.soon(), async || {
            Ok((get(&address, "/one")? == (200, "request 1 of this instance: /one".into()) && !first.is_finished()).then_some(()))
        })
        .await?;
        let all_compute = async || {
            eventually("there are as many as there may be", case.soon(), async || Ok((get(&address, "/two")?.0 == 503).then_some(()))).await
        };
        let are_ended = |requests: [std::thread::JoinHandle<_>; 3]| -> Result<()> {
            for request in requests {
                let answer: Result<(u16, String)> = request.join().map_err(|_| anyhow::anyhow!("a client has panicked"))?;
                assert_eq!(answer?, (504, "the Wasm component has not answered in time\n".into()));
            }
            Ok(())
        };
        let third = spin();
        all_compute().await?;
        are_ended([first, second, third])?;
        assert_eq!(get(&address, "/three")?.0, 200);
        container
            .logged(case.soon(), |log| {
                let said = log.stderr();
                let mut lines = said.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
                said.contains("GET /spin: no answer within 10s") && lines.any(|line| line["status"] == 503 && line["ms"].is_u64())
            })
            .await?;
        // Whoever is stopped while requests run ends them first.
        let requests = [spin(), spin(), spin()];
        all_compute().await?;
        container.stop(30).await?;
        assert_eq!(container.status().await?.exit_code, 0);
        are_ended(requests)?;
        Ok(pod.remove().await?)
    });
}

/// Sends pieces, each when the one before has come back, and then trailers, which come back after
/// them.
async fn comes_back(mut sends: Sender<Bytes>, mut body: Incoming) -> Result<()> {
    for piece in ["one", "two", "three"] {
        sends.send_data(Bytes::from(piece)).await?;
        let mut got = Vec::new();
        while got.len() < piece.len() {
            let frame = body.frame().await.context("the answer ends early")??;
            got.extend(frame.into_data().map_err(|frame| anyhow::anyhow!("no data but {frame:?}"))?);
        }
        assert_eq!(got, piece.as_bytes());
    }
    let trailers = HeaderMap::from_iter([("sum".parse()?, "7".parse()?)]);
    sends.send_trailers(trailers.clone()).await?;
    drop(sends);
    let last = body.frame().await.context("there are no trailers")??;
    assert_eq!(last.into_trailers().map_err(|frame| anyhow::anyhow!("no trailers but {frame:?}"))?, trailers);
    ensure!(body.frame().await.is_none(), "something follows the trailers");
    Ok(())
}

/// Waits until a connection is closed in order.
async fn ended<T: 'static>(connections: &mut JoinSet<T>) -> Result<T> {
    Ok(connections.join_next().await.context("there is no connection")??)
}

#[test]
fn bodies_and_trailers_pass_in_both_directions_while_both_sides_talk() {
    on_node(async |case| {
        let pod = pod(case, Engine::Wasmtime, "http-echo").await?;
        let container = running(case, &pod, &module("http-echo.wat", [])).await?;
        let address = format!("{}:8080", pod.ip().await?);
        let connect = async || anyhow::Ok(TokioIo::new(tokio::net::TcpStream::connect(&address).await?));
        let request = || Request::post("/").header("host", &address).header("te", "trailers").header("trailer", "sum");

        let mut connections = JoinSet::new();
        let (mut client, connection) = hyper::client::conn::http1::handshake(connect().await?).await?;
        connections.spawn(connection);
        let (sends, body) = Channel::<Bytes>::new(1);
        let answer = client.send_request(request().body(body)?).await?;
        assert_eq!(answer.status(), StatusCode::OK);
        comes_back(sends, answer.into_body()).await.context("by HTTP/1.1")?;
        drop(client);
        ended(&mut connections).await??;

        // With prior knowledge: there is no TLS in which to ask for it.
        let (mut client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), connect().await?).await?;
        connections.spawn(connection);
        let mut requests = Vec::new();
        for _ in 0..3 {
            let (sends, body) = Channel::<Bytes>::new(1);
            let request = Request::post(format!("http://{address}/")).body(body)?;
            requests.push((sends, client.send_request(request).await?));
        }
        // All on one connection, at the same time.
        for (sends, answer) in requests {
            assert_eq!((answer.version(), answer.status()), (Version::HTTP_2, StatusCode::OK));
            comes_back(sends, answer.into_body()).await.context("by HTTP/2")?;
        }
        drop(client);
        ended(&mut connections).await??;
        ensure!(!container.log()?.stderr().contains("after its answer"), "{}", container.log()?.stderr());
        Ok(pod.remove().await?)
    });
}
