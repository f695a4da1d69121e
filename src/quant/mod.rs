//! Weight formats: what the bytes of a block mean. One file per family, one table here.
//!
//! A block is a run of values along a row that share a scale. Every number in a block is little-endian; `f16` is IEEE
//! binary16. Dequantization is f32 arithmetic in the order of the formula that each file states, without fused
//! multiply-add: it is the definition that kernels are tested against, and bit for bit what the `gguf` Python package
//! computes.

mod float;
pub mod pack;
pub mod q2_k;
pub mod q3_k;
pub mod q4;
pub mod q4_k;
pub mod q5;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;
mod quantize;
pub mod ternary;

pub use q3_k::q3_k_as_q6_k;
pub use q4_k::scales_k4;
pub use quantize::{Quantizer, quantizer};
pub use ternary::I2sLayout;

/// A weight format: a block layout of GGUF. The discriminant is GGUF's type id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(non_camel_case_types)] // The field's own spellings.
#[allow(missing_docs)] // The module of each has its layout.
pub enum Format {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    /// bitnet.cpp's number; llama.cpp has retired it.
    I2_S = 36,
}

/// A row of the table.
struct Layout {
    name: &'static str,
    /// Values in a block.
    block_len: usize,
    /// Bytes in a block.
    block_bytes: usize,
    dequantize: fn(&[u8], &mut [f32]),
}

/// A row whose sizes are those in the types of its block function, so that the two cannot differ.
macro_rules! layout {
    ($name:literal, $bytes:literal => $len:literal, $block:path) => {
        &Layout {
            name: $name,
            block_len: $len,
            block_bytes: $bytes,
            dequantize: |bytes, out| blocks::<$bytes, $len>(bytes, out, $block),
        }
    };
}

impl Format {
    /// Every format, in the order of GGUF's ids.
    pub const ALL: &'static [Format] = &[
        Format::F32,
        Format::F16,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q2_K,
        Format::Q3_K,
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
        Format::BF16,
        Format::TQ1_0,
        Format::TQ2_0,
        Format::I2_S,
    ];

    /// The table: name, bytes and values of a block, and what they mean.
    fn layout(self) -> &'static Layout {
        match self {
            Format::F32 => layout!("F32", 4 => 1, float::f32_block),
            Format::F16 => layout!("F16", 2 => 1, float::f16_block),
            Format::BF16 => layout!("BF16", 2 => 1, float::bf16_block),
            Format::Q4_0 => layout!("Q4_0", 18 => 32, q4::q4_0_block),
            Format::Q4_1 => layout!("Q4_1", 20 => 32, q4::q4_1_block),
            Format::Q5_0 => layout!("Q5_0", 22 => 32, q5::q5_0_block),
            Format::Q5_1 => layout!("Q5_1", 24 => 32, q5::q5_1_block),
            Format::Q8_0 => layout!("Q8_0", 34 => 32, q8_0::q8_0_block),
            Format::Q2_K => layout!("Q2_K", 84 => 256, q2_k::q2_k_block),
            Format::Q3_K => layout!("Q3_K", 110 => 256, q3_k::q3_k_block),
            Format::Q4_K => layout!("Q4_K", 144 => 256, q4_k::q4_k_block),
            Format::Q5_K => layout!("Q5_K", 176 => 256, q5_k::q5_k_block),
            Format::Q6_K => layout!("Q6_K", 210 => 256, q6_k::q6_k_block),
            Format::TQ1_0 => layout!("TQ1_0", 54 => 256, ternary::tq1_0_block),
            Format::TQ2_0 => layout!("TQ2_0", 66 => 256, ternary::tq2_0_block),
            Format::I2_S => layout!("I2_S", 32 => 128, ternary::i2_s_block),
        }
    }

    /// The format with this GGUF type id, or None when it is not one of ours.
    pub fn from_id(id: u32) -> Option<Format> {
        Format::ALL.iter().copied().find(|&format| format as u32 == id)
    }

    /// Its name: `Q4_K`.
    pub fn name(self) -> &'static str {
        self.layout().name
    }

    /// Values in a block.
    pub fn block_len(self) -> usize {
        self.layout().block_len
    }

    /// Bytes in a block.
    pub fn block_bytes(self) -> usize {
        self.layout().block_bytes
    }

    /// Whether weights are -1, 0 and 1 times a scale. Models with such weights define that a row of activations is rounded to
    /// int8 with one scale (BitNet b1.58).
    pub fn is_ternary(self) -> bool {
        matches!(self, Format::TQ1_0 | Format::TQ2_0 | Format::I2_S)
    }

    /// Bytes behind all blocks of a tensor.
    pub fn tail_bytes(self) -> usize {
        if self == Format::I2_S { ternary::I2_S_TAIL_BYTES } else { 0 }
    }

    /// Dequantizes whole blocks: `bytes.len() / block_bytes * block_len == out.len()`, else it panics.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        (self.layout().dequantize)(bytes, out);
    }
}

/// The name of a GGUF type that is not a [`Format`], so that a refusal can say what the file holds.
pub fn id_name(id: u32) -> Option<&'static str> {
    if let Some(format) = Format::from_id(id) {
        return Some(format.name());
    }
    Some(match id {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        // bitnet.cpp uses 37 to 39 as well.
        37 => "I8_S or IQ4_NL_4_8",
        38 => "TL1 or IQ4_NL_8_8",
        39 => "MXFP4 or TL2",
        40 => "NVFP4",
        41 => "Q1_0",
        42 => "Q2_0",
        _ => return None,
    })
}

/// Applies `block` to each block of `bytes`.
fn blocks<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let (from, bytes_left) = bytes.as_chunks::<BYTES>();
    let (to, out_left) = out.as_chunks_mut::<LEN>();
    assert!(bytes_left.is_empty() && out_left.is_empty() && from.len() == to.len(), "dequantize: not whole blocks");
    for (from, to) in from.iter().zip(to) {
        block(from, to);
    }
}

/// The f16 at byte `at`.
fn f16_at<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks and what the `gguf` package reads from them; `make_blocks.py` beside it says how it was made.
    const GOLDEN: &[u8] = include_bytes!("../../tests/data/quant/blocks.bin");

    /// (format, blocks, values) of every record.
    fn golden() -> Vec<(Format, &'static [u8], Vec<f32>)> {
        let mut rest = GOLDEN;
        let mut records = Vec::new();
        while let Some((head, tail)) = rest.split_at_checked(12) {
            let field = |i: usize| u32::from_le_bytes(head[i..i + 4].try_into().unwrap());
            let (bytes, tail) = tail.split_at(field(4) as usize);
            let (values, tail) = tail.split_at(field(8) as usize * 4);
            let values = values.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
            records.push((Format::from_id(field(0)).unwrap(), bytes, values));
            rest = tail;
        }
        assert!(rest.is_empty());
        records
    }

    #[test]
    fn every_format_dequantizes_to_the_bits_of_the_gguf_package() {
        let golden = golden();
        // The package does not know I2_S: `ternary` compares it with TQ2_0.
        for &format in Format::ALL.iter().filter(|&&format| format != Format::I2_S) {
            let (_, bytes, expected) = golden.iter().find(|record| record.0 == format).unwrap();
            let mut found = vec![f32::NAN; expected.len()];
            format.dequantize(bytes, &mut found);
            for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                assert_eq!(found.to_bits(), expected.to_bits(), "{} {i}: {found} {expected}", format.name());
            }
        }
    }

    #[test]
    fn ids_names_and_formats_agree() {
        for &format in Format::ALL {
            assert_eq!(Format::from_id(format as u32), Some(format));
            assert_eq!(id_name(format as u32), Some(format.name()));
            assert_eq!(format!("{format:?}"), format.name());
        }
        assert!(Format::ALL.is_sorted_by_key(|&format| format as u32));
        let ours = (0..1000).filter(|&id| Format::from_id(id).is_some()).count();
        assert_eq!(ours, Format::ALL.len());
    }

    #[test]
    fn formats_that_do_not_run_here_have_names() {
        for (id, name) in [(23, "IQ4_XS"), (38, "TL1 or IQ4_NL_8_8"), (39, "MXFP4 or TL2")] {
            assert_eq!(Format::from_id(id), None);
            assert_eq!(id_name(id), Some(name));
        }
        assert_eq!(id_name(43), None);
        assert_eq!(id_name(u32::MAX), None);
    }

    #[test]
    fn no_blocks_dequantize_to_nothing() {
        for &format in Format::ALL {
            format.dequantize(&[], &mut []);
        }
    }

    #[test]
    fn half_a_block_or_a_wrong_count_panics() {
        for &format in Format::ALL {
            for (bytes, values) in [(format.block_bytes() + 1, format.block_len()), (format.block_bytes(), 0)] {
                let call = || format.dequantize(&vec![0; bytes], &mut vec![0.0; values]);
                assert!(std::panic::catch_unwind(call).is_err(), "{}", format.name());
            }
        }
    }
}
