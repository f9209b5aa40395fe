// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::engine::fake::{Fake, Seen};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// A server in a thread.
struct Running {
    port: u16,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn start() -> Running {
    start_with(&[])
}

fn start_with(arguments: &[&str]) -> Running {
    let preload = "default:GGML:AUTO:/nonesuch/Tiny.gguf embedding:GGML:AUTO:/nonesuch/Embedder.gguf";
    let environment = [("WASMEDGE_WASINN_PRELOAD".to_owned(), preload.to_owned())];
    let options = Options::read(arguments.iter().map(|argument| (*argument).to_owned()), environment).unwrap();
    let listener = net::listen(0).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (mut engine, seen) = Fake::new();
    let models = Models::load(&mut engine, &options).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let ends = stop.clone();
    let thread = std::thread::spawn(move || {
        let mut server = Server::new(engine, models, options, listener);
        while !ends.load(Ordering::Relaxed) {
            if !server.turn() {
                server.wait().unwrap();
            }
        }
    });
    Running { port, seen, stop, thread: Some(thread) }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

struct Client(BufReader<TcpStream>);

#[derive(Debug)]
struct Reply {
    status: u16,
    headers: Vec<String>,
    body: String,
}

impl Running {
    fn client(&self) -> Client {
        let socket = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Client(BufReader::new(socket))
    }

    fn get(&self, path: &str) -> Reply {
        self.client().ask("GET", path, "")
    }

    fn post(&self, path: &str, body: &Value) -> Reply {
        self.client().ask("POST", path, &body.to_string())
    }

    fn chat(&self, question: &str) -> Reply {
        self.post("/v1/chat/completions", &chat(question))
    }

    /// Waits until nothing is computed.
    fn is_idle(&self) {
        let begun = Instant::now();
        while self.seen.lock().unwrap().active.0 > 0 {
            assert!(begun.elapsed() < Duration::from_secs(20), "something is still computed");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Client {
    fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn ask(&mut self, method: &str, path: &str, body: &str) -> Reply {
        self.send(&format!("{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        self.reply(method == "HEAD")
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end_matches("\r\n").to_owned()
    }

    fn reply(&mut self, without_body: bool) -> Reply {
        let first = self.line();
        let status = first.split(' ').nth(1).unwrap_or_else(|| panic!("{first:?}")).parse().unwrap();
        let headers: Vec<String> = std::iter::repeat_with(|| self.line()).take_while(|line| !line.is_empty()).collect();
        let of = |name: &str| headers.iter().find_map(|header| header.strip_prefix(name)).map(str::to_owned);
        let mut body = Vec::new();
        if let Some(length) = of("Content-Length: ").filter(|_| !without_body) {
            body.resize(length.parse().unwrap(), 0);
            self.0.read_exact(&mut body).unwrap();
        } else if of("Transfer-Encoding: chunked").is_some() {
            loop {
                let line = self.line();
                let Ok(size) = usize::from_str_radix(&line, 16) else { break };
                let mut chunk = vec![0; size + 2];
                self.0.read_exact(&mut chunk).unwrap();
                body.extend(&chunk[..size]);
                if size == 0 {
                    break;
                }
            }
        } else if of("Content-Type: text/event-stream").is_some() {
            self.0.read_to_end(&mut body).unwrap();
        }
        Reply { status, headers, body: String::from_utf8(body).unwrap() }
    }
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn text(&self) -> String {
        self.json()["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }

    /// The events of a stream, and whether it has come to its end.
    fn events(&self) -> (Vec<Value>, bool) {
        let data: Vec<&str> =
            self.body.split("\n\n").filter(|event| !event.is_empty()).map(|event| event.strip_prefix("data: ").unwrap()).collect();
        let events = data.iter().filter(|data| **data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect();
        (events, data.last() == Some(&"[DONE]"))
    }

    fn error(&self) -> (u16, String, Value) {
        let error = &self.json()["error"];
        (self.status, error["code"].as_str().unwrap_or_default().to_owned(), error["param"].clone())
    }
}

fn chat(question: &str) -> Value {
    json!({"messages": [{"role": "user", "content": question}]})
}

fn streamed(question: &str) -> Value {
    let mut body = chat(question);
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    body
}

#[test]
fn a_chat_is_answered() {
    let server = start();
    let mut asked = chat("pieces:Par|is");
    asked["model"] = "Tiny".into();
    let answer = server.post("/v1/chat/completions", &asked).json();
    assert_eq!(
        answer["choices"][0],
        json!({"index": 0, "message": {"role": "assistant", "content": "Paris", "refusal": null}, "finish_reason": "stop", "logprobs": null})
    );
    assert_eq!(answer["usage"], json!({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}));
    assert_eq!((answer["object"].as_str(), answer["model"].as_str()), (Some("chat.completion"), Some("Tiny")));
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let seen = server.seen.lock().unwrap();
    let prompt = "<|im_start|>user\npieces:Par|is<|im_end|>\n<|im_start|>assistant\n";
    let [(metadata, begun)] = &seen.begun[..] else { panic!("{:?}", seen.begun) };
    let metadata: Value = serde_json::from_str(metadata).unwrap();
    assert_eq!(metadata, json!({"n-predict": 4093, "non-blocking": true, "reverse-prompt": ["<|im_end|>"]}));
    assert_eq!(begun, prompt);
    assert_eq!(seen.active, (0, 1));
    assert_eq!(seen.loaded[0], ("default".into(), "{\"ctx-size\":16384,\"parallel\":4}".into()));
}

#[test]
fn a_stream_has_an_opening_pieces_an_end_and_the_number_of_tokens() {
    let server = start();
    let reply = server.post("/v1/chat/completions", &streamed("pieces:Par|is"));
    assert!(reply.headers.iter().any(|header| header.starts_with("Content-Type: text/event-stream")), "{reply:?}");
    let (events, complete) = reply.events();
    assert!(complete);
    let deltas: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["delta"]).collect();
    assert_eq!(
        deltas[..4],
        [&json!({"role": "assistant", "content": ""}), &json!({"content": "Par"}), &json!({"content": "is"}), &json!({})]
    );
    let ends: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["finish_reason"]).collect();
    assert_eq!(ends[2..], [&Value::Null, &json!("stop"), &Value::Null]);
    assert_eq!(events[4]["choices"], json!([]));
    assert_eq!(events[4]["usage"]["completion_tokens"], 2);
    assert!(events.iter().all(|event| event["id"] == events[0]["id"] && event["object"] == "chat.completion.chunk"));
    let mut without = streamed("pieces:x");
    without.as_object_mut().unwrap().remove("stream_options");
    let events = server.post("/v1/chat/completions", &without).events().0;
    assert!(events.len() == 3 && events.iter().all(|event| event.get("usage").is_none()));
}

#[test]
fn characters_are_not_cut() {
    let server = start();
    let text = "aé€😀";
    assert_eq!(server.chat(text).text(), text);
    let events = server.post("/v1/chat/completions", &streamed(text)).events().0;
    let joined: String = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(joined, text);
}

#[test]
fn an_answer_says_why_it_ends() {
    let server = start();
    let mut body = chat("count:9");
    body["max_tokens"] = 3.into();
    let answer = server.post("/v1/chat/completions", &body).json();
    assert_eq!((&answer["choices"][0]["finish_reason"], &answer["choices"][0]["message"]["content"]), (&json!("length"), &json!("0 1 2 ")));
    let answer = server.chat("full").json();
    assert_eq!((&answer["choices"][0]["finish_reason"], &answer["choices"][0]["message"]["content"]), (&json!("length"), &json!("so far")));
    assert_eq!(server.chat("").text(), "");
}

#[test]
fn an_answer_has_its_part_of_the_context_and_no_more() {
    let server = start_with(&["--ctx-size", "64"]);
    let answer = server.chat("count:100").json();
    assert_eq!((&answer["choices"][0]["finish_reason"], &answer["usage"]["completion_tokens"]), (&json!("length"), &json!(13)));
    let mut body = chat("count:100");
    body["max_tokens"] = 5.into();
    assert_eq!(server.post("/v1/chat/completions", &body).json()["usage"]["completion_tokens"], 5);
    let refused = server.chat("a b c d e f g h i j k l");
    assert_eq!(refused.error(), (400, "context_length_exceeded".into(), json!("messages")));
    assert!(
        refused.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("of 14 tokens does not fit into the model's context: it has 16 tokens")
    );
    server.is_idle();
}

#[test]
fn text_is_continued() {
    let server = start();
    let answer = server.post("/v1/completions", &json!({"prompt": "pieces:upon| a time"})).json();
    assert_eq!((&answer["object"], &answer["choices"][0]["text"]), (&json!("text_completion"), &json!("upon a time")));
    let (events, complete) = server.post("/v1/completions", &json!({"prompt": "pieces:a|b", "stream": true})).events();
    let texts: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["text"]).collect();
    assert_eq!((texts, complete), (vec![&json!("a"), &json!("b"), &json!("")], true));
}

#[test]
fn texts_are_embedded() {
    let server = start();
    let answer = server.post("/v1/embeddings", &json!({"input": ["a b", "c"], "model": "embedding"})).json();
    assert_eq!(answer["data"][0], json!({"object": "embedding", "index": 0, "embedding": [3.0, 0.5, -1]}));
    assert_eq!((&answer["data"][1]["index"], &answer["usage"]), (&json!(1), &json!({"prompt_tokens": 3, "total_tokens": 3})));
    let answer = server.post("/v1/embeddings", &json!({"input": "c", "encoding_format": "base64"})).json();
    assert_eq!(answer["data"][0]["embedding"], "AACAPwAAAD8AAIC/");
    let loaded = server.seen.lock().unwrap().loaded[1].clone();
    let metadata: Value = serde_json::from_str(&loaded.1).unwrap();
    assert_eq!((loaded.0.as_str(), &metadata["embedding"]), ("embedding", &json!(true)));
}

#[test]
fn the_other_endpoints_answer() {
    let server = start();
    assert_eq!(server.get("/health").json(), json!({"status": "ok"}));
    let models = server.get("/v1/models").json();
    assert_eq!((&models["data"][0]["id"], &models["data"][1]["id"]), (&json!("Tiny"), &json!("embedding")));
    assert_eq!(server.get("/v1/models/default").json()["object"], "model");
    assert_eq!(server.get("/v1/models/x").error(), (404, "model_not_found".into(), json!("model")));
    let page = server.get("/?x=y");
    assert!(page.status == 200 && page.body.contains("id=\"question\"") && !page.body.contains("//cdn"));
    let head = server.client().ask("HEAD", "/health", "");
    assert!(head.status == 200 && head.headers.contains(&"Content-Length: 15".to_owned()));
    server.chat("pieces:a|b");
    let metrics = server.get("/metrics").body;
    for line in ["llm_generated_tokens_total 2", "llm_requests_total{endpoint=\"/health\",status=\"200\"} 2", "llm_active_generations 0"] {
        assert!(metrics.lines().any(|written| written == line), "{line} in {metrics}");
    }
}

#[test]
fn what_cannot_be_answered_is_an_error() {
    let server = start();
    assert_eq!(server.client().ask("POST", "/v1/chat/completions", "{").error(), (400, String::new(), Value::Null));
    assert_eq!(server.chat("long").error(), (400, "context_length_exceeded".into(), json!("messages")));
    assert_eq!(server.post("/v1/chat/completions", &streamed("long")).error(), (400, "context_length_exceeded".into(), json!("messages")));
    assert_eq!(server.chat("fail").error(), (500, "engine_failure".into(), Value::Null));
    assert_eq!(server.get("/nonesuch").status, 404);
    let wrong = server.get("/v1/chat/completions");
    assert!(wrong.status == 405 && wrong.headers.contains(&"Allow: POST".to_owned()), "{wrong:?}");
    assert_eq!(server.client().ask("DELETE", "/health", "").status, 405);
    server.is_idle();
}

#[test]
fn a_large_body_is_refused_while_it_is_sent() {
    let server = start();
    let mut client = server.client();
    client.send("POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 10485760\r\n\r\n");
    let piece = "x".repeat(64 << 10);
    for _ in 0..160 {
        client.send(&piece);
    }
    let reply = client.reply(false);
    assert!(reply.status == 413 && reply.headers.contains(&"Connection: close".to_owned()), "{reply:?}");
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn connections_are_used_again() {
    let server = start();
    let mut client = server.client();
    for _ in 0..3 {
        assert_eq!(client.ask("POST", "/v1/chat/completions", &chat("pieces:a").to_string()).text(), "a");
        let body = streamed("pieces:b").to_string();
        assert!(client.ask("POST", "/v1/chat/completions", &body).events().1);
    }
    // Two at once, of which the second waits for the first.
    let one = |text: &str| {
        let body = chat(text).to_string();
        format!("POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    client.send(&(one("pieces:c") + &one("pieces:d")));
    assert_eq!((client.reply(false).text(), client.reply(false).text()), ("c".into(), "d".into()));
}

#[test]
fn older_clients_get_the_end_of_the_connection_as_the_end() {
    let server = start();
    let mut client = server.client();
    let body = streamed("pieces:a|b").to_string();
    client.send(&format!("POST /v1/chat/completions HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    let reply = client.reply(false);
    assert!(reply.events().1 && reply.headers.contains(&"Connection: close".to_owned()));
}

#[test]
fn a_client_that_closes_its_side_has_its_short_answer() {
    let server = start();
    let mut client = server.client();
    client.send("GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
    client.0.get_mut().shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.reply(false).status, 200);
}

#[test]
fn several_are_answered_at_once_and_the_others_wait() {
    let server = start();
    std::thread::scope(|scope| {
        for client in 0..8 {
            let server = &server;
            scope.spawn(move || {
                for turn in 0..13 {
                    let expected: String = (0..client + turn).map(|n| format!("{n} ")).collect();
                    let question = format!("count:{}", client + turn);
                    if turn % 2 == 0 {
                        assert_eq!(server.chat(&question).text(), expected);
                    } else {
                        let (events, complete) = server.post("/v1/chat/completions", &streamed(&question)).events();
                        let text: String = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
                        assert_eq!((text, complete), (expected, true));
                    }
                }
            });
        }
    });
    server.is_idle();
    let seen = server.seen.lock().unwrap();
    assert!(seen.begun.len() == 104 && (2..=4).contains(&seen.active.1), "{} computations, {} at once", seen.begun.len(), seen.active.1);
}

#[test]
fn more_than_may_wait_are_sent_away() {
    let server = start_with(&["--slots", "1", "--queue", "1"]);
    let mut clients: Vec<Client> = (0..2).map(|_| server.client()).collect();
    let body = chat("slow:100").to_string();
    for client in &mut clients {
        client.send(&format!("POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    }
    // Both have arrived when the numbers say so.
    while !server.get("/metrics").body.contains("llm_waiting_requests 1") {}
    let refused = server.chat("pieces:a");
    assert!(refused.status == 503 && refused.headers.contains(&"Retry-After: 1".to_owned()), "{refused:?}");
    for client in &mut clients {
        assert_eq!(client.reply(false).text().split_whitespace().count(), 100);
    }
}

#[test]
fn nothing_is_computed_for_clients_that_have_left() {
    let server = start_with(&["--slots", "1"]);
    let mut clients: Vec<Client> = (0..3).map(|_| server.client()).collect();
    for client in &mut clients {
        let body = streamed("slow:100000").to_string();
        client.send(&format!("POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    }
    clients[0].line();
    drop(clients);
    assert_eq!(server.chat("pieces:still here").text(), "still here");
    server.is_idle();
    assert!(server.get("/metrics").body.contains("llm_requests_total{endpoint=\"/v1/chat/completions\",status=\"499\"} 3"));
}

#[test]
fn a_slow_reader_holds_nobody_up() {
    let server = start_with(&["--ctx-size", "400000"]);
    let mut slow = server.client();
    // More than sockets take.
    let body = streamed("large:20000").to_string();
    slow.send(&format!("POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    for _ in 0..20 {
        assert_eq!(server.chat("pieces:quick").text(), "quick");
    }
    let reply = slow.reply(false);
    let (events, complete) = reply.events();
    assert!(complete && events.len() == 20_003, "{}", events.len());
}

#[test]
fn a_client_may_ask_before_it_sends() {
    let server = start();
    let mut client = server.client();
    let body = chat("pieces:ok").to_string();
    client
        .send(&format!("POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n", body.len()));
    assert_eq!((client.line(), client.line()), ("HTTP/1.1 100 Continue".into(), String::new()));
    client.send(&body);
    assert_eq!(client.reply(false).text(), "ok");
    client.send("POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 10485760\r\n\r\n");
    assert_eq!(client.reply(false).status, 413);
}
