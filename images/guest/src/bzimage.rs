// SPDX-License-Identifier: Apache-2.0
//! A bzImage, the form in which Linux for x86 is packaged: boot code, and the kernel's ELF file
//! packed. The boot code unpacks it at every boot, which takes an emulated processor seconds, so it
//! is unpacked here. The kernel then has no address randomisation, which the boot code does.
//!
//! ```text
//! 0x1f1  setup_sects     1 byte    sectors of 512 bytes before the protected-mode code, without the first one
//! 0x202  header          4 bytes   "HdrS"
//! 0x248  payload_offset  4 bytes   where the packed kernel is, from the beginning of the protected-mode code
//! 0x24c  payload_length  4 bytes   how long it is, with the last 4 bytes: the length of the unpacked kernel
//! ```
//!
//! Numbers have their least byte first. Documentation/arch/x86/boot.rst in the kernel has all
//! fields.

use anyhow::{Context, Result, bail, ensure};
use ruzstd::decoding::FrameDecoder;
use std::io::Read;

const MAGIC: &[u8] = b"HdrS";
const SECTOR: usize = 512;

/// The first bytes of what zstd has packed.
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// The longest kernel that is unpacked, in bytes: many times those of Debian. Memory for it is
/// reserved.
const LONGEST: usize = 1 << 30;

/// The ELF file that a bzImage holds.
///
/// # Errors
/// Where it is none, is damaged, or is packed by anything but zstd.
pub fn unpack(image: &[u8]) -> Result<Vec<u8>> {
    ensure!(image.get(0x202..0x206) == Some(MAGIC), "it is not a bzImage");
    let setup_sectors = *image.get(0x1f1).context("it is cut off")?;
    let begin = (usize::from(setup_sectors) + 1) * SECTOR + number(image, 0x248)?;
    let end = begin.checked_add(number(image, 0x24c)?).context("the length in its header is too large")?;
    let payload = image.get(begin..end).context("it is cut off")?;
    let Some((packed, length)) = payload.split_last_chunk::<4>() else { bail!("it holds no kernel") };
    let length = u32::from_le_bytes(*length) as usize;
    ensure!(packed.starts_with(ZSTD), "its kernel is not packed by zstd, and nothing else can be unpacked here");
    ensure!(length <= LONGEST, "its kernel of {length} bytes is longer than {LONGEST}");
    let kernel = unpack_zstd(packed, length)?;
    ensure!(kernel.len() == length, "its kernel has {} bytes, and should have {length}", kernel.len());
    Ok(kernel)
}

/// A number of four bytes in a bzImage's header.
fn number(image: &[u8], at: usize) -> Result<usize> {
    let bytes = image.get(at..).and_then(|rest| rest.first_chunk()).context("it is cut off")?;
    Ok(u32::from_le_bytes(*bytes) as usize)
}

/// One frame of zstd: at most one byte more than `length`, so that one which is too long shows. The
/// checksum is checked.
fn unpack_zstd(packed: &[u8], length: usize) -> Result<Vec<u8>> {
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(packed).context("cannot read the head of its packed kernel")?;
    let mut kernel = Vec::with_capacity(length + 1);
    decoder.by_ref().take(length as u64 + 1).read_to_end(&mut kernel).context("cannot unpack its kernel")?;
    let frame: &FrameDecoder = &decoder.decoder;
    if let Some(expected) = frame.get_checksum_from_data() {
        ensure!(frame.get_calculated_checksum() == Some(expected), "the checksum of its kernel is wrong: it is damaged");
    }
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    const KERNEL: &[u8] = b"an ELF file, an ELF file, an ELF file";

    /// With the payload behind two sectors and some code.
    fn image(payload: &[u8], length: u32) -> Vec<u8> {
        let mut image = vec![0; 2 * SECTOR + 100];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(MAGIC);
        image[0x248..0x24c].copy_from_slice(&100_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32 + 4).to_le_bytes());
        image.extend_from_slice(payload);
        image.extend_from_slice(&length.to_le_bytes());
        // What follows the payload is not looked at.
        image.extend_from_slice(b"more code");
        image
    }

    fn packed() -> Vec<u8> {
        compress_to_vec(KERNEL, CompressionLevel::Fastest)
    }

    fn error(image: &[u8]) -> String {
        format!("{:#}", unpack(image).unwrap_err())
    }

    #[test]
    fn the_packed_kernel_comes_out_as_it_was() {
        assert_eq!(unpack(&image(&packed(), KERNEL.len() as u32)).unwrap(), KERNEL);
    }

    #[test]
    fn a_kernel_of_another_length_than_announced_is_refused() {
        for length in [KERNEL.len() as u32 - 1, KERNEL.len() as u32 + 1] {
            let error = error(&image(&packed(), length));
            assert!(error.contains("and should have"), "{error}");
        }
        assert!(error(&image(&packed(), u32::MAX)).contains("is longer than"));
    }

    #[test]
    fn a_bzimage_cut_off_anywhere_is_refused() {
        let image = image(&packed(), KERNEL.len() as u32);
        for end in 0..image.len() - "more code".len() {
            unpack(&image[..end]).unwrap_err();
        }
    }

    #[test]
    fn a_damaged_kernel_is_refused_or_shows_no_difference() {
        let packed = packed();
        for at in 0..packed.len() {
            let mut damaged = packed.clone();
            damaged[at] ^= 0x10;
            if let Ok(kernel) = unpack(&image(&damaged, KERNEL.len() as u32)) {
                assert_eq!(kernel, KERNEL, "byte {at}");
            }
        }
    }

    #[test]
    fn what_is_no_bzimage_or_packed_otherwise_is_said() {
        assert_eq!(error(b"\x7fELF"), "it is not a bzImage");
        assert!(error(&image(&[0x1f, 0x8b, 8, 0], 4)).contains("not packed by zstd"));
    }
}
