// SPDX-License-Identifier: Apache-2.0
//! The images that the suite's modules are run from.
//!
//! A module must be found by the engine, and must not be among the files that the test sees. So it
//! is no file of its image, but a layer of a type that containerd does not unpack:
//!
//! ```text
//!   image of a suite and a root ──┬─ configuration: one file system
//!                                 ├─ layer (tar): the root's files, and nothing else
//!                                 └─ layer (application/wasm) for each module, by its title
//! ```
//!
//! A container of the image gets a fresh copy of the files, and the command's name selects the
//! module (docs/wasm.md).

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use magnetar_e2e::{Case, Scratch, eventually};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// An image to be made: its name, the root's files if it has any, and the modules.
#[derive(Debug)]
pub struct Image<'a> {
    pub name: &'a str,
    pub root: Option<PathBuf>,
    pub modules: Vec<PathBuf>,
}

impl Image<'_> {
    /// Makes the image known to the node.
    pub async fn import(&self, case: &Case) -> Result<()> {
        let scratch = Scratch::new()?;
        self.lay_out(&scratch)?;
        let mut tar = Command::new("tar");
        tar.arg("--dereference").arg("-C").arg(scratch.path()).args(["-c", "oci-layout", "index.json", "blobs"]);
        let mut tar = tar.stdout(Stdio::piped()).spawn().context("tar")?;
        let archive = tar.stdout.take().context("tar has no output")?;
        let ctr = Command::new("ctr").args(["--namespace", "k8s.io", "images", "import", "-"]).stdin(archive).output().context("ctr")?;
        let packed = tar.wait().context("tar")?;
        ensure!(packed.success() && ctr.status.success(), "cannot import {}: {}", self.name, String::from_utf8_lossy(&ctr.stderr).trim());
        // The CRI learns of it by an event.
        let what = format!("the CRI knows the image {}", self.name);
        eventually(&what, case.soon(), async || Ok(case.node().image(self.name).await?.map(drop))).await
    }

    /// The image as a layout (the OCI image specification, image layout), with links in place of
    /// copies.
    fn lay_out(&self, layout: &Scratch) -> Result<()> {
        fs::create_dir_all(layout.path().join("blobs/sha256"))?;
        fs::write(layout.path().join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
        let (mut layers, mut file_systems) = (Vec::new(), Vec::new());
        if let Some(root) = &self.root {
            let archive = layout.path().join("root.tar");
            pack(root, &archive)?;
            let layer = blob(layout, &archive, "application/vnd.oci.image.layer.v1.tar")?;
            file_systems.push(layer["digest"].clone());
            layers.push(layer);
        }
        for module in &self.modules {
            let mut layer = blob(layout, module, "application/wasm")?;
            let title = module.file_name().and_then(|name| name.to_str()).context("a module without a name")?;
            layer["annotations"] = json!({"org.opencontainers.image.title": title});
            layers.push(layer);
        }
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        // The CRI takes images with the same configuration for one.
        let labels = json!({"Labels": {"org.opencontainers.image.ref.name": self.name}});
        let file_systems = json!({"type": "layers", "diff_ids": file_systems});
        let config = json!({"architecture": architecture, "os": "linux", "config": labels, "rootfs": file_systems});
        let config = written(layout, "config.json", &config, "application/vnd.oci.image.config.v1+json")?;
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
        let mut manifest = written(layout, "manifest.json", &manifest, kind)?;
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": self.name});
        fs::write(layout.path().join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())?;
        Ok(())
    }
}

/// The files of a folder as an archive, which belong to root.
fn pack(folder: &Path, archive: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--owner=0", "--group=0", "--numeric-owner", "--exclude=*.cleanup", "-C"]).arg(folder).arg("-cf").arg(archive).arg(".");
    ensure!(tar.status().context("tar")?.success(), "cannot pack {}", folder.display());
    Ok(())
}

/// Adds a JSON document, and returns its descriptor.
fn written(layout: &Scratch, name: &str, value: &Value, kind: &str) -> Result<Value> {
    let path = layout.path().join(name);
    fs::write(&path, value.to_string())?;
    blob(layout, &path, kind)
}

/// Adds a file, and returns its descriptor.
fn blob(layout: &Scratch, file: &Path, kind: &str) -> Result<Value> {
    let mut hash = Sha256::new();
    let size = std::io::copy(&mut File::open(file).with_context(|| file.display().to_string())?, &mut hash)?;
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let link = layout.path().join("blobs/sha256").join(&digest);
    // Two modules may be the same.
    if !link.exists() {
        symlink(file, link)?;
    }
    Ok(json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": size}))
}
