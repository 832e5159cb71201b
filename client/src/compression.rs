//! Compression of message bodies, in the formats RocketMQ's sys flag names.

use std::io::{self, Read, Write};

use bytes::Bytes;
use longwire_proto::record::sys_flag;

/// Most bytes a compressed body may unfold to: protects the consumer from what a few bytes can claim.
pub(crate) const DECOMPRESSED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How bodies are compressed before they are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// LZ4 frame format: cheap.
    Lz4,
    /// Zstandard: smaller.
    Zstd,
    /// zlib (RFC 1950): what the oldest RocketMQ clients read.
    Zlib,
}

impl Compression {
    /// The body compressed and the bits that say so, or `None` where that does not make it smaller.
    pub(crate) fn compress(self, body: &[u8]) -> Option<(Vec<u8>, u32)> {
        let (compressed, codec) = match self {
            Compression::None => return None,
            Compression::Lz4 => (lz4(body).ok()?, sys_flag::CODEC_LZ4),
            Compression::Zstd => (zstd(body), sys_flag::CODEC_ZSTD),
            Compression::Zlib => (zlib(body).ok()?, sys_flag::CODEC_ZLIB),
        };
        (compressed.len() < body.len()).then_some((compressed, sys_flag::COMPRESSED | codec))
    }
}

fn lz4(body: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::with_capacity(body.len() / 2));
    encoder.write_all(body)?;
    encoder.finish().map_err(io::Error::other)
}

fn zstd(body: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(body, ruzstd::encoding::CompressionLevel::Fastest)
}

fn zlib(body: &[u8]) -> io::Result<Vec<u8>> {
    let out = Vec::with_capacity(body.len() / 2);
    let mut encoder = flate2::write::ZlibEncoder::new(out, flate2::Compression::fast());
    encoder.write_all(body)?;
    encoder.finish()
}

/// Why a compressed body cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecompressError {
    #[error("its codec {0:#x} is not known")]
    Codec(u32),
    #[error("it unfolds to more than {DECOMPRESSED_BYTES_MAX} bytes")]
    TooLarge,
    #[error("its body does not decompress: {0}")]
    Broken(#[from] io::Error),
}

/// Unfolds a body whose sys flag has [`sys_flag::COMPRESSED`] set.
pub(crate) fn decompress(body: &[u8], flags: u32) -> Result<Bytes, DecompressError> {
    decompress_bounded(body, flags, DECOMPRESSED_BYTES_MAX)
}

fn decompress_bounded(body: &[u8], flags: u32, max: usize) -> Result<Bytes, DecompressError> {
    match flags & sys_flag::CODEC_MASK {
        sys_flag::CODEC_LZ4 => read_bounded(lz4_flex::frame::FrameDecoder::new(body), max),
        sys_flag::CODEC_ZSTD => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(body)
                .map_err(|error| io::Error::other(error.to_string()))?;
            read_bounded(decoder, max)
        }
        0 | sys_flag::CODEC_ZLIB => read_bounded(flate2::read::ZlibDecoder::new(body), max),
        codec => Err(DecompressError::Codec(codec)),
    }
}

fn read_bounded(decoder: impl Read, max: usize) -> Result<Bytes, DecompressError> {
    let mut out = Vec::new();
    decoder.take(max as u64 + 1).read_to_end(&mut out)?;
    if out.len() > max {
        return Err(DecompressError::TooLarge);
    }
    Ok(out.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Compression; 3] = [Compression::Lz4, Compression::Zstd, Compression::Zlib];

    #[test]
    fn every_codec_gives_back_what_it_was_given() {
        let text = "all work and no play makes jack a dull boy\n".repeat(5000);
        for codec in ALL {
            let (small, flags) = codec.compress(text.as_bytes()).unwrap();
            assert!(small.len() < text.len() / 10, "{codec:?}: {}", small.len());
            assert_ne!(flags & sys_flag::COMPRESSED, 0);
            assert_eq!(decompress(&small, flags).unwrap(), text.as_bytes(), "{codec:?}");
        }
        let (zlib, _) = Compression::Zlib.compress(text.as_bytes()).unwrap();
        let no_codec = sys_flag::COMPRESSED;
        assert_eq!(
            decompress(&zlib, no_codec).unwrap(),
            text.as_bytes(),
            "old clients set no codec"
        );
    }

    #[test]
    fn what_does_not_get_smaller_is_kept_as_it_is() {
        let scramble = |i: u32| i.wrapping_mul(2_654_435_761).rotate_left(7).to_le_bytes();
        let noise: Vec<u8> = (0..5000).flat_map(scramble).collect();
        for codec in ALL {
            if let Some((small, _)) = codec.compress(&noise) {
                assert!(small.len() < noise.len());
            }
            assert!(codec.compress(b"").is_none());
        }
        assert!(Compression::None.compress(&[0; 100_000]).is_none());
    }

    #[test]
    fn output_is_bounded_and_damage_is_an_error() {
        let zeros = vec![0; 1 << 20];
        for codec in ALL {
            let (small, flags) = codec.compress(&zeros).unwrap();
            let bounded = decompress_bounded(&small, flags, (1 << 20) - 1);
            assert!(matches!(bounded, Err(DecompressError::TooLarge)), "{codec:?}");
            let cut = decompress(&small[..small.len() / 2], flags);
            assert!(cut.is_err() || cut.unwrap().len() < zeros.len(), "{codec:?}");
            assert!(decompress(b"not compressed", flags).is_err(), "{codec:?}");
        }
        assert!(matches!(decompress(b"", 0x701), Err(DecompressError::Codec(0x700))));
    }
}
