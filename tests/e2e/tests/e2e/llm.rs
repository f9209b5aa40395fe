// SPDX-License-Identifier: Apache-2.0
//! The inference server (images/llm), from the image that the builder makes of it, with a tiny
//! model whose answers are known.

use std::{
    env,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    sync::Once,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use magnetar_cri::{Container, ContainerSpec, Pod, PodSpec};
use magnetar_e2e::{Case, eventually, on_node_with};
use serde_json::{Value, json};

use super::engine::Engine;
use super::examples::import;
use super::nn::one_processor;

/// The folder with the image, which tests/e2e/run makes.
const FOLDER: &str = "MAGNETAR_LLM";
/// The model, in the checkout as a node sees it.
const MODEL: &str = "/magnetar/images/llm/model/tiny.gguf";
const IMAGE: &str = "registry.example/llm-server:1";
const CAPITAL: &str = "What is the capital of France?";

/// Makes a test of each engine out of a function.
macro_rules! on_each_engine {
    ($($name:ident,)*) => {
        mod wasmtime {
            use super::Engine;
            $(#[test] fn $name() { super::on_server(async |case| super::$name(case, Engine::Wasmtime).await); })*
        }
        mod wasmedge {
            use super::Engine;
            $(#[test] fn $name() { super::on_server(async |case| super::$name(case, Engine::WasmEdge).await); })*
        }
    };
}

on_each_engine! {
    a_chat_is_answered_at_once_and_as_a_stream,
    text_is_continued_and_embedded,
    what_is_wrong_has_its_error,
    a_hundred_requests_of_eight_clients_are_answered,
    answers_that_fill_the_context_disturb_no_others,
    a_client_that_leaves_is_not_answered_any_further,
    a_server_without_a_model_says_so,
}

/// A test, when the node has the server's image. It stays, as the node's own do.
fn on_server(test: impl AsyncFnOnce(&Case) -> Result<()>) {
    static GIVEN: Once = Once::new();
    let give = async |case: &Case| {
        let folder = env::var(FOLDER).with_context(|| format!("{FOLDER} is not set: run this with tests/e2e/run"))?;
        import(case, &Path::new(&folder).join("images.tar")).await
    };
    on_node_with(&GIVEN, give, test);
}

/// A server in a pod.
struct Server {
    pod: Pod,
    container: Container,
    address: String,
}

impl Server {
    /// Starts it, and waits until it is ready as a probe would.
    async fn start(case: &Case, engine: Engine, name: &str) -> Result<Self> {
        let pod = case.node().run_pod(&PodSpec::new(name, engine.handler()).own_pid()).await?;
        let preload = "default:GGML:CPU:/models/tiny.gguf embedding:GGML:CPU:/models/tiny.gguf";
        let spec = one_processor(ContainerSpec::new("server", IMAGE).mount_read_only(MODEL, "/models/tiny.gguf").memory(512 << 20));
        let container = pod.run(&spec.env("WASMEDGE_WASINN_PRELOAD", preload).env("CTX_SIZE", "2048").env("LOG_REQUESTS", "true")).await?;
        let server = Self { address: format!("{}:8080", pod.ip().await?), pod, container };
        let ready = async || {
            if server.container.status().await?.finished_at > 0 {
                bail!("it has ended: {}", server.container.log()?.stderr());
            }
            Ok(server.get("/health").ok().filter(|reply| reply.status == 200).map(drop))
        };
        eventually("the server is ready", case.within(60), ready).await?;
        Ok(server)
    }

    fn client(&self) -> Result<Client> {
        let stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Client(BufReader::new(stream)))
    }

    fn get(&self, path: &str) -> Result<Reply> {
        self.client()?.ask("GET", path, "")
    }

    fn post(&self, path: &str, body: &Value) -> Result<Reply> {
        self.client()?.ask("POST", path, &body.to_string())
    }

    /// A number from `/metrics`.
    fn metric(&self, name: &str) -> Result<u64> {
        let text = self.get("/metrics")?.body;
        let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name} in {text}"))?;
        Ok(line.trim().parse()?)
    }

    async fn stop(self) -> Result<()> {
        ensure!(self.container.status().await?.finished_at == 0, "it has ended: {}", self.container.log()?.stderr());
        Ok(self.pod.remove().await?)
    }
}

struct Client(BufReader<TcpStream>);

#[derive(Debug)]
struct Reply {
    status: u16,
    body: String,
}

impl Client {
    fn send(&mut self, method: &str, path: &str, body: &str) -> Result<()> {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: server\r\nContent-Length: {}\r\n\r\n", body.len());
        Ok(self.0.get_mut().write_all((head + body).as_bytes())?)
    }

    fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<Reply> {
        self.send(method, path, body)?;
        self.reply()
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.0.read_line(&mut line)? > 0, "the connection has ended");
        Ok(line.trim_end().to_owned())
    }

    fn reply(&mut self) -> Result<Reply> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok()).with_context(|| first.clone())?;
        let mut length = None;
        loop {
            let header = self.line()?;
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("Content-Length: ") {
                length = Some(value.parse()?);
            }
        }
        let mut body = Vec::new();
        if let Some(length) = length {
            body.resize(length, 0);
            self.0.read_exact(&mut body)?;
        } else {
            while let size @ 1.. = usize::from_str_radix(&self.line()?, 16)? {
                let mut chunk = vec![0; size + 2];
                self.0.read_exact(&mut chunk)?;
                body.extend(&chunk[..size]);
            }
            self.line()?;
        }
        Ok(Reply { status, body: String::from_utf8(body)? })
    }
}

impl Reply {
    fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("{self:?}"))
    }

    /// The text of a chat's answer, whose end must be the model's own.
    fn answer(&self) -> Result<String> {
        let answer = self.json()?;
        ensure!(answer["choices"][0]["finish_reason"] == "stop", "{answer}");
        Ok(answer["choices"][0]["message"]["content"].as_str().with_context(|| answer.to_string())?.to_owned())
    }

    /// The events of a stream that has come to its end.
    fn events(&self) -> Result<Vec<Value>> {
        let mut data: Vec<&str> = self.body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        ensure!(data.pop() == Some("[DONE]"), "{self:?}");
        Ok(data.into_iter().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }

    fn streamed(&self) -> Result<String> {
        Ok(self.events()?.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect())
    }
}

fn question(text: &str) -> Value {
    json!({"messages": [{"role": "user", "content": text}], "temperature": 0})
}

fn stream(text: &str) -> Value {
    let mut body = question(text);
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    body
}

async fn a_chat_is_answered_at_once_and_as_a_stream(case: &Case, engine: Engine) -> Result<()> {
    let server = Server::start(case, engine, "llm-chat").await?;
    let whole = server.post("/v1/chat/completions", &question(CAPITAL))?;
    ensure!(whole.answer()?.contains("Paris"), "{whole:?}");
    let usage = whole.json()?["usage"].clone();
    ensure!(
        usage["prompt_tokens"].as_u64().is_some_and(|tokens| tokens > 8)
            && usage["completion_tokens"].as_u64().is_some_and(|tokens| tokens > 2),
        "{usage}"
    );
    let streamed = server.post("/v1/chat/completions", &stream(CAPITAL))?;
    assert_eq!(streamed.streamed()?, whole.answer()?);
    let events = streamed.events()?;
    ensure!(events.len() > 4 && events.last().is_some_and(|last| last["usage"] == usage), "{events:?}");
    // A conversation, of whose beginning the model knows.
    let messages = json!([
        {"role": "user", "content": "What is 2 plus 3?"},
        {"role": "assistant", "content": "2 plus 3 is 5."},
        {"role": "user", "content": CAPITAL},
    ]);
    let reply = server.post("/v1/chat/completions", &json!({"messages": messages, "temperature": 0, "max_tokens": 64}))?;
    ensure!(reply.answer()?.contains("Paris"), "{reply:?}");
    let mut cut = question(CAPITAL);
    cut["max_tokens"] = 2.into();
    let reply = server.post("/v1/chat/completions", &cut)?.json()?;
    ensure!(reply["choices"][0]["finish_reason"] == "length" && reply["usage"]["completion_tokens"] == 2, "{reply}");
    let mut stopped = question(CAPITAL);
    stopped["stop"] = "Paris".into();
    let reply = server.post("/v1/chat/completions", &stopped)?;
    ensure!(!reply.answer()?.contains("Paris"), "{reply:?}");
    ensure!(server.get("/")?.body.contains("id=\"question\""));
    ensure!(server.metric("llm_generated_tokens_total")? > 8);
    let log = server.container.log()?.stdout();
    ensure!(log.contains("at port 8080") && log.contains("\"endpoint\":\"/v1/chat/completions\""), "{log}");
    server.stop().await
}

async fn text_is_continued_and_embedded(case: &Case, engine: Engine) -> Result<()> {
    let server = Server::start(case, engine, "llm-text").await?;
    let models = server.get("/v1/models")?.json()?;
    ensure!(models["data"][0]["id"] == "tiny" && models["data"][1]["id"] == "embedding", "{models}");
    let prompt = format!("<|im_start|>user\n{CAPITAL}<|im_end|>\n<|im_start|>assistant\n");
    let reply = server.post("/v1/completions", &json!({"model": "tiny", "prompt": prompt, "temperature": 0}))?.json()?;
    ensure!(reply["choices"][0]["text"].as_str().is_some_and(|text| text.contains("Paris")), "{reply}");
    let texts = json!(["The capital of France.", "The capital of Peru.", "The capital of France."]);
    let reply = server.post("/v1/embeddings", &json!({"model": "embedding", "input": texts}))?.json()?;
    let embedding = |index: usize| reply["data"][index]["embedding"].as_array().filter(|numbers| numbers.len() > 16);
    ensure!(embedding(0).is_some() && embedding(0) == embedding(2) && embedding(0) != embedding(1), "{reply}");
    let format = json!({"type": "json_schema", "json_schema": {"schema": {"type": "boolean"}}});
    let mut asked = question(CAPITAL);
    asked["response_format"] = format;
    let answer = server.post("/v1/chat/completions", &asked)?.answer()?;
    ensure!(matches!(answer.trim(), "true" | "false"), "{answer:?}");
    // The order in which a model writes properties is that of the schema.
    let properties = r#"{"country": {"type": "string"}, "capital": {"type": "string"}}"#;
    let schema = format!(r#"{{"type": "object", "properties": {properties}, "required": ["country", "capital"]}}"#);
    let body = format!(
        r#"{{"messages": [{{"role": "user", "content": "{CAPITAL} Answer in JSON."}}], "temperature": 0, "max_tokens": 64,
            "response_format": {{"type": "json_schema", "json_schema": {{"schema": {schema}}}}}}}"#
    );
    let answer = server.client()?.ask("POST", "/v1/chat/completions", &body)?.answer()?;
    let object: Value = serde_json::from_str(&answer)?;
    ensure!(object == json!({"country": "France", "capital": "Paris"}) && answer.find("country") < answer.find("capital"), "{answer}");
    server.stop().await
}

async fn what_is_wrong_has_its_error(case: &Case, engine: Engine) -> Result<()> {
    let server = Server::start(case, engine, "llm-errors").await?;
    let refused = |body: &str, status: u16, code: &str, param: Value| {
        let reply = server.client()?.ask("POST", "/v1/chat/completions", body)?;
        let error = reply.json()?["error"].clone();
        ensure!((reply.status, error["code"].as_str().unwrap_or_default()) == (status, code) && error["param"] == param, "{reply:?}");
        Ok(())
    };
    refused("{\"messages\": [", 400, "", Value::Null)?;
    let mut body = question(CAPITAL);
    body["model"] = "gpt-9".into();
    refused(&body.to_string(), 404, "model_not_found", json!("model"))?;
    body["model"] = "tiny".into();
    body["temperature"] = "hot".into();
    refused(&body.to_string(), 400, "invalid_value", json!("temperature"))?;
    for body in [question(&"one two three ".repeat(400)), stream(&"one two three ".repeat(400))] {
        refused(&body.to_string(), 400, "context_length_exceeded", json!("messages"))?;
    }
    let reply = server.client()?.ask("POST", "/v1/chat/completions", &question(&"x".repeat(10 << 20)).to_string())?;
    assert_eq!(reply.status, 413, "{reply:?}");
    assert_eq!(server.get("/nonesuch")?.status, 404);
    assert_eq!(server.get("/v1/chat/completions")?.status, 405);
    let reply = server.post("/v1/chat/completions", &question(CAPITAL))?;
    ensure!(reply.answer()?.contains("Paris"), "it goes on: {reply:?}");
    server.stop().await
}

async fn a_hundred_requests_of_eight_clients_are_answered(case: &Case, engine: Engine) -> Result<()> {
    let server = Server::start(case, engine, "llm-many").await?;
    let expected = server.post("/v1/chat/completions", &question(CAPITAL))?.answer()?;
    let (server_ref, expected_ref) = (&server, &expected);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|client| {
                scope.spawn(move || {
                    let mut connection = server_ref.client()?;
                    for turn in (client..100).step_by(8) {
                        let answer = if turn % 3 == 0 {
                            connection.ask("POST", "/v1/chat/completions", &stream(CAPITAL).to_string())?.streamed()?
                        } else {
                            connection.ask("POST", "/v1/chat/completions", &question(CAPITAL).to_string())?.answer()?
                        };
                        // Batches are computed in another order, and so not to the same last bit.
                        ensure!(answer.contains("Paris"), "{answer:?} is not {expected_ref:?}");
                    }
                    Ok(())
                })
            })
            .collect();
        clients.into_iter().try_for_each(|client| client.join().unwrap_or_else(|_| bail!("a client has failed")))
    })?;
    assert_eq!(server.metric("llm_requests_total{endpoint=\"/v1/chat/completions\",status=\"200\"}")?, 101);
    assert_eq!(server.metric("llm_active_generations")?, 0);
    server.stop().await
}

async fn answers_that_fill_the_context_disturb_no_others(case: &Case, engine: Engine) -> Result<()> {
    let server = Server::start(case, engine, "llm-full").await?;
    let server_ref = &server;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|client| {
                scope.spawn(move || {
                    let reply = server_ref.post("/v1/chat/completions", &endless(client % 2 == 0))?;
                    let (finish, tokens) = if client % 2 == 0 {
                        let events = reply.events()?;
                        let last = events.len().saturating_sub(2);
                        (events[last]["choices"][0]["finish_reason"].clone(), events[last + 1]["usage"]["total_tokens"].clone())
                    } else {
                        let answer = reply.json()?;
                        (answer["choices"][0]["finish_reason"].clone(), answer["usage"]["total_tokens"].clone())
                    };
                    ensure!(finish == "length" && tokens == 2048 / 4, "{reply:?}");
                    Ok(())
                })
            })
            .collect();
        clients.into_iter().try_for_each(|client| client.join().unwrap_or_else(|_| bail!("a client has failed")))
    })?;
    server.stop().await
}

/// A question whose answer is long by its schema, as far as the engine takes such a number.
fn endless(streamed: bool) -> Value {
    let mut body = if streamed { stream("Count.") } else { question("Count.") };
    body["response_format"] = json!({"type": "json_schema", "json_schema": {"schema": {"type": "string", "minLength": 1900}}});
    body
}

async fn a_client_that_leaves_is_not_answered_any_further(case: &Case, engine: Engine) -> Result<()> {
    let server = Server::start(case, engine, "llm-leaves").await?;
    for _ in 0..6 {
        let mut client = server.client()?;
        client.send("POST", "/v1/chat/completions", &endless(true).to_string())?;
        let status = client.line()?;
        ensure!(status.contains(" 200 "), "{status}: {}", server.container.log()?.stderr());
    }
    let reply = server.post("/v1/chat/completions", &question(CAPITAL))?;
    ensure!(reply.answer()?.contains("Paris"), "{reply:?}");
    let given_up = "llm_requests_total{endpoint=\"/v1/chat/completions\",status=\"499\"}";
    eventually("all of them are given up", case.soon(), async || Ok((server.metric(given_up)? == 6).then_some(()))).await?;
    assert_eq!(server.metric("llm_active_generations")?, 0);
    server.stop().await
}

async fn a_server_without_a_model_says_so(case: &Case, engine: Engine) -> Result<()> {
    let pod = case.node().run_pod(&PodSpec::new("llm-none", engine.handler()).own_pid()).await?;
    let container = pod.run(&ContainerSpec::new("server", IMAGE)).await?;
    assert_eq!(container.exited(case.within(30)).await?.exit_code, 1);
    let said = case.whole_log(&container).await?.stderr();
    ensure!(said.contains("no model is named: set WASMEDGE_WASINN_PRELOAD"), "{said}");
    Ok(pod.remove().await?)
}
