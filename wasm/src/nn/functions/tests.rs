// SPDX-License-Identifier: Apache-2.0
use super::super::channel::{self, Reply, Request};
use super::super::client::Client;
use super::super::named;
use super::*;
use crate::memory::Linear;
use magnetar_core::packet;
use proptest::prelude::*;
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// A module with its models. The pod's process, and the engine of its only model, are a thread that
/// gives these answers to requests, one after another.
struct Module {
    memory: Vec<u8>,
    graphs: Graphs,
    log: Arc<Mutex<Vec<String>>>,
    loads: Arc<AtomicU32>,
}

impl Module {
    fn new(answers: &'static [&'static str]) -> Self {
        let (container, pod) = packet::pair().unwrap();
        for fd in [&container, &pod] {
            rustix::io::ioctl_fionbio(fd, false).unwrap();
        }
        let loads = Arc::<AtomicU32>::default();
        let counted = loads.clone();
        std::thread::spawn(move || serve(&pod, answers, &counted));
        let client = Client::start(container, |_| {}, |why| panic!("{why}")).unwrap();
        let spec = json!({"process": {"env": ["WASMEDGE_WASINN_PRELOAD=default:GGML:CPU:/m.gguf"]}});
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let ours = log.clone();
        let say = move |line: &str| ours.lock().unwrap().push(line.to_owned());
        Self { memory: vec![0; 1 << 16], graphs: Graphs::new(Some(client), named::in_spec(&spec).unwrap(), say), log, loads }
    }

    fn call(&mut self, function: Function, arguments: &[u32]) -> u32 {
        assert_eq!(arguments.len(), function.parameters(), "{function:?}");
        call(function, arguments, &mut Linear(&mut self.memory), &mut self.graphs)
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn number_at(&self, at: usize) -> u32 {
        word(&self.memory[at..], 0).unwrap()
    }

    /// Writes a text at 1000, and a tensor of it at 100.
    fn tensor(&mut self, text: &str) {
        self.write(1000, text.as_bytes());
        for (index, number) in [(3, 1000), (4, text.len() as u32)] {
            self.write(100 + 4 * index, &number.to_le_bytes());
        }
    }

    /// A context of the model with a prompt.
    fn context(&mut self, prompt: &str) -> u32 {
        self.write(1000, b"default");
        assert_eq!(self.call(Function::LoadByName, &[1000, 7, 0]), 0);
        let graph = self.number_at(0);
        assert_eq!(self.call(Function::InitExecutionContext, &[graph, 4]), 0);
        let context = self.number_at(4);
        self.tensor(prompt);
        assert_eq!(self.call(Function::SetInput, &[context, 0, 100]), 0);
        context
    }

    fn output(&mut self, context: u32, index: u32) -> String {
        self.output_of(Function::GetOutput, context, index)
    }

    fn output_of(&mut self, function: Function, context: u32, index: u32) -> String {
        assert_eq!(self.call(function, &[context, index, 2000, 0, 8]), 0);
        String::from_utf8(self.memory[2000..2000 + self.number_at(8) as usize].to_vec()).unwrap()
    }
}

fn serve(pod: &OwnedFd, answers: &[&str], loads: &AtomicU32) {
    let mut answers = answers.iter();
    while let Ok((request, _)) = channel::receive::<Request>(pod) {
        match request {
            Request::Load { model: 0, .. } => {
                loads.fetch_add(1, Ordering::Relaxed);
                channel::send(pod, &Reply::Loaded, &[]).unwrap();
            }
            Request::Load { .. } => channel::send(pod, &Reply::Failed("no such model".into()), &[]).unwrap(),
            Request::Connect { .. } => {
                let (ours, theirs) = UnixStream::pair().unwrap();
                channel::send(pod, &Reply::Connected, &[theirs.as_fd()]).unwrap();
                drop(theirs);
                answer(ours, answers.next().expect("another answer"));
            }
        }
    }
}

/// Answers one request; `answer` begins with the path that it should have.
fn answer(mut connection: UnixStream, answer: &str) {
    let (path, body) = answer.split_once(' ').unwrap();
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        connection.read_exact(&mut byte).unwrap();
        request.extend(byte);
    }
    let head = String::from_utf8(request).unwrap();
    assert!(head.starts_with(&format!("POST {path} ")), "{head}");
    let length = head.split("Content-Length: ").nth(1).unwrap().split('\r').next().unwrap().parse().unwrap();
    let mut asked = vec![0; length];
    connection.read_exact(&mut asked).unwrap();
    let status = if body.contains("\"error\"") && !body.starts_with("data") { "400 Bad Request" } else { "200 OK" };
    let _left = write!(connection, "HTTP/1.1 {status}\r\n\r\n{body}");
}

#[test]
fn a_whole_answer_has_its_text_and_counts() {
    let mut module = Module::new(&[
        r#"/tokenize {"tokens":[1,2,3]}"#,
        r#"/completion {"content":"Paris","tokens_evaluated":3,"tokens_predicted":1,"truncated":false}"#,
    ]);
    let context = module.context("What is the capital of France?");
    assert!(module.output(context, 1).contains("\"input_tokens\":3"));
    assert_eq!(module.call(Function::Compute, &[context]), 0);
    assert_eq!(module.output(context, 0), "Paris");
    assert!(module.output(context, 1).contains("\"output_tokens\":1"));
    assert_eq!(module.call(Function::GetOutput, &[context, 0, 2000, 4, 8]), Code::TooLarge as u32);
    assert_eq!(module.call(Function::GetOutput, &[context, 0, 65534, 0, 8]), Code::MissingMemory as u32);
    assert_eq!(module.call(Function::FinalizeExecutionContext, &[context]), 0);
    assert_eq!(module.call(Function::FinalizeExecutionContext, &[context]), Code::InvalidArgument as u32);
}

#[test]
fn an_answer_comes_in_pieces_until_its_end() {
    let mut module = Module::new(&[
        "/completion data: {\"content\":\"one \"}\n\n: ping\n\ndata: {\"content\":\"\"}\n\ndata: {\"content\":\"two\"}\n\ndata: {\"content\":\"\",\"stop\":true,\"tokens_predicted\":2}\n\n",
    ]);
    let context = module.context("Count.");
    for piece in ["one ", "two"] {
        assert_eq!(module.call(Function::ComputeSingle, &[context]), 0);
        assert_eq!(module.output_of(Function::GetOutputSingle, context, 0), piece);
    }
    assert_eq!(module.output(context, 0), "one two");
    for _ in 0..2 {
        assert_eq!(module.call(Function::ComputeSingle, &[context]), Code::EndOfSequence as u32);
    }
    assert!(module.output(context, 1).contains("\"output_tokens\":2"));
    assert_eq!(module.call(Function::FiniSingle, &[context]), 0);
}

#[test]
fn a_new_prompt_ends_the_answer_to_the_one_before() {
    let mut module = Module::new(&[
        "/completion data: {\"content\":\"one\"}\n\ndata: {\"content\":\"\",\"stop\":true}\n\n",
        "/completion data: {\"content\":\"two\"}\n\n",
    ]);
    let context = module.context("Count.");
    assert_eq!(module.call(Function::ComputeSingle, &[context]), 0);
    assert_eq!(module.call(Function::ComputeSingle, &[context]), Code::EndOfSequence as u32);
    module.tensor("Go on.");
    assert_eq!(module.call(Function::SetInput, &[context, 0, 100]), 0);
    assert_eq!(module.call(Function::ComputeSingle, &[context]), 0);
    assert_eq!(module.output(context, 0), "two");
}

#[test]
fn a_module_that_does_not_wait_hears_that_nothing_has_come() {
    let mut module = Module::new(&["/completion data: {\"content\":\"one\"}\n\ndata: {\"content\":\"\",\"stop\":true}\n\n"]);
    let context = module.context("Count.");
    module.tensor("{\"non-blocking\":true}");
    assert_eq!(module.call(Function::SetInput, &[context, 1, 100]), 0);
    let mut codes = Vec::new();
    while codes.last() != Some(&(Code::EndOfSequence as u32)) {
        match module.call(Function::ComputeSingle, &[context]) {
            busy if busy == Code::Busy as u32 => std::thread::yield_now(),
            other => codes.push(other),
        }
    }
    assert_eq!(codes, [0, Code::EndOfSequence as u32]);
}

#[test]
fn errors_of_the_engine_have_their_codes_and_reach_the_log() {
    let mut module = Module::new(&[
        r#"/completion {"error":{"type":"exceed_context_size_error","message":"too long"}}"#,
        "/completion data: {\"content\":\"a\"}\n\ndata: {\"content\":\"\",\"stop\":true,\"truncated\":true}\n\n",
        "/completion data: {\"content\":\"a\"}\n\n",
        "/completion data: {\"error\":{\"type\":\"server_error\",\"message\":\"no slot\"}}\n\n",
        "/completion no answer",
    ]);
    let context = module.context("Count.");
    assert_eq!(module.call(Function::Compute, &[context]), Code::PromptTooLong as u32);
    assert_eq!(module.call(Function::ComputeSingle, &[context]), 0);
    assert_eq!(module.call(Function::ComputeSingle, &[context]), Code::ContextFull as u32);
    for pieces in [1, 0] {
        assert_eq!(module.call(Function::FiniSingle, &[context]), 0);
        for _ in 0..pieces {
            assert_eq!(module.call(Function::ComputeSingle, &[context]), 0);
        }
        assert_eq!(module.call(Function::ComputeSingle, &[context]), Code::RuntimeError as u32);
    }
    assert_eq!(module.call(Function::Compute, &[context]), Code::RuntimeError as u32);
    let log = module.log.lock().unwrap().join("\n");
    for word in ["too long", "its answer has no end", "no slot", "has broken off"] {
        assert!(log.contains(word), "{word}: {log}");
    }
}

#[test]
fn an_embedding_is_an_output() {
    let mut module = Module::new(&[r#"/embedding [{"index":0,"embedding":[[0.5,-0.25]]}]"#]);
    let context = module.context("A text.");
    module.tensor("{\"embedding\":true}");
    assert_eq!(module.call(Function::SetInput, &[context, 1, 100]), 0);
    assert_eq!(module.call(Function::Compute, &[context]), 0);
    assert_eq!(module.output(context, 0), r#"{"embedding":[0.5,-0.25],"n_embedding":2}"#);
    assert_eq!(module.call(Function::ComputeSingle, &[context]), Code::InvalidArgument as u32);
}

#[test]
fn each_context_computes_with_its_own_options() {
    let mut module = Module::new(&[r#"/embedding [{"embedding":[0.5]}]"#, r#"/completion {"content":"one"}"#]);
    let text = module.context("Count.");
    let embedding = module.context("Count.");
    module.tensor("{\"embedding\":true}");
    assert_eq!(module.call(Function::SetInput, &[embedding, 1, 100]), 0);
    assert_eq!(module.call(Function::Compute, &[embedding]), 0);
    assert_eq!(module.call(Function::Compute, &[text]), 0);
    assert_eq!(module.loads.load(Ordering::Relaxed), 3, "the model was loaded anew for each change");
}

#[test]
fn a_model_is_loaded_by_its_name_or_path_only() {
    let mut module = Module::new(&[]);
    module.write(1000, b"another");
    assert_eq!(module.call(Function::LoadByName, &[1000, 7, 0]), Code::NotFound as u32);
    assert_eq!(module.log.lock().unwrap()[0], "the container names no model \"another\"; it names default");
    let mut load = |builder: &str, encoding, target| {
        module.write(1000, builder.as_bytes());
        for (at, number) in [(200, 1000), (204, builder.len() as u32)] {
            module.write(at, &u32::to_le_bytes(number));
        }
        module.call(Function::Load, &[200, 1, encoding, target, 0])
    };
    assert_eq!(load("preload:/m.gguf", GGML, 0), 0);
    assert_eq!(load("preload:m.gguf", GGML, 1), 0);
    assert_eq!(load("preload:/other.gguf", GGML, 0), Code::ModelNotFound as u32);
    assert_eq!(load("GGUF and more", GGML, 0), Code::Unsupported as u32);
    assert_eq!(load("preload:/m.gguf", 1, 0), Code::InvalidEncoding as u32);
    assert_eq!(load("preload:/m.gguf", GGML, 3), Code::InvalidArgument as u32);
}

#[test]
fn metadata_that_is_wrong_is_refused() {
    let mut module = Module::new(&[]);
    let context = module.context("A text.");
    module.tensor("{\"ctx-size\":-1}");
    assert_eq!(module.call(Function::SetInput, &[context, 1, 100]), Code::InvalidArgument as u32);
    assert_eq!(module.call(Function::SetInput, &[context, 2, 100]), Code::InvalidArgument as u32);
    assert_eq!(module.call(Function::Compute, &[context + 1]), Code::InvalidArgument as u32);
}

proptest! {
    #[test]
    fn whatever_a_module_passes_is_an_error_or_works(calls in proptest::collection::vec((0..12usize, [any::<u32>(); 5], 0..4u32), 1..30)) {
        let mut module = Module { memory: vec![0xff; 256], graphs: Graphs::new(None, Vec::new(), |_| {}), log: Arc::default(), loads: Arc::default() };
        for (function, arguments, small) in calls {
            let function = Function::ALL[function];
            let arguments = arguments.map(|argument| if argument % 3 == 0 { argument } else { (argument % 64) * small });
            module.call(function, &arguments[..function.parameters()]);
        }
    }
}
