//! How large the bodies are, and what is in them.

use std::fmt;
use std::str::FromStr;

use bytes::{Bytes, BytesMut};
use fastrand::Rng;

use super::stamp::{STAMP_BYTES, Stamp};
use crate::produce::input::BODY_BYTES_MAX;
use crate::size;

/// The text of the bodies is cut from a pool this much longer than the longest of them.
const POOL_SPARE_BYTES: usize = 1 << 20;
/// The pool repeats none of its parts, so only repeated words make it smaller, as with real text.
const WORDS: usize = 2_000;

/// How many bytes the bodies have.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sizes {
    text: String,
    distribution: Distribution,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Distribution {
    Fixed(usize),
    /// Both ends are included.
    Uniform(usize, usize),
    /// Half are smaller than the median; `sigma` is that of the logarithm.
    LogNormal {
        median: usize,
        sigma: f64,
    },
}

impl Sizes {
    /// None is smaller.
    pub(super) fn min(&self) -> usize {
        match self.distribution {
            Distribution::Fixed(bytes) | Distribution::Uniform(bytes, _) => bytes,
            Distribution::LogNormal { .. } => 1,
        }
    }

    /// Whether the smallest size is a choice, and not just the far end of a curve.
    pub(super) fn has_floor(&self) -> bool {
        !matches!(self.distribution, Distribution::LogNormal { .. })
    }

    /// About what one has on average.
    pub(super) fn mean(&self) -> f64 {
        match self.distribution {
            Distribution::Fixed(bytes) => bytes as f64,
            Distribution::Uniform(least, most) => (least + most) as f64 / 2.0,
            Distribution::LogNormal { median, sigma } => {
                median as f64 * (sigma * sigma / 2.0).exp()
            }
        }
    }

    fn max(&self) -> usize {
        match self.distribution {
            Distribution::Fixed(bytes) | Distribution::Uniform(_, bytes) => bytes,
            Distribution::LogNormal { .. } => BODY_BYTES_MAX,
        }
    }

    fn pick(&self, random: &mut Rng) -> usize {
        match self.distribution {
            Distribution::Fixed(bytes) => bytes,
            Distribution::Uniform(least, most) => random.usize(least..=most),
            Distribution::LogNormal { median, sigma } => {
                // Box and Muller's way from two uniform numbers to a normal one.
                let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
                let normal = radius * (std::f64::consts::TAU * random.f64()).cos();
                // Out of range, the conversion gives the nearest there is.
                ((median as f64 * (sigma * normal).exp()) as usize).clamp(1, BODY_BYTES_MAX)
            }
        }
    }
}

impl FromStr for Sizes {
    type Err = String;

    /// `1KiB`, `100..10KiB`, `lognormal:1KiB` or `lognormal:1KiB:0.5`.
    fn from_str(text: &str) -> Result<Sizes, String> {
        let distribution = if let Some(rest) = text.strip_prefix("lognormal:") {
            let (median, sigma) = rest.split_once(':').unwrap_or((rest, "1"));
            let sigma = sigma.parse::<f64>().ok().filter(|sigma| (0.0..=4.0).contains(sigma));
            let sigma = sigma.ok_or("the sigma of a lognormal size is between 0 and 4")?;
            Distribution::LogNormal { median: bytes(median)?, sigma }
        } else if let Some((least, most)) = text.split_once("..") {
            let (least, most) = (bytes(least)?, bytes(most)?);
            if least > most {
                return Err(format!("{least} is more than {most}"));
            }
            Distribution::Uniform(least, most)
        } else {
            Distribution::Fixed(bytes(text)?)
        };
        Ok(Sizes { text: text.to_owned(), distribution })
    }
}

fn bytes(text: &str) -> Result<usize, String> {
    match usize::try_from(size::bytes(text)?) {
        Ok(bytes) if bytes <= BODY_BYTES_MAX => Ok(bytes),
        _ => Err("a message has at most 4 MiB".to_owned()),
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Makes bodies. Clones share the text they are cut from.
#[derive(Debug, Clone)]
pub(super) struct Bodies {
    sizes: Sizes,
    pool: Bytes,
    random: Rng,
}

impl Bodies {
    pub(super) fn new(sizes: Sizes) -> Bodies {
        let mut random = Rng::with_seed(0x6c6f_6e67);
        let word = |random: &mut Rng| -> String {
            (0..random.usize(2..10)).map(|_| random.lowercase()).chain([' ']).collect()
        };
        let words: Vec<String> = (0..WORDS).map(|_| word(&mut random)).collect();
        let length = sizes.max() + POOL_SPARE_BYTES;
        let mut pool = Vec::with_capacity(length + 16);
        while pool.len() < length {
            pool.extend_from_slice(words[random.usize(..WORDS)].as_bytes());
        }
        Bodies { sizes, pool: pool.into(), random }
    }

    /// The same for another client, which sends other bodies.
    pub(super) fn for_client(&self, client: u32) -> Bodies {
        Bodies { random: Rng::with_seed(u64::from(client) + 1), ..self.clone() }
    }

    /// The next body. One with a stamp has room for that at least.
    pub(super) fn next(&mut self, stamp: Option<Stamp>) -> Bytes {
        let bytes = self.sizes.pick(&mut self.random);
        let start = self.random.usize(..=self.pool.len() - bytes);
        let text = self.pool.slice(start..start + bytes);
        let Some(stamp) = stamp else {
            return text;
        };
        let mut body = BytesMut::with_capacity(bytes.max(STAMP_BYTES));
        body.extend_from_slice(&stamp.encode());
        body.extend_from_slice(text.get(STAMP_BYTES..).unwrap_or_default());
        body.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_fixed_even_or_lognormal() {
        let random = &mut Rng::with_seed(1);
        let sizes = |text: &str| text.parse::<Sizes>();
        assert_eq!(sizes("1KiB").unwrap().pick(random), 1024);
        let even = sizes("100..10KiB").unwrap();
        let picked: Vec<_> = (0..10_000).map(|_| even.pick(random)).collect();
        assert!(picked.iter().all(|bytes| (100..=10_240).contains(bytes)));
        let mean = picked.iter().sum::<usize>() as f64 / 1e4;
        assert!((mean / even.mean() - 1.0).abs() < 0.05, "{mean}");
        let log = sizes("lognormal:1KiB:0.5").unwrap();
        let mut picked: Vec<_> = (0..10_001).map(|_| log.pick(random)).collect();
        let mean = picked.iter().sum::<usize>() as f64 / 10_001.0;
        assert!((mean / log.mean() - 1.0).abs() < 0.05, "{mean}");
        picked.sort_unstable();
        assert!((950..1100).contains(&picked[5_000]), "{}", picked[5_000]);
        for wrong in ["", "5MiB", "2..1", "..", "1..", "lognormal:1KiB:x", "lognormal:", "-1"] {
            assert!(sizes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bodies_have_their_size_and_carry_their_stamp() {
        let stamp = Stamp { run: 1, sequence: 2, due_ns: 3, client: 4, measured: true };
        for (text, length) in [("0", 0), ("100", 100), ("4MiB", 4 << 20)] {
            let mut bodies = Bodies::new(text.parse().unwrap()).for_client(3);
            let (plain, stamped) = (bodies.next(None), bodies.next(Some(stamp)));
            assert_eq!((plain.len(), stamped.len()), (length, length.max(STAMP_BYTES)));
            assert_eq!(Stamp::decode(&stamped), Some(stamp));
            assert_eq!(Stamp::decode(&plain).filter(|plain| *plain == stamp), None);
        }
    }
}
