//! Random blocks of every weight format, with a chosen spread of values.

use super::Rng;
use edgellm::quant::Format;
use half::{bf16, f16};

/// `count` f32 from `low` to `high`, as bytes.
pub fn random_f32(rng: &mut Rng, count: usize, low: f32, high: f32) -> Vec<u8> {
    (0..count).flat_map(|_| rng.range(low, high).to_le_bytes()).collect()
}

/// Whole blocks for `count` values around zero, with about this standard deviation.
///
/// Every bit of a code is random; scales vary from block to block and are negative now and then, as in real files.
pub fn random_blocks(rng: &mut Rng, format: Format, count: usize, deviation: f32) -> Vec<u8> {
    assert_eq!(count % format.block_len(), 0, "{count} values are not whole blocks of {}", format.name());
    let block_bytes = format.block_bytes();
    let mut bytes = vec![0; count / format.block_len() * block_bytes];
    for block in bytes.chunks_exact_mut(block_bytes) {
        block.fill_with(|| rng.byte());
        fix_scales(rng, format, block, deviation);
        if matches!(format, Format::TQ2_0 | Format::I2_S) {
            block.iter_mut().take(64).for_each(|byte| *byte &= !((*byte & *byte << 1) & 0xAA)); // There is no code 3.
        }
    }
    if format == Format::I2_S {
        bytes.extend((deviation / 0.707).to_le_bytes());
        bytes.resize(bytes.len() + format.tail_bytes() - 4, 0);
    }
    bytes
}

/// Gives a block of random bytes scales that make its values fit `deviation`.
fn fix_scales(rng: &mut Rng, format: Format, block: &mut [u8], deviation: f32) {
    let sign = if rng.below(4) == 0 { -1.0 } else { 1.0 };
    // Divided by the deviation of a random code (times that of a random sub-block scale) below.
    let spread = deviation * rng.range(0.6, 1.4) * sign;
    match format {
        // Uniform from -a to a has deviation a / sqrt(3).
        Format::F32 => block.copy_from_slice(&rng.range(-1.73 * deviation, 1.73 * deviation).to_le_bytes()),
        Format::F16 => put(block, 0, rng.range(-1.73 * deviation, 1.73 * deviation)),
        Format::BF16 => {
            let value = bf16::from_f32(rng.range(-1.73 * deviation, 1.73 * deviation));
            block.copy_from_slice(&value.to_le_bytes());
        }
        Format::Q4_0 => put(block, 0, spread / 4.6),
        Format::Q5_0 => put(block, 0, spread / 9.2),
        Format::Q8_0 => put(block, 0, spread / 74.0),
        Format::Q4_1 => scale_and_minimum(block, 0, spread / 4.6, -7.5),
        Format::Q5_1 => scale_and_minimum(block, 0, spread / 9.2, -15.5),
        Format::Q2_K => {
            // Minimums near the scales, so that values lie around zero.
            for packed in &mut block[..16] {
                let scale = *packed & 15;
                *packed = scale | scale.saturating_sub(*packed >> 7) << 4;
            }
            scale_and_minimum(block, 80, spread / (1.12 * 9.0), 1.5);
        }
        Format::Q4_K | Format::Q5_K => {
            // Scales in bytes 0..4 and the low halves of 8..12, minimums in 4..8 and the high halves: equal but for a bit.
            for i in 4..8 {
                block[4 + i] = block[i] ^ (rng.byte() & 1);
                block[8 + i] = block[8 + i] & 15 | block[8 + i] << 4;
            }
            let (code, middle) = if format == Format::Q4_K { (4.6, 7.5) } else { (9.2, 15.5) };
            scale_and_minimum(block, 0, spread / (code * 36.0), middle);
        }
        Format::Q3_K => put(block, 108, spread / (2.3 * 18.5)),
        Format::Q6_K => put(block, 208, spread / (18.5 * 74.0)),
        Format::TQ1_0 => put(block, 52, spread / 0.816),
        Format::TQ2_0 => put(block, 64, spread / 0.707),
        Format::I2_S => {}
    }
}

fn scale_and_minimum(block: &mut [u8], at: usize, scale: f32, middle: f32) {
    put(block, at, scale);
    put(block, at + 2, scale * middle);
}

/// Writes an f16.
fn put(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}
