// SPDX-License-Identifier: Apache-2.0
//! The demo of language models: a server with OpenAI's interface as a Wasm module, in a pod of each
//! engine, and llama.cpp's own server beside them. Each is asked two questions; the answers appear
//! as they come. At the end there is a table.
//!
//! llm IMAGES MODEL - runs inside a node (`tests/demo/llm`) and leaves nothing behind. IMAGES is
//! the archive with the server's image, MODEL the path of a GGUF file.

use std::{
    io::{BufRead, BufReader, Read, Write as _},
    net::TcpStream,
    process::{Child, Command, ExitCode, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use chunked_transfer::Decoder;
use magnetar_cri::{Container, ContainerSpec, Node, Pod, PodSpec};
use magnetar_observe::Processes;
use serde_json::{Value, json};

const SOCKET: &str = "/run/containerd/containerd.sock";

const IMAGE: &str = "registry.example/llm-server:1";

/// Where the node keeps compiled code.
const CACHE: &str = "/var/lib/magnetar/wasm";

/// Where the containers have the model.
const PATH: &str = "/models/model.gguf";

/// The port of llama.cpp's own server. The pods have addresses of their own.
const NATIVE_PORT: u16 = 8090;

/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_secs(120);

/// A question with a short answer, and one whose answer takes a while.
const QUESTIONS: [&str; 2] = ["What is the capital of France?", "Tell me about containers."];

const HANDLERS: [&str; 2] = ["magnetar-wasmtime", "magnetar-wasmedge"];

/// What was seen of one server.
struct Shown {
    name: String,
    ready: Duration,
    first: Duration,
    rate: f64,
    memory: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match demo().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo-llm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, images, model] = &arguments[..] else { anyhow::bail!("usage: llm IMAGES MODEL") };
    let imported = Command::new("ctr").args(["--namespace", "k8s.io", "images", "import", images]).stdout(Stdio::null()).status()?;
    ensure!(imported.success(), "the server's image cannot be imported: {imported}");
    let node = Node::connect(SOCKET, PATIENCE).await?;
    let mut shown = vec![native(model)?];
    for handler in HANDLERS {
        let result = in_pod(&node, handler, model).await;
        for id in node.leftovers() {
            node.remove_pod(&id).await.with_context(|| format!("pod {id} of {handler} cannot be removed"))?;
        }
        shown.push(result.with_context(|| handler.to_owned())?);
    }
    println!("\n{:20}  {:>8}  {:>11}  {:>8}  {:>10}", "SERVER", "READY", "FIRST TOKEN", "TOKENS/S", "MEMORY");
    for Shown { name, ready, first, rate, memory } in &shown {
        let memory = format!("{} KiB", memory / 1024);
        println!("{name:20}  {:>5} ms  {:>8.1} ms  {rate:>8.0}  {memory:>10}", ready.as_millis(), first.as_secs_f64() * 1000.0);
    }
    println!(
        "\nREADY is from asking for the pod, or from starting the program, to an answer. The model is so small that TOKENS/S is the\n\
         cost of everything around it. MEMORY is what all its processes have for themselves."
    );
    Ok(())
}

/// llama.cpp's own server, as the pods' engines are run.
fn native(model: &str) -> Result<Shown> {
    let name = "llama-server".to_owned();
    eprintln!("{name}: llama.cpp's own server, natively");
    let threads = std::thread::available_parallelism()?.to_string();
    let port = NATIVE_PORT.to_string();
    let mut command = Command::new("llama-server");
    command.args(["--model", model, "--host", "127.0.0.1", "--port", &port, "--threads", &threads, "--parallel", "4"]);
    command.args(["--n-gpu-layers", "0", "--cache-ram", "0", "--kv-unified", "--fit", "off", "--offline", "--no-ui"]);
    command.args(["--ctx-size", "4096"]);
    let start = Instant::now();
    let mut server = Running(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().context(name.clone())?);
    let address = format!("127.0.0.1:{port}");
    while !is_ready(&address) {
        ensure!(server.0.try_wait()?.is_none(), "it has ended");
        ensure!(start.elapsed() < PATIENCE, "it does not answer within {PATIENCE:?}");
        sleep(Duration::from_millis(5));
    }
    let ready = start.elapsed();
    let (first, rate) = ask_all(&name, &address)?;
    let process = Processes::now()?.find(i32::try_from(server.0.id())?).context("it has no process")?.memory();
    Ok(Shown { name, ready, first, rate, memory: process.uss })
}

/// A process that ends with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// The same by a module in a pod.
async fn in_pod(node: &Node, handler: &str, model: &str) -> Result<Shown> {
    eprintln!("{handler}: the server is a WebAssembly module in a pod");
    let start = Instant::now();
    let how = compile(node, handler, model).await?;
    eprintln!("{handler}:   the module of a first container was compiled in {:.1} s{how}", start.elapsed().as_secs_f64());
    let before = Processes::now()?;
    let start = Instant::now();
    let (pod, container, address) = served(node, handler, model).await?;
    let ready = start.elapsed();
    let (first, rate) = ask_all(handler, &address)?;
    let memory = Processes::now()?.since(&before).memory();
    container.stop(10).await.context("the server did not stop")?;
    pod.remove().await.context("the pod cannot be removed")?;
    Ok(Shown { name: handler.to_owned(), ready, first, rate, memory: memory.uss })
}

/// A pod whose server answers, at this address.
async fn served(node: &Node, handler: &str, model: &str) -> Result<(Pod, Container, String)> {
    let start = Instant::now();
    let pod = node.run_pod(&PodSpec::new("llm", handler).own_pid()).await.context("the pod did not start")?;
    let spec = ContainerSpec::new("server", IMAGE).mount_read_only(model, PATH);
    let spec = spec.env("WASMEDGE_WASINN_PRELOAD", &format!("default:GGML:CPU:{PATH}")).env("CTX_SIZE", "4096");
    let container = pod.run(&spec).await.context("the server's container did not start")?;
    let address = format!("{}:8080", pod.ip().await?);
    while !is_ready(&address) {
        if start.elapsed() > PATIENCE {
            anyhow::bail!("it does not answer within {PATIENCE:?}; its log: {}", container.log()?.stderr());
        }
        sleep(Duration::from_millis(5));
    }
    Ok((pod, container, address))
}

/// Runs a first pod until its module is compiled. WasmEdge's compiler can take longer than a
/// container waits for it.
async fn compile(node: &Node, handler: &str, model: &str) -> Result<&'static str> {
    let before = compiled_modules()?;
    let (pod, container, _) = served(node, handler, model).await?;
    let is_interpreted = container.log()?.stderr().contains("it is interpreted");
    let start = Instant::now();
    while is_interpreted && compiled_modules()? == before {
        ensure!(start.elapsed() < PATIENCE, "its module is not compiled within {PATIENCE:?}");
        sleep(Duration::from_millis(50));
    }
    pod.remove().await.context("the first pod cannot be removed")?;
    Ok(if is_interpreted { "; until then it was interpreted" } else { "" })
}

/// How many modules the node's cache has the code of.
fn compiled_modules() -> Result<usize> {
    let mut count = 0;
    for folder in std::fs::read_dir(CACHE).into_iter().flatten() {
        for file in std::fs::read_dir(folder?.path())? {
            count += usize::from(file?.path().extension().is_some_and(|end| end == "sha256"));
        }
    }
    Ok(count)
}

fn is_ready(address: &str) -> bool {
    let asked = || -> Result<bool> {
        let mut stream = TcpStream::connect(address)?;
        write!(stream, "GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line.starts_with("HTTP/1.1 200"))
    };
    asked().is_ok_and(|ready| ready)
}

/// Asks the questions. Returns the time to the first token of the first one, and the rate of the
/// last one.
fn ask_all(name: &str, address: &str) -> Result<(Duration, f64)> {
    let mut seen = Vec::new();
    for question in QUESTIONS {
        eprint!("{name}:   {question}  ");
        seen.push(ask(address, question)?);
        eprintln!();
    }
    let (first, last) = (seen.first().context("no question")?, seen.last().context("no question")?);
    Ok((first.0, last.1))
}

/// Asks a question, and prints the answer as it comes: the time to its first piece, and the tokens
/// per second from there on.
fn ask(address: &str, question: &str) -> Result<(Duration, f64)> {
    let request = json!({
        "messages": [{"role": "user", "content": question}], "stream": true, "stream_options": {"include_usage": true},
        "temperature": 0, "max_tokens": 400,
    })
    .to_string();
    let start = Instant::now();
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{request}",
        request.len()
    )?;
    let (mut first, mut last, mut tokens) = (None, start, 0);
    for line in body(stream)?.lines() {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ").filter(|data| *data != "[DONE]") else { continue };
        let event: Value = serde_json::from_str(data).with_context(|| data.to_owned())?;
        ensure!(event["error"].is_null(), "{event}");
        if let Some(piece) = event["choices"][0]["delta"]["content"].as_str().filter(|piece| !piece.is_empty()) {
            first.get_or_insert_with(Instant::now);
            last = Instant::now();
            eprint!("{piece}");
        }
        tokens = event["usage"]["completion_tokens"].as_u64().unwrap_or(tokens);
    }
    let first = first.context("there was no answer")?;
    ensure!(tokens > 1, "the answer's tokens are not counted");
    Ok((first - start, (tokens - 1) as f64 / (last - first).as_secs_f64()))
}

/// The body of an answer that must be a good one.
fn body(stream: TcpStream) -> Result<Box<dyn BufRead>> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.trim_end().to_owned();
    let mut is_chunked = false;
    while line.trim_end() != "" {
        line.clear();
        reader.read_line(&mut line)?;
        is_chunked |= line.trim_end().eq_ignore_ascii_case("transfer-encoding: chunked");
    }
    let mut body: Box<dyn BufRead> = if is_chunked { Box::new(BufReader::new(Decoder::new(reader))) } else { Box::new(reader) };
    if !status.contains(" 200 ") {
        let mut said = String::new();
        body.read_to_string(&mut said)?;
        anyhow::bail!("{status}: {said}");
    }
    Ok(body)
}
