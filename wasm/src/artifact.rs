// SPDX-License-Identifier: Apache-2.0
//! Finds modules in OCI artifacts: images whose layer is the module itself (CNCF's layout for Wasm
//! in OCI).
//!
//! containerd pulls such an image and keeps its blobs, but does not unpack layers of a type that it
//! does not know. So this module asks containerd for the manifest of the container's image and for
//! the layer. It copies the layer into a memory file: containers have their module open, and must
//! not reach files of the host.

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{GetImageRequest, ReadContentRequest};
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Request, Status};
use magnetar_core::error::{Code, Context, Error, Result};
use magnetar_core::runtime::libcontainer::Images;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::fs::{MemfdFlags, SealFlags};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::error::Error as _;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

/// The annotation in which containerd's CRI plugin names a container's image.
const IMAGE: &str = "io.kubernetes.cri.image-name";

/// The title of a layer: its file's name (the OCI image specification, annotations).
const TITLE: &str = "org.opencontainers.image.title";

/// The metadata of a call that names containerd's namespace.
const NAMESPACE: &str = "containerd-namespace";

/// The media types of layers that are a module: of CNCF's layout for Wasm in OCI, of its
/// predecessor, and of runwasi's tools.
const LAYERS: [&str; 4] = [
    "application/wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
];

/// The types of an index (the OCI image specification, and Docker's before it).
const INDEXES: [&str; 2] = ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];

/// The largest manifest, in bytes. Registries accept no larger ones.
const LARGEST_MANIFEST: u64 = 4 << 20;

/// How long all calls to containerd together may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A content descriptor (the OCI image specification, content descriptors).
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    architecture: String,
    #[serde(default)]
    os: String,
}

/// A manifest or an index.
#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

/// Which layers may be a process's program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The one with the program's name as its title, or the only one.
    TitledOrOnly,
    /// The one with the program's name as its title.
    Titled,
}

/// The module of a container whose image is an artifact: the layer with the title `name`, or the
/// only layer if `which` says so, in a sealed memory file. `None` for any other image. The process
/// must have one thread.
///
/// A forked copy of the process asks containerd, because an event loop leaves behind descriptors
/// that a container must not have.
///
/// # Errors
/// `Unavailable` if containerd does not answer, `ResourceExhausted` for a module of more than
/// `largest` bytes, and `InvalidArgument` if it is unclear which of several layers is meant.
pub fn find(spec: &Value, name: &str, images: &Images, which: Which, largest: u64) -> Result<Option<File>> {
    let Some(image) = spec["annotations"][IMAGE].as_str() else { return Ok(None) };
    let what = || format!("cannot ask containerd at {} for the image {image}", images.address.display());
    let file = rustix::fs::memfd_create("module", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).context(what)?;
    let (mut answer, tells) = std::io::pipe().context(what)?;
    let child = magnetar_sys::fork::spawn(|| {
        magnetar_sys::fork::keep_only(&[file.as_fd(), tells.as_fd()]);
        let line = match ask(image, name, images, which, largest, file.as_fd()) {
            Ok(true) => FOUND.into(),
            Ok(false) => NONE.into(),
            Err(error) => Error::new(error.code(), format!("{}: {error}", what())).to_line(),
        };
        i32::from((&tells).write_all(line.as_bytes()).is_err())
    })
    .context(what)?;
    drop(tells);
    let mut line = String::new();
    answer.read_to_string(&mut line).context(what)?;
    waitpid(Pid::from_raw(child as i32), None).context(what)?;
    match line.as_str() {
        FOUND => {
            rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL).context(what)?;
            Ok(Some(file.into()))
        }
        NONE => Ok(None),
        "" => Err(Error::internal(format!("{}: the process that asks it ended without an answer", what()))),
        error => Err(Error::from_line(error)),
    }
}

/// What the copy writes on success. An error begins with a number instead.
const FOUND: &str = "found";
const NONE: &str = "none";

fn ask(image: &str, name: &str, images: &Images, which: Which, largest: u64, into: BorrowedFd<'_>) -> Result<bool> {
    let what = || "cannot start".to_string();
    let mut into = File::from(into.try_clone_to_owned().context(what)?);
    let events = tokio::runtime::Builder::new_current_thread().enable_all().build().context(what)?;
    events.block_on(async {
        let late = |_| Error::new(Code::DeadlineExceeded, format!("no answer in {} s", PATIENCE.as_secs()));
        tokio::time::timeout(PATIENCE, fetch(image, name, images, which, largest, &mut into)).await.map_err(late)?
    })
}

/// Copies the module, if there is one.
async fn fetch(image: &str, name: &str, images: &Images, which: Which, largest: u64, into: &mut File) -> Result<bool> {
    let silent = |error: containerd_client::tonic::transport::Error| {
        // The error itself only says that the transport failed; its sources say why.
        let mut said = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            said.push_str(&format!(": {error}"));
            cause = error.source();
        }
        Error::new(Code::Unavailable, said)
    };
    let channel = containerd_client::connect(&images.address).await.map_err(silent)?;
    let store = Store { channel, namespace: &images.namespace };
    let Some(target) = store.target(image).await? else { return Ok(false) };
    let mut manifest = store.manifest(&target).await?;
    if INDEXES.contains(&target.media_type.as_str()) {
        let Some(chosen) = choose(manifest.manifests) else { return Ok(false) };
        manifest = match store.manifest(&chosen).await {
            // That manifest was not pulled, so the image is no artifact for this node, and its
            // program is just missing.
            Err(error) if error.code() == Code::NotFound => return Ok(false),
            manifest => manifest?,
        };
    }
    let Some(layer) = layer(manifest.layers, name, which)? else { return Ok(false) };
    store.read(&layer, largest, into).await?;
    Ok(true)
}

/// The manifest of an index for Wasm, or otherwise for this machine.
fn choose(manifests: Vec<Descriptor>) -> Option<Descriptor> {
    let machine = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let of = |is: &dyn Fn(&Platform) -> bool| manifests.iter().find(|manifest| manifest.platform.as_ref().is_some_and(is)).cloned();
    of(&|platform| platform.architecture == "wasm").or_else(|| of(&|platform| platform.architecture == machine && platform.os == "linux"))
}

/// The layer with the module.
fn layer(layers: Vec<Descriptor>, name: &str, which: Which) -> Result<Option<Descriptor>> {
    let mut modules: Vec<_> = layers.into_iter().filter(|layer| LAYERS.contains(&layer.media_type.as_str())).collect();
    let file = Path::new(name).file_name().and_then(|file| file.to_str());
    if let Some(named) = modules.iter().position(|layer| layer.annotations.get(TITLE).map(String::as_str) == file && file.is_some()) {
        return Ok(Some(modules.swap_remove(named)));
    }
    if which == Which::Titled {
        return Ok(None);
    }
    match modules.len() {
        0 | 1 => Ok(modules.pop()),
        many => {
            let titles: Vec<_> = modules.iter().filter_map(|layer| layer.annotations.get(TITLE)).collect();
            Err(Error::invalid(format!("the image has {many} modules, and none is called {name:?}: {titles:?}")))
        }
    }
}

/// containerd's images and their content.
struct Store<'a> {
    channel: Channel,
    namespace: &'a str,
}

impl Store<'_> {
    fn request<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = Request::new(message);
        let namespace = self.namespace.parse().map_err(|_| Error::invalid(format!("the namespace {:?} cannot be sent", self.namespace)))?;
        request.metadata_mut().insert(NAMESPACE, namespace);
        Ok(request)
    }

    /// The descriptor to which an image's name refers.
    async fn target(&self, image: &str) -> Result<Option<Descriptor>> {
        let request = self.request(GetImageRequest { name: image.into() })?;
        let answer = match ImagesClient::new(self.channel.clone()).get(request).await {
            // The image's name may be removed before its container is.
            Err(status) if status.code() == containerd_client::tonic::Code::NotFound => return Ok(None),
            answer => answer.map_err(unanswered)?.into_inner(),
        };
        let target = answer.image.and_then(|image| image.target);
        Ok(target.map(|target| Descriptor {
            media_type: target.media_type,
            digest: target.digest,
            size: u64::try_from(target.size).unwrap_or_default(),
            annotations: BTreeMap::new(),
            platform: None,
        }))
    }

    async fn manifest(&self, descriptor: &Descriptor) -> Result<Manifest> {
        let mut text = Vec::new();
        self.read(descriptor, LARGEST_MANIFEST, &mut text).await?;
        serde_json::from_slice(&text).map_err(|error| Error::invalid(format!("{} is not a manifest: {error}", descriptor.digest)))
    }

    /// Copies content, and checks its size and digest.
    async fn read(&self, descriptor: &Descriptor, largest: u64, into: &mut impl Write) -> Result<()> {
        let Descriptor { digest, size, .. } = descriptor;
        if *size > largest {
            return Err(Error::new(Code::ResourceExhausted, format!("{digest} has {size} bytes; at most {largest} are allowed")));
        }
        let request = self.request(ReadContentRequest { digest: digest.clone(), offset: 0, size: 0 })?;
        let mut parts = ContentClient::new(self.channel.clone()).read(request).await.map_err(unanswered)?.into_inner();
        let (mut hash, mut length) = (Sha256::new(), 0);
        while let Some(part) = parts.message().await.map_err(unanswered)? {
            length += part.data.len() as u64;
            if length > *size {
                break;
            }
            hash.update(&part.data);
            into.write_all(&part.data).context(|| format!("cannot copy {digest}"))?;
        }
        let is: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if length == *size && digest.strip_prefix("sha256:") == Some(is.as_str()) {
            Ok(())
        } else {
            Err(Error::new(Code::FailedPrecondition, format!("{digest} is damaged in containerd's store: pull the image again")))
        }
    }
}

fn unanswered(status: Status) -> Error {
    let code = if status.code() == containerd_client::tonic::Code::NotFound { Code::NotFound } else { Code::Unavailable };
    Error::new(code, status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(text: &str) -> Manifest {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_layer_is_found_by_title_or_as_the_only_one() {
        let one = r#"{"layers": [{"mediaType": "application/wasm", "digest": "sha256:a", "size": 1}]}"#;
        assert_eq!(layer(manifest(one).layers, "/any.wasm", Which::TitledOrOnly).unwrap().unwrap().digest, "sha256:a");
        assert!(layer(manifest(one).layers, "/bin/sh", Which::Titled).unwrap().is_none());
        let two = r#"{"layers": [
            {"mediaType": "application/wasm", "digest": "sha256:a", "size": 1, "annotations": {"org.opencontainers.image.title": "a.wasm"}},
            {"mediaType": "application/vnd.wasm.content.layer.v1+wasm", "digest": "sha256:b", "size": 1,
             "annotations": {"org.opencontainers.image.title": "b.wasm"}}]}"#;
        assert_eq!(layer(manifest(two).layers, "/b.wasm", Which::TitledOrOnly).unwrap().unwrap().digest, "sha256:b");
        assert_eq!(layer(manifest(two).layers, "/b.wasm", Which::Titled).unwrap().unwrap().digest, "sha256:b");
        let error = layer(manifest(two).layers, "c.wasm", Which::TitledOrOnly).unwrap_err();
        assert!(error.to_string().contains("b.wasm"), "{error}");
        let usual = r#"{"layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": "sha256:a", "size": 1}]}"#;
        assert!(layer(manifest(usual).layers, "a.wasm", Which::TitledOrOnly).unwrap().is_none());
    }

    #[test]
    fn a_manifest_for_wasm_is_chosen_from_an_index() {
        let index = r#"{"manifests": [
            {"digest": "sha256:a", "size": 1, "platform": {"architecture": "s390x", "os": "linux"}},
            {"digest": "sha256:b", "size": 1, "platform": {"architecture": "wasm", "os": "wasip1"}}]}"#;
        assert_eq!(choose(manifest(index).manifests).unwrap().digest, "sha256:b");
        assert!(choose(manifest(r#"{"manifests": [{"digest": "sha256:a", "size": 1}]}"#).manifests).is_none());
    }
}
