//! What this process takes of the machine's memory, and how fast the machine reads it.

use crate::failure::Failure;
use edgellm::Model;
use edgellm::tensor::Buffer;
use std::hint::black_box;
use std::time::Instant;

/// Bytes, from the kernel's account of this process; None where it keeps none.
#[derive(Clone, Copy, Default)]
pub struct Memory {
    /// The most that was resident at once.
    pub peak: Option<u64>,
    /// Resident now and ours alone: KV cache, repacked weights, heap.
    pub anon: Option<u64>,
    /// Resident now and the page cache's: mapped weights, program text. The system can take it back.
    pub file: Option<u64>,
}

impl Memory {
    /// This process, now.
    pub fn now() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn parse(status: &str) -> Self {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        Memory { peak: field("VmHWM"), anon: field("RssAnon"), file: field("RssFile") }
    }
}

/// Memory far larger than any cache, to be read from end to end.
pub struct Stream {
    words: Buffer<u32>,
}

/// 512 MiB: caches of up to a few hundred MiB exist.
const STREAM_LEN: usize = (512 << 20) / size_of::<u32>();

impl Stream {
    /// Takes the memory, written once so that it is really there.
    pub fn new() -> Result<Self, Failure> {
        let mut words = Buffer::zeroed("the bandwidth measurement", STREAM_LEN)?;
        words.fill(1);
        Ok(Stream { words })
    }

    /// Reads all of it once on the model's threads, each its own part: bytes per second.
    pub fn read(&self, model: &Model) -> Result<f64, Failure> {
        let part_len = self.words.len().div_ceil(model.info().threads.max(1));
        let from = Instant::now();
        model.run_on_threads(&|index| {
            if let Some(part) = self.words.chunks(part_len).nth(index) {
                black_box(sum(part));
            }
        })?;
        Ok(self.words.bytes() as f64 / from.elapsed().as_secs_f64())
    }
}

/// Integer sums: the compiler may vectorise them, and then memory is what limits.
fn sum(words: &[u32]) -> u32 {
    words.iter().fold(0, |sum, word| sum.wrapping_add(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_fields_are_bytes_and_damage_is_none() {
        let memory = Memory::parse("Name:\tx\nVmHWM:\t   12 kB\nRssAnon:\t 3 kB\nRssFile:\t99999999999999999999 kB\n");
        assert_eq!((memory.peak, memory.anon, memory.file), (Some(12288), Some(3072), None));
        assert_eq!(Memory::parse("VmHWM 12 kB\nRssAnon: 12 MB").peak, None);
        assert_eq!(Memory::parse("RssAnon: 12 MB").anon, None);
    }

    #[test]
    fn the_sum_reads_every_word() {
        let words: Vec<u32> = (0..1000).collect();
        assert_eq!(sum(&words), 499_500);
    }
}
