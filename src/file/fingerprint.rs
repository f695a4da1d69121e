//! What tells one model from another without reading all of it.

use super::ModelFile;
use xxhash_rust::xxh3::Xxh3;

/// Bytes of a sample, and how many samples are taken of a tensor.
const SAMPLE_BYTES: usize = 256;
const SAMPLES: usize = 4;

impl ModelFile {
    /// Of each part its length and its header (all metadata, the vocabulary among it, and the names, shapes, formats and
    /// places of tensors); of each tensor four samples of 256 bytes, spread evenly from its first to its last; and how I2_S is
    /// read. So it tells apart models that were trained, converted or quantized differently, and not a file in which
    /// somebody changed a few weights between the samples. Two XXH3-128, which are no protection against forgery.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hashes = [Xxh3::with_seed(0), Xxh3::with_seed(1)];
        let mut update = |bytes: &[u8]| hashes.iter_mut().for_each(|hash| hash.update(bytes));
        for (index, part) in self.parts.iter().enumerate() {
            let places = self.tensors.iter().filter(|entry| entry.part == index).map(|entry| entry.info.at);
            let header = &part[..places.min().unwrap_or(part.len())];
            update(&(part.len() as u64).to_le_bytes());
            update(&(header.len() as u64).to_le_bytes());
            update(header);
        }
        for entry in &self.tensors {
            let bytes = &self.parts[entry.part][entry.info.at..][..entry.info.bytes];
            if bytes.len() <= SAMPLES * SAMPLE_BYTES {
                update(bytes);
                self.release(bytes);
                continue;
            }
            let last = bytes.len() - SAMPLE_BYTES;
            for sample in 0..SAMPLES {
                let at = last / (SAMPLES - 1) * sample + last % (SAMPLES - 1) * sample / (SAMPLES - 1);
                update(&bytes[at..][..SAMPLE_BYTES]);
            }
            self.release(bytes);
        }
        update(format!("{:?}", self.i2s_layout).as_bytes());
        let mut fingerprint = [0; 32];
        for (half, hash) in fingerprint.as_chunks_mut::<16>().0.iter_mut().zip(&hashes) {
            *half = hash.digest128().to_le_bytes();
        }
        fingerprint
    }
}
