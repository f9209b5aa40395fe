// SPDX-License-Identifier: Apache-2.0
//! Which models a container names, and where they are.
//!
//! Each name has the form `alias:GGML:target:path`, as on WasmEdge's command line
//! (`--nn-preload`), and may end with metadata: `alias:GGML:target:path:{"ctx-size":4096}`. Several
//! are separated by white space. A model that is split over several files is named by the first of
//! them, as for llama.cpp: `NAME-00001-of-00003.gguf`.

use super::metadata::Metadata;
use crate::payload;
use magnetar_core::error::{Error, Result};
use magnetar_core::packet::MAX_DESCRIPTORS;
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};

/// The variables of a container's environment that name models: of WasmEdge's plugin, which runwasi
/// passes on, and of Kuasar.
const VARIABLES: [&str; 2] = ["WASMEDGE_WASINN_PRELOAD", "io.kuasar.wasm.nn_preload"];

/// The annotation of a pod that names models for all its containers.
pub const ANNOTATION: &str = "io.magnetar.wasm.nn-preload";

/// The most models that a container may name.
pub const MAX_MODELS: usize = 16;

/// The most files of all models of a container: they are handed over in one packet, beside a
/// socket.
const MAX_FILES: usize = MAX_DESCRIPTORS - 1;

/// The most bytes of an alias, which appears in messages.
const MAX_ALIAS: usize = 256;

/// A model that a container names.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    /// The name by which the module loads it.
    pub alias: String,
    /// Its path in the container.
    pub path: PathBuf,
    /// How it is loaded, if the module says nothing else.
    pub metadata: Metadata,
}

/// A named model that was found.
#[derive(Debug)]
pub struct Model {
    /// How the container names it.
    pub named: Named,
    /// Its files: one, or all its parts in their order.
    pub files: Vec<File>,
}

/// The models that a container names. Of those with the same alias, the first counts: the
/// container's environment comes before the pod's annotation.
///
/// # Errors
/// `InvalidArgument` for a name of another form, and for too many.
pub fn in_spec(spec: &Value) -> Result<Vec<Named>> {
    let environment = spec["process"]["env"].as_array().map(Vec::as_slice).unwrap_or_default();
    let variables = environment.iter().filter_map(Value::as_str).filter_map(|variable| variable.split_once('='));
    let variables = variables.filter(|(name, _)| VARIABLES.contains(name));
    let annotation = spec["annotations"][ANNOTATION].as_str().map(|text| (ANNOTATION, text));
    let mut models: Vec<Named> = Vec::new();
    for (place, text) in variables.chain(annotation) {
        for name in text.split_whitespace() {
            let named = Named::parse(name).map_err(|why| Error::invalid(format!("{place} names the model {name:?}: {why}")))?;
            if models.iter().all(|model| model.alias != named.alias) {
                models.push(named);
            }
        }
    }
    if models.len() > MAX_MODELS {
        return Err(Error::invalid(format!("the container names {} models: at most {MAX_MODELS} can be loaded", models.len())));
    }
    Ok(models)
}

/// Opens the models beneath the root of the future container.
///
/// # Errors
/// `NotFound` for one that is not there, `InvalidArgument` for one that is named by another part
/// than the first, and for too many files.
pub fn open(models: Vec<Named>, spec: &Value, bundle: &Path) -> Result<Vec<Model>> {
    let parts = models.iter().map(|named| named.parts().map_err(|why| Error::invalid(format!("{}: {why}", named.description()))));
    let parts: Vec<Vec<PathBuf>> = parts.collect::<Result<_>>()?;
    let count: usize = parts.iter().map(Vec::len).sum();
    if count > MAX_FILES {
        return Err(Error::invalid(format!("the models of the container have {count} files: at most {MAX_FILES} can be opened")));
    }
    let open_all = |(named, parts): (Named, Vec<PathBuf>)| {
        let files = parts.iter().map(|path| open_one(&named, path, spec, bundle)).collect::<Result<_>>()?;
        Ok(Model { named, files })
    };
    models.into_iter().zip(parts).map(open_all).collect()
}

fn open_one(named: &Named, path: &Path, spec: &Value, bundle: &Path) -> Result<File> {
    let file = payload::open(spec, bundle, path).map_err(|error| Error::new(error.code(), format!("{}: {error}", named.description())))?;
    let absent = || {
        let (what, path) = (named.description(), path.display());
        Error::not_found(format!("{what}: there is no file {path} in its image or volumes (or a link leads elsewhere)"))
    };
    file.ok_or_else(absent)
}

/// The name of a part of a model, as llama.cpp writes it and looks for it (`llama_split_path`).
///
/// The numbers begin with 1.
pub fn part_name(prefix: &str, number: usize, count: usize) -> String {
    format!("{prefix}-{number:05}-of-{count:05}.gguf")
}

impl Named {
    fn description(&self) -> String {
        format!("the model {} of the container", self.alias)
    }

    /// The paths of its files.
    fn parts(&self) -> std::result::Result<Vec<PathBuf>, String> {
        let whole = || Ok(vec![self.path.clone()]);
        let Some((prefix, number, count)) = self.path.file_name().and_then(|name| split(name.to_str()?)) else { return whole() };
        let first = part_name(prefix, 1, count);
        if number != 1 {
            return Err(format!("{} is a part of it: name the first one, {first}", self.path.display()));
        }
        if count > MAX_FILES {
            return Err(format!("it has {count} parts: at most {MAX_FILES} can be opened"));
        }
        Ok((1..=count).map(|number| self.path.with_file_name(part_name(prefix, number, count))).collect())
    }

    fn parse(name: &str) -> std::result::Result<Self, String> {
        let mut fields = name.splitn(4, ':');
        let (Some(alias), Some(encoding), Some(target), Some(rest)) = (fields.next(), fields.next(), fields.next(), fields.next()) else {
            return Err("its form is alias:GGML:target:path".into());
        };
        if alias.is_empty() || alias.len() > MAX_ALIAS {
            return Err(format!("an alias has 1 to {MAX_ALIAS} bytes"));
        }
        if !encoding.eq_ignore_ascii_case("ggml") {
            return Err(format!("models are of the encoding GGML, and not {encoding}"));
        }
        if !["cpu", "gpu", "tpu", "auto"].iter().any(|known| target.eq_ignore_ascii_case(known)) {
            return Err(format!("its target is CPU, GPU or AUTO, and not {target}"));
        }
        let (path, options) = match rest.split_once(":{") {
            Some((path, options)) => (path, Some(format!("{{{options}"))),
            None => (rest, None),
        };
        if path.is_empty() {
            return Err("it has no path".into());
        }
        let mut metadata = Metadata::default();
        // Without a word about it, the engine decides whether a graphics processor helps.
        if target.eq_ignore_ascii_case("cpu") {
            metadata.load.n_gpu_layers = Some(0);
        }
        if let Some(options) = options {
            metadata.add(options.as_bytes())?;
        }
        // A relative path is beneath the root, whatever the working directory.
        Ok(Self { alias: alias.into(), path: Path::new("/").join(path), metadata })
    }
}

/// What comes before the numbers in the name of a part, its own number, and that of all parts.
fn split(name: &str) -> Option<(&str, usize, usize)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let parse = |digits: &str| (digits.len() == 5).then(|| digits.parse().ok()).flatten();
    let (number, count) = (parse(number)?, parse(count)?);
    (1..=count).contains(&number).then_some((prefix, number, count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(env: &[&str]) -> Value {
        json!({"process": {"env": env}})
    }

    #[test]
    fn models_are_named_as_for_other_runtimes() {
        let models = in_spec(&spec(&[
            "PATH=/bin",
            "WASMEDGE_WASINN_PRELOAD=default:GGML:CPU:/models/a.gguf\n embed:ggml:auto:b:c.gguf:{\"embedding\":true}",
            "io.kuasar.wasm.nn_preload=default:GGML:AUTO:other.gguf",
        ]))
        .unwrap();
        let found: Vec<_> = models.iter().map(|model| (model.alias.as_str(), model.path.to_str().unwrap())).collect();
        assert_eq!(found, [("default", "/models/a.gguf"), ("embed", "/b:c.gguf")]);
        assert_eq!(models[0].metadata.load.n_gpu_layers, Some(0));
        assert!(models[1].metadata.load.embedding && models[1].metadata.load.n_gpu_layers.is_none());
        let annotated = json!({"process": {"env": []}, "annotations": {"io.magnetar.wasm.nn-preload": "default:GGML:AUTO:/m.gguf"}});
        assert_eq!(in_spec(&annotated).unwrap()[0].path, Path::new("/m.gguf"));
        assert_eq!(in_spec(&json!({})).unwrap(), []);
    }

    #[test]
    fn a_name_of_another_form_is_refused_with_its_place() {
        for (name, why) in [
            ("default", "its form is"),
            ("default:GGML:CPU", "its form is"),
            (":GGML:CPU:/m", "an alias"),
            ("d:PyTorch:CPU:/m", "not PyTorch"),
            ("d:GGML:NPU:/m", "not NPU"),
            ("d:GGML:CPU:", "no path"),
            ("d:GGML:CPU:/m:{\"ctx-size\":-1}", "ctx-size"),
        ] {
            let error = in_spec(&spec(&[&format!("WASMEDGE_WASINN_PRELOAD={name}")])).unwrap_err().to_string();
            assert!(error.starts_with("WASMEDGE_WASINN_PRELOAD names the model ") && error.contains(why), "{error}");
        }
        let many: Vec<String> = (0..17).map(|n| format!("m{n}:GGML:CPU:/m")).collect();
        assert!(in_spec(&spec(&[&format!("WASMEDGE_WASINN_PRELOAD={}", many.join(" "))])).is_err());
    }

    #[test]
    fn a_model_in_several_files_is_named_by_its_first() {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::create_dir(bundle.path().join("rootfs")).unwrap();
        for name in ["q-00001-of-00002.gguf", "q-00002-of-00002.gguf", "r-00001-of-00002.gguf", "s-1-of-2.gguf"] {
            std::fs::write(bundle.path().join("rootfs").join(name), name).unwrap();
        }
        let files = |path: &str| {
            let spec = json!({"root": {"path": "rootfs"}, "process": {"env": [format!("WASMEDGE_WASINN_PRELOAD=d:GGML:CPU:{path}")]}});
            let mut models = open(in_spec(&spec).unwrap(), &spec, bundle.path()).map_err(|error| error.to_string())?;
            let texts = models.remove(0).files.into_iter().map(|file| std::io::read_to_string(file).unwrap());
            Ok::<Vec<String>, String>(texts.collect())
        };
        assert_eq!(files("/q-00001-of-00002.gguf").unwrap(), ["q-00001-of-00002.gguf", "q-00002-of-00002.gguf"]);
        assert_eq!(files("/s-1-of-2.gguf").unwrap().len(), 1);
        for (path, why) in [
            ("/q-00002-of-00002.gguf", "name the first one, q-00001-of-00002.gguf"),
            ("/r-00001-of-00002.gguf", "there is no file /r-00002-of-00002.gguf"),
            ("/t-00001-of-99999.gguf", "it has 99999 parts: at most 127"),
        ] {
            let error = files(path).unwrap_err();
            assert!(error.starts_with("the model d of the container: ") && error.contains(why), "{error}");
        }
    }

    #[test]
    fn models_are_opened_beneath_the_containers_root() {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::create_dir(bundle.path().join("rootfs")).unwrap();
        std::fs::write(bundle.path().join("rootfs/m.gguf"), "GGUF").unwrap();
        std::os::unix::fs::symlink("../outside", bundle.path().join("rootfs/link.gguf")).unwrap();
        std::fs::write(bundle.path().join("outside"), "GGUF").unwrap();
        let open_one = |path: &str| {
            let spec = json!({"root": {"path": "rootfs"}, "process": {"env": [format!("WASMEDGE_WASINN_PRELOAD=d:GGML:CPU:{path}")]}});
            open(in_spec(&spec).unwrap(), &spec, bundle.path())
        };
        assert_eq!(open_one("/m.gguf").unwrap().len(), 1);
        for path in ["/absent.gguf", "/link.gguf", "/../outside"] {
            let error = open_one(path).unwrap_err().to_string();
            assert!(error.starts_with("the model d of the container: there is no file "), "{error}");
        }
    }
}
