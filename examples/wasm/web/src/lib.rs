// SPDX-License-Identifier: Apache-2.0
//! An HTTP service (`wasi:http/proxy` of WASI 0.2). The engine listens, and makes an instance of
//! this component for each request.

use std::io::Write as _;

use wasip2::{
    exports::http::incoming_handler::Guest,
    http::types::{ErrorCode, Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam},
};

struct Web;

wasip2::http::proxy::export!(Web);

impl Guest for Web {
    fn handle(request: IncomingRequest, answer: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let (status, text) = match path.strip_prefix("/hello/") {
            Some(name) => (200, format!("hello {name}\n")),
            None => (404, format!("there is no {path}\n")),
        };
        if let Err(error) = send(answer, status, &text) {
            eprintln!("{path}: {error}");
        }
    }
}

/// Sends the whole answer.
fn send(answer: ResponseOutparam, status: u16, text: &str) -> Result<(), Box<dyn std::error::Error>> {
    let headers = Fields::from_list(&[("content-type".into(), b"text/plain; charset=utf-8".to_vec())])?;
    let response = OutgoingResponse::new(headers);
    response.set_status_code(status).map_err(|()| format!("{status} is no status code"))?;
    let body = response.body().map_err(|()| "the body was taken before")?;
    // The head goes out now, and the body while it is written.
    ResponseOutparam::set(answer, Ok(response));
    let mut stream = body.write().map_err(|()| "the stream was taken before")?;
    stream.write_all(text.as_bytes())?;
    stream.flush()?;
    // A body cannot end before its stream.
    drop(stream);
    OutgoingBody::finish(body, None).map_err(|error: ErrorCode| error.into())
}
