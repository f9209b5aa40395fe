// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::engine::Graph;
use crate::gguf::Header;
use crate::template::Template;

fn models() -> Models {
    let chat = Chat {
        graph: Graph(1),
        names: vec!["Tiny".into(), "default".into()],
        template: Template::of(&Header::default()).0,
        context: Some(512),
        most: None,
    };
    let embedder = Embedder { graph: Graph(2), names: vec!["embedding".into()], context: Some(512) };
    Models { chat: Some(chat), embedder: Some(embedder), since: 0 }
}

fn of(body: &Value) -> Result<TextRequest, ApiError> {
    chat(body.to_string().as_bytes(), &models())
}

fn metadata(body: &Value) -> Value {
    of(body).unwrap().metadata.into()
}

fn hello() -> Value {
    json!([{"role": "user", "content": "Hello"}])
}

#[test]
fn messages_become_a_prompt() {
    let messages = json!([
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}], "name": "Ada"},
        {"role": "assistant", "content": null},
    ]);
    let request = of(&json!({"model": "Tiny", "messages": messages, "user": "ignored"})).unwrap();
    let expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(request.prompt, expected);
    assert_eq!((request.stream, request.include_usage, request.most, request.from), (false, false, None, "messages"));
}

#[test]
fn fields_become_metadata() {
    let all = json!({"messages": hello(), "temperature": 0, "top_p": 0.5, "seed": -7, "presence_penalty": 1, "frequency_penalty": -1.5, "max_tokens": 9,
        "max_completion_tokens": 5, "stop": ["a", "b"], "stream": true, "stream_options": {"include_usage": true}, "n": 1, "top_k": 40, "repeat_penalty": 1.1,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}, "logprobs": false, "tools": []});
    let expected = json!({"non-blocking": true, "temp": 0, "top-p": 0.5, "seed": -7, "presence-penalty": 1, "frequency-penalty": -1.5, "top-k": 40,
        "repeat-penalty": 1.1, "reverse-prompt": ["a", "b", "<|im_end|>"], "json-schema": "{\"type\":\"array\"}"});
    assert_eq!(metadata(&all), expected);
    let request = of(&all).unwrap();
    assert_eq!((request.stream, request.include_usage, request.most), (true, true, Some(5)));
    assert_eq!(metadata(&json!({"messages": hello(), "stop": null})), json!({"non-blocking": true, "reverse-prompt": ["<|im_end|>"]}));
    let object = metadata(&json!({"messages": hello(), "response_format": {"type": "json_object"}}));
    assert_eq!(object["json-schema"], "{\"type\":\"object\"}");
}

#[test]
fn a_schema_keeps_the_order_of_its_properties() {
    let schema = r#"{"type":"object","properties":{"country":{"type":"string"},"capital":{"type":"string"}}}"#;
    let body = format!(
        r#"{{"messages": [{{"role": "user", "content": "a"}}], "response_format": {{"type": "json_schema", "json_schema": {{"schema": {schema}}}}}}}"#
    );
    let metadata = metadata(&serde_json::from_str(&body).unwrap());
    assert_eq!(metadata["json-schema"], schema);
}

#[test]
fn a_wrong_value_is_refused_by_its_name() {
    let cases = [
        ("temperature", json!(2.5)),
        ("temperature", json!("hot")),
        ("top_p", json!(-1)),
        ("max_tokens", json!(0)),
        ("max_completion_tokens", json!(1.5)),
        ("n", json!(2)),
        ("stream", json!("yes")),
        ("stop", json!([])),
        ("stop", json!(["a", "b", "c", "d", "e"])),
        ("stop", json!("")),
        ("seed", json!(0.5)),
        ("response_format", json!({"type": "yaml"})),
        ("response_format", json!({"type": "json_schema", "json_schema": {"schema": 1}})),
        ("stream_options", json!({"include_usage": true})),
        ("tools", json!([{"type": "function"}])),
        ("logprobs", json!(true)),
        ("model", json!(7)),
        ("messages", json!([])),
        ("messages", json!("Hello")),
    ];
    for (name, value) in cases {
        let mut body = json!({"messages": hello()});
        body[name] = value;
        let error = of(&body).unwrap_err();
        assert_eq!((error.status, error.param.as_deref()), (400, Some(name)), "{}", error.message);
        assert!(error.message.starts_with(&format!("{name}: ")), "{}", error.message);
    }
}

#[test]
fn a_wrong_message_is_refused_by_its_place() {
    for (message, field) in [
        (json!("x"), ""),
        (json!({"content": "x"}), ".role"),
        (json!({"role": "robot", "content": "x"}), ".role"),
        (json!({"role": "user"}), ".content"),
        (json!({"role": "user", "content": [{"type": "image_url"}]}), ".content"),
        (json!({"role": "user", "content": 1}), ".content"),
    ] {
        let error = of(&json!({"messages": [{"role": "user", "content": "x"}, message]})).unwrap_err();
        assert_eq!(error.param, Some(format!("messages[1]{field}")));
    }
}

#[test]
fn a_body_that_is_no_object_is_refused() {
    for body in [&b""[..], b"{", b"[]", b"\"x\"", b"{}{}", b"\xff", &b"[".repeat(1000)] {
        let error = chat(body, &models()).unwrap_err();
        assert_eq!((error.status, error.param), (400, None));
    }
}

#[test]
fn models_have_names() {
    for name in ["Tiny", "default"] {
        of(&json!({"model": name, "messages": hello()})).unwrap();
    }
    let error = of(&json!({"model": "gpt-9", "messages": hello()})).unwrap_err();
    assert_eq!((error.status, error.code), (404, Some("model_not_found")));
    assert_eq!(error.message, "The model `gpt-9` does not exist here. There is: Tiny, embedding");
    assert_eq!(error.body()["error"]["type"], "invalid_request_error");
}

#[test]
fn completions_have_one_prompt() {
    let of = |body: Value| completion(body.to_string().as_bytes(), &models());
    let request = of(json!({"prompt": "Once", "max_tokens": 7})).unwrap();
    assert_eq!((request.prompt.as_str(), request.style, request.most), ("Once", Style::Completion, Some(7)));
    assert_eq!(Value::Object(request.metadata), json!({"non-blocking": true}));
    assert_eq!(of(json!({"prompt": ["Once"]})).unwrap().prompt, "Once");
    for (name, value) in
        [("prompt", json!(["a", "b"])), ("prompt", json!([1, 2])), ("echo", json!(true)), ("suffix", json!("x")), ("best_of", json!(2))]
    {
        let mut body = json!({"prompt": "Once"});
        body[name] = value;
        assert_eq!(of(body).unwrap_err().param.as_deref(), Some(name));
    }
}

#[test]
fn embeddings_are_of_one_text_or_several() {
    let of = |body: Value| embeddings(body.to_string().as_bytes(), &models());
    assert_eq!(of(json!({"input": "a"})).unwrap(), EmbeddingRequest { texts: vec!["a".into()], base64: false });
    assert_eq!(
        of(json!({"input": ["a", "b"], "encoding_format": "base64"})).unwrap(),
        EmbeddingRequest { texts: vec!["a".into(), "b".into()], base64: true }
    );
    for (name, value) in [
        ("input", json!([])),
        ("input", json!([""])),
        ("input", json!(vec!["a"; 2049])),
        ("dimensions", json!(3)),
        ("encoding_format", json!("x")),
    ] {
        let mut body = json!({"input": "a"});
        body[name] = value;
        assert_eq!(of(body).unwrap_err().param.as_deref(), Some(name));
    }
    assert_eq!(of(json!({"input": "a", "model": "Tiny"})).unwrap_err().status, 404);
    let without = Models { embedder: None, ..models() };
    let error = embeddings(b"{\"input\": \"a\", \"model\": \"Tiny\"}", &without).unwrap_err();
    assert_eq!((error.status, error.param.as_deref()), (400, Some("model")));
}

#[test]
fn numbers_in_base64_are_32_bits_each() {
    assert_eq!(answers::base64(&[]), "");
    assert_eq!(answers::base64(&[1.0]), "AACAPw==");
    assert_eq!(answers::base64(&[1.0, -2.5]), "AACAPwAAIMA=");
    assert_eq!(answers::base64(&[0.0, 0.0, 0.0]), "AAAAAAAAAAAAAAAA");
}
