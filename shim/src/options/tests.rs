// SPDX-License-Identifier: Apache-2.0
//! Options that containerd can pass, and the kinds in the names of sandboxers and runtimes.

use super::*;
use magnetar_core::error::Code;

const TYPE: &str = "runtimeoptions.v1.Options";

fn any(config_path: &str, config_body: &str) -> Vec<u8> {
    RuntimeOptions { config_path: config_path.into(), config_body: config_body.into(), ..Default::default() }.encode_to_vec()
}

#[test]
fn empty_options_decode_to_none() {
    assert_eq!(decode("", &[]).unwrap(), None);
    assert_eq!(decode(TYPE, &[]).unwrap(), None);
}

#[test]
fn options_are_read_from_the_body() {
    for prefix in ["", "type.googleapis.com/", "types.containerd.io/"] {
        let value = any("", "sandboxer = \"wasm\"\n[runtime]\nname = \"crun\"");
        let config = decode(&format!("{prefix}{TYPE}"), &value).unwrap().unwrap();
        assert_eq!((config.sandboxer.as_str(), config.runtime.name.as_str()), ("wasm", "crun"));
    }
}

#[test]
fn a_path_wins_over_the_body() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("runc.toml");
    std::fs::write(&file, "log_level = \"debug\"").unwrap();
    let path = file.to_str().unwrap();
    assert_eq!(decode(TYPE, &any(path, "ConfigPath = \"x\"")).unwrap().unwrap().log_level, LogLevel::Debug);
    std::fs::write(&file, "log_levle = \"debug\"").unwrap();
    let error = decode(TYPE, &any(path, "")).unwrap_err();
    assert!(error.to_string().contains(path) && error.to_string().contains("log_levle"), "{error}");
}

#[test]
fn a_kind_reads_its_file_or_has_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let read = |kind| of_kind(folder.path(), kind);
    assert_eq!(read(None).unwrap(), HandlerConfig::default());
    assert_eq!(read(Some("qemu")).unwrap().sandboxer, "qemu");
    for (kind, sandboxer) in [("runc", "one"), ("wasmtime", "wasm")] {
        std::fs::write(folder.path().join(format!("{kind}.toml")), format!("sandboxer = {sandboxer:?}")).unwrap();
    }
    for (kind, sandboxer) in [(None, "one"), (Some("runc"), "one"), (Some("wasmtime"), "wasm")] {
        assert_eq!(read(kind).unwrap().sandboxer, sandboxer, "{kind:?}");
    }
    std::fs::write(folder.path().join("runc.toml"), "sandboxr = 1").unwrap();
    assert_eq!(read(None).unwrap_err().code(), Code::InvalidArgument);
}

#[test]
fn the_kind_is_parsed_from_names() {
    for (name, kind) in [("", None), ("magnetar", None), ("magnetar-runc", Some("runc")), ("magnetar-a_b-c", Some("a_b-c"))] {
        assert_eq!(kind_of_sandboxer(name).unwrap().as_deref(), kind, "{name}");
    }
    for name in ["runc", "magnetarrunc", "magnetar-", "magnetar-../x", "magnetar-.x", "shim"] {
        assert_eq!(kind_of_sandboxer(name).unwrap_err().code(), Code::InvalidArgument, "{name}");
    }
    for (runtime, kind) in [
        ("io.containerd.magnetar.v2", None),
        ("io.containerd.magnetar-qemu.v2", Some("qemu")),
        ("/usr/local/bin/containerd-shim-magnetar-v2", None),
        ("containerd-shim-magnetar-qemu-v2", Some("qemu")),
        ("io.containerd.runc.v2", None),
        ("", None),
    ] {
        assert_eq!(kind_of_runtime(runtime).as_deref(), kind, "{runtime}");
    }
}

#[test]
fn the_shipped_runc_file_equals_the_defaults() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("etc/magnetar");
    assert!(shipped.join("runc.toml").exists());
    assert_eq!(of_kind(&shipped, None).unwrap(), HandlerConfig::default());
}

#[test]
fn the_examples_are_options() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/options");
    let files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!files.is_empty());
    for file in files {
        HandlerConfig::read(&file).unwrap();
    }
}

#[test]
fn an_error_names_what_is_wrong_in_the_options() {
    for (type_url, value, word) in [
        ("containerd.runc.v1.Options", any("", "x = 1"), "runtime_type"),
        ("xruntimeoptions.v1.Options", any("", "x = 1"), "runtime_type"),
        (TYPE, vec![0xff, 0xff], "decode"),
        (TYPE, any("etc/runc.toml", ""), "absolute"),
        (TYPE, any("", "sandboxr = 1"), "sandboxr"),
    ] {
        let error = decode(type_url, &value).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn containerd_s_own_socket_and_log_level_override_the_options() {
    let said = FromContainerd { ttrpc_address: "unix:///run/other/containerd.sock.ttrpc".into(), log_level: -4 };
    let config = said.apply(HandlerConfig::default());
    assert_eq!(config.containerd.ttrpc_address, PathBuf::from("/run/other/containerd.sock.ttrpc"));
    assert_eq!(config.log_level, LogLevel::Debug);
    let silent = FromContainerd::default().apply(HandlerConfig::default());
    assert_eq!(silent, HandlerConfig::default());
}

#[test]
fn containerd_s_log_level_never_lowers_ours() {
    let config = HandlerConfig { log_level: LogLevel::Trace, ..HandlerConfig::default() };
    assert_eq!(FromContainerd { log_level: -4, ..Default::default() }.apply(config.clone()).log_level, LogLevel::Trace);
    assert_eq!(FromContainerd { log_level: 8, ..Default::default() }.apply(config).log_level, LogLevel::Trace);
}
