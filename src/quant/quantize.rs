//! From values to blocks: what a converter writes.

use super::{Format, q6_k, q8_0};

/// Writes whole blocks: `values.len() / block_len * block_bytes == out.len()`, else it panics.
pub type Quantizer = fn(values: &[f32], out: &mut [u8]);

/// How values become blocks of this format; None when nothing here makes such blocks. Values are to be finite, and in
/// the range of f16 for every format but F32 and BF16.
pub fn quantizer(format: Format) -> Option<Quantizer> {
    Some(match format {
        Format::F32 => |values, out| blocks(values, out, |[value]: &[f32; 1], out| *out = value.to_le_bytes()),
        Format::F16 => |values, out| {
            blocks(values, out, |[value]: &[f32; 1], out| *out = half::f16::from_f32(*value).to_le_bytes());
        },
        Format::BF16 => |values, out| {
            blocks(values, out, |[value]: &[f32; 1], out| *out = half::bf16::from_f32(*value).to_le_bytes());
        },
        Format::Q8_0 => |values, out| blocks(values, out, q8_0::quantize_block),
        Format::Q6_K => |values, out| blocks(values, out, q6_k::quantize_block),
        _ => return None,
    })
}

/// Applies `block` to each block of `values`.
fn blocks<const LEN: usize, const BYTES: usize>(
    values: &[f32],
    out: &mut [u8],
    block: fn(&[f32; LEN], &mut [u8; BYTES]),
) {
    let (from, values_left) = values.as_chunks::<LEN>();
    let (to, out_left) = out.as_chunks_mut::<BYTES>();
    assert!(values_left.is_empty() && out_left.is_empty() && from.len() == to.len(), "quantize: not whole blocks");
    for (from, to) in from.iter().zip(to) {
        block(from, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [Format; 5] = [Format::F32, Format::F16, Format::BF16, Format::Q8_0, Format::Q6_K];

    fn round_trip(format: Format, values: &[f32]) -> Vec<f32> {
        let mut bytes = vec![0xAA; values.len() / format.block_len() * format.block_bytes()];
        quantizer(format).unwrap()(values, &mut bytes);
        let mut found = vec![f32::NAN; values.len()];
        format.dequantize(&bytes, &mut found);
        found
    }

    /// From -1 to 1, in the manner of weights: most of them small.
    fn weights(seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..512).map(|_| uniform() * uniform() * uniform()).collect()
    }

    #[test]
    fn values_come_back_as_near_as_the_format_allows() {
        // Of a block's energy. Q8_0's step is the largest of 32 values (here about 0.8) over 127, and an error evenly
        // spread over a step has a twelfth of its square: 3e-6, of 0.037. Q6_K's step is that of 16 values over 32.
        for (format, error_max) in FORMATS.into_iter().zip([0.0, 1e-7, 6e-6, 1.5e-4, 6e-4]) {
            for seed in 1..50 {
                let values = weights(seed);
                let found = round_trip(format, &values);
                let energy = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
                let error = energy(&mut values.iter().zip(&found).map(|(a, b)| a - b));
                let relative = error / energy(&mut values.iter().copied());
                assert!(relative <= error_max, "{} {seed}: {relative}", format.name());
            }
        }
    }

    #[test]
    fn zeros_stay_zeros_and_signs_stay_signs() {
        for format in FORMATS {
            assert!(round_trip(format, &[0.0; 256]).iter().all(|value| *value == 0.0), "{}", format.name());
            for sign in [1.0, -1.0] {
                let mut values = [0.0; 256];
                values[77] = sign * 0.5;
                let found = round_trip(format, &values);
                assert!((found[77] - values[77]).abs() < 0.01, "{} {}", format.name(), found[77]);
                let others = found.iter().enumerate().filter(|(i, value)| *i != 77 && **value != 0.0);
                assert_eq!(others.count(), 0, "{}", format.name());
            }
        }
    }

    #[test]
    fn values_that_the_format_has_come_back_exactly() {
        let exact: Vec<f32> = (0..32).map(|i| if i == 0 { 127.0 } else { (i * 7 % 120) as f32 }).collect();
        assert_eq!(round_trip(Format::Q8_0, &exact), exact);
        let exact: Vec<f32> = (0..256).map(|i| if i % 16 == 0 { -32.0 } else { (i % 61 - 30) as f32 }).collect();
        assert_eq!(round_trip(Format::Q6_K, &exact), exact);
    }

    #[test]
    fn formats_that_nothing_here_makes_are_none() {
        let made = Format::ALL.iter().filter(|&&format| quantizer(format).is_some());
        assert_eq!(made.count(), FORMATS.len());
    }
}
