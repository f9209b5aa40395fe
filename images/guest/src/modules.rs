// SPDX-License-Identifier: Apache-2.0
//! Kernel modules that a guest loads whenever it boots: unpacked once, here, and not by an emulated
//! processor at every boot.

use anyhow::{Context, Result};
use std::fs;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

/// The number of the first module. All have three digits, so that their names sort as they are
/// loaded.
const FIRST: usize = 100;

/// The end of a packed module's name.
const PACKED: &str = ".xz";

/// Unpacks `files` to `out`, each as `NNN-name.ko`, numbered in the order in which they are given.
///
/// # Errors
/// Where one is not packed by xz or is damaged, or a file cannot be written.
pub fn unpack(out: &Path, files: &[PathBuf]) -> Result<()> {
    for (file, number) in files.iter().zip(FIRST..) {
        let name = file.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(PACKED));
        let name = name.with_context(|| format!("{} is no module packed by xz", file.display()))?;
        let to = out.join(format!("{number}-{name}"));
        let what = || format!("cannot unpack {} to {}", file.display(), to.display());
        let mut packed = BufReader::new(fs::File::open(file).with_context(what)?);
        let mut module = BufWriter::new(fs::File::create(&to).with_context(what)?);
        lzma_rs::xz_decompress(&mut packed, &mut module).map_err(|error| anyhow::anyhow!("{error:?}")).with_context(what)?;
        module.flush().with_context(what)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &[u8] = b"a module, a module, a module";

    /// `MODULE` as kernels' modules are packed: `xz --check=crc32 --lzma2=dict=1MiB`.
    #[rustfmt::skip]
    const PACKED_MODULE: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00, 0x21, 0x01, 0x10, 0x00, 0x00,
        0x00, 0xa8, 0x70, 0x8e, 0x86, 0xe0, 0x00, 0x1b, 0x00, 0x11, 0x5d, 0x00, 0x30, 0x88, 0x09, 0xa7, 0x33, 0xa9, 0x42,
        0x8c, 0x5b, 0x08, 0x23, 0xfc, 0xf2, 0xfd, 0x20, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x5e, 0x54, 0x6e, 0x51, 0x00,
        0x01, 0x29, 0x1c, 0x8f, 0x76, 0xc1, 0x70, 0x90, 0x42, 0x99, 0x0d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
    ];

    #[test]
    fn modules_are_unpacked_and_numbered_in_the_order_given() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["z.ko.xz", "a.ko.xz"].map(|name| dir.path().join(name));
        let mut other = Vec::new();
        lzma_rs::xz_compress(&mut b"another".as_slice(), &mut other).unwrap();
        fs::write(&files[0], PACKED_MODULE).unwrap();
        fs::write(&files[1], other).unwrap();
        unpack(dir.path(), &files).unwrap();
        assert_eq!(fs::read(dir.path().join("100-z.ko")).unwrap(), MODULE);
        assert_eq!(fs::read(dir.path().join("101-a.ko")).unwrap(), b"another");
    }

    #[test]
    fn what_is_not_packed_by_xz_or_is_damaged_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.ko.xz");
        // In the first byte of the content, which only the checksum tells.
        let mut damaged = PACKED_MODULE.to_vec();
        damaged[33] ^= 1;
        for content in [&b"\x7fELF"[..], &PACKED_MODULE[..20], &PACKED_MODULE[..PACKED_MODULE.len() - 1], &damaged] {
            fs::write(&file, content).unwrap();
            let error = format!("{:#}", unpack(dir.path(), std::slice::from_ref(&file)).unwrap_err());
            assert!(error.contains("cannot unpack"), "{error}");
        }
        let error = unpack(dir.path(), &["a.ko".into()]).unwrap_err().to_string();
        assert_eq!(error, "a.ko is no module packed by xz");
    }
}
