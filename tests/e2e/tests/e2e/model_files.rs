// SPDX-License-Identifier: Apache-2.0
//! Models that are split over several files, as llama.cpp's own tool does it and as large ones are
//! published; and one in an image that is mounted as a volume.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command, sync::Once};

use anyhow::{Context as _, Result, ensure};
use magnetar_cri::{
    ContainerSpec,
    v1::{ImageSpec, Mount},
};
use magnetar_e2e::{Case, Scratch, on_node_with};

use super::engine::{Engine, ends, module, on_each_engine, pod};
use super::examples::import;
use super::nn::{MODEL, one_processor, question, refusal};

on_each_engine! {
    a_model_in_several_files_is_loaded_by_its_first,
    a_part_that_is_missing_or_cannot_be_read_is_named,
}

mod image_volume {
    use super::{Engine, a_model_is_loaded_from_an_image, on_model_image};

    #[test]
    fn a_model_is_loaded_by_wasmtime() {
        on_model_image(async |case| a_model_is_loaded_from_an_image(case, Engine::Wasmtime).await);
    }

    #[test]
    fn a_model_is_loaded_by_wasmedge() {
        on_model_image(async |case| a_model_is_loaded_from_an_image(case, Engine::WasmEdge).await);
    }
}

/// An image that has the model and nothing else.
const IMAGE: &str = "registry.example/model:1";

/// A test, when the node has that image. It stays, as the node's own do.
fn on_model_image(test: impl AsyncFnOnce(&Case) -> Result<()>) {
    static GIVEN: Once = Once::new();
    let give = async |case: &Case| {
        let folder = Scratch::new()?;
        let archive = folder.join("image.tar");
        let script = "mkdir tree && cp \"$0\" tree/model.gguf && umoci init --layout it && umoci new --image it:it && \
            umoci insert --image it:it tree / && skopeo copy --quiet --insecure-policy oci:it:it oci-archive:image.tar:\"$1\"";
        let output = Command::new("sh").args(["-euc", script, MODEL, IMAGE]).current_dir(folder.path()).output()?;
        ensure!(output.status.success(), "{output:?}");
        import(case, Path::new(&archive)).await
    };
    on_node_with(&GIVEN, give, test);
}

/// As Kubernetes mounts it (`volumes.image`).
async fn a_model_is_loaded_from_an_image(case: &Case, engine: Engine) -> Result<()> {
    let pod = pod(case, engine, "model-image").await?;
    let image = ImageSpec { image: IMAGE.to_owned(), ..Default::default() };
    let mount = Mount { container_path: "/models".to_owned(), image: Some(image), readonly: true, ..Default::default() };
    let asked = module("nn.wasm", ["ask", "default", &question("What is the capital of France?"), "{\"temp\":0,\"n-predict\":64}"])
        .env("WASMEDGE_WASINN_PRELOAD", "default:GGML:CPU:/models/model.gguf")
        .edit(|container| container.mounts.push(mount));
    let (status, said, log) = ends(case, &pod, &one_processor(asked)).await?;
    ensure!(status.exit_code == 0 && said.contains("Paris"), "{} {said}{log}", status.exit_code);
    Ok(pod.remove().await?)
}

/// The header of a model's file and its tensors (GGUF, version 3, of ggml's docs/gguf.md).
struct Gguf {
    count: u64,
    entries: Vec<u8>,
    tensors: Vec<Tensor>,
}

struct Tensor {
    /// Its name, dimensions and type.
    description: Vec<u8>,
    data: Vec<u8>,
}

/// What each tensor's place is a multiple of, in bytes, if the header does not say it.
const ALIGNMENT: usize = 32;

/// Numbers and texts of a file, in their order.
struct Reader<'a>(&'a [u8], usize);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let from = self.1;
        self.1 = from + count;
        self.0.get(from..self.1).context("the file ends early")
    }

    fn number(&mut self, size: usize) -> Result<usize> {
        Ok(self.bytes(size)?.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    fn skip_text(&mut self) -> Result<()> {
        let length = self.number(8)?;
        self.bytes(length).map(drop)
    }

    fn skip_value(&mut self, kind: usize) -> Result<()> {
        match kind {
            0 | 1 | 7 => self.bytes(1).map(drop),
            2 | 3 => self.bytes(2).map(drop),
            4..=6 => self.bytes(4).map(drop),
            8 => self.skip_text(),
            9 => {
                let (kind, count) = (self.number(4)?, self.number(8)?);
                (0..count).try_for_each(|_| self.skip_value(kind))
            }
            _ => self.bytes(8).map(drop),
        }
    }
}

impl Gguf {
    fn read(file: &[u8]) -> Result<Self> {
        let mut reader = Reader(file, 8);
        let (tensors, count) = (reader.number(8)?, reader.number(8)?);
        let from = reader.1;
        for _ in 0..count {
            reader.skip_text()?;
            let kind = reader.number(4)?;
            reader.skip_value(kind)?;
        }
        let entries = file[from..reader.1].to_vec();
        let mut places = Vec::new();
        for _ in 0..tensors {
            let from = reader.1;
            reader.skip_text()?;
            let dimensions = reader.number(4)?;
            reader.bytes(8 * dimensions + 4)?;
            places.push((file[from..reader.1].to_vec(), reader.number(8)?));
        }
        let data = &file[reader.1.next_multiple_of(ALIGNMENT)..];
        let end_of = |place: usize| places.iter().map(|(_, other)| *other).filter(|other| *other > place).min().unwrap_or(data.len());
        let tensor = |(description, place): &(Vec<u8>, usize)| Tensor {
            description: description.clone(),
            data: data[*place..end_of(*place)].to_vec(),
        };
        Ok(Self { count: count as u64, entries, tensors: places.iter().map(tensor).collect() })
    }

    /// Its parts; all entries are in the first one.
    fn split(&self, parts: usize) -> Vec<Vec<u8>> {
        let chunks: Vec<&[Tensor]> = self.tensors.chunks(self.tensors.len().div_ceil(parts)).collect();
        let part = |(index, tensors): (usize, &&[Tensor])| {
            let (count, entries) = if index == 0 { (self.count, &self.entries[..]) } else { (0, &[][..]) };
            let mut file = [&b"GGUF"[..], &3_u32.to_le_bytes(), &(tensors.len() as u64).to_le_bytes(), &(count + 3).to_le_bytes()].concat();
            file.extend(entries);
            for (key, kind, value) in [
                ("split.no", 2_u32, &(index as u16).to_le_bytes()[..]),
                ("split.count", 2, &(chunks.len() as u16).to_le_bytes()),
                ("split.tensors.count", 5, &(self.tensors.len() as i32).to_le_bytes()),
            ] {
                file.extend([&(key.len() as u64).to_le_bytes()[..], key.as_bytes(), &kind.to_le_bytes(), value].concat());
            }
            let mut place = 0_usize;
            for tensor in *tensors {
                file.extend([&tensor.description[..], &(place as u64).to_le_bytes()].concat());
                place += tensor.data.len().next_multiple_of(ALIGNMENT);
            }
            for tensor in *tensors {
                file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
                file.extend(&tensor.data);
            }
            file
        };
        chunks.iter().enumerate().map(part).collect()
    }
}

/// A folder with the tiny model in three files.
fn split_model() -> Result<Scratch> {
    let folder = Scratch::new()?;
    let parts = Gguf::read(&fs::read(MODEL)?)?.split(3);
    ensure!(parts.len() == 3);
    for (index, part) in parts.iter().enumerate() {
        fs::write(folder.join(&name(index + 1)), part)?;
    }
    Ok(folder)
}

fn name(number: usize) -> String {
    format!("tiny-{number:05}-of-00003.gguf")
}

fn asks(folder: &Scratch, args: &[&str]) -> ContainerSpec {
    let words = ["/modules/nn.wasm"].iter().chain(args).map(ToString::to_string);
    let preload = format!("default:GGML:CPU:/models/{}", name(1));
    one_processor(
        module("nn.wasm", []).command(words).mount_read_only(&folder.join(""), "/models").env("WASMEDGE_WASINN_PRELOAD", &preload),
    )
}

async fn a_model_in_several_files_is_loaded_by_its_first(case: &Case, engine: Engine) -> Result<()> {
    let (pod, folder) = (pod(case, engine, "model-parts").await?, split_model()?);
    let asked = asks(&folder, &["ask", "default", &question("What is the capital of France?"), "{\"temp\":0,\"n-predict\":64}"]);
    let (status, said, log) = ends(case, &pod, &asked).await?;
    ensure!(status.exit_code == 0 && said.contains("Paris"), "{} {said}{log}", status.exit_code);
    // All its files count.
    let all: u64 = (1..=3).map(|number| Ok(fs::metadata(folder.join(&name(number)))?.len())).sum::<Result<u64>>()?;
    let (_, said, log) = ends(case, &pod, &asks(&folder, &["load", "default"]).memory(16 << 20)).await?;
    let needs = format!("MiB: {} for its file, ", all.div_ceil(1 << 20));
    ensure!(said == "103\n" && log.contains(&needs), "{said}{log}");
    Ok(pod.remove().await?)
}

async fn a_part_that_is_missing_or_cannot_be_read_is_named(case: &Case, engine: Engine) -> Result<()> {
    let (pod, folder) = (pod(case, engine, "model-part").await?, split_model()?);
    let part = folder.join(&name(2));
    fs::set_permissions(&part, fs::Permissions::from_mode(0o600))?;
    let (_, said, log) = ends(case, &pod, &asks(&folder, &["load", "default"])).await?;
    ensure!(said == "103\n" && log.contains("the model default has the mode 0600: "), "{said}{log}");
    // What llama-server finds wrong with a part is the reason.
    let other = fs::read(folder.join(&name(3)))?;
    fs::remove_file(&part)?;
    fs::write(&part, other)?;
    let (_, said, log) = ends(case, &pod, &asks(&folder, &["load", "default"])).await?;
    ensure!(said == "103\n" && log.contains("cannot be loaded: error loading model: "), "{said}{log}");
    fs::remove_file(&part)?;
    ensure!(!Path::new(&part).exists());
    let error = refusal(pod.run(&asks(&folder, &["load", "default"])).await);
    ensure!(error.contains(&format!("the model default of the container: there is no file /models/{}", name(2))), "{error}");
    Ok(pod.remove().await?)
}
