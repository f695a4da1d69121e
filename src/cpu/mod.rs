//! Kernels, one table per instruction set, and the thread pool.
//!
//! `ALL` is the only list: `select` takes its first available entry, tests and benches walk it. All tables give the
//! same bits, which `scalar.rs` defines; a faster table lists only the kernels that it improves.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod attention;
#[cfg(all(test, unix))]
mod check;
pub mod energy;
pub mod environment;
pub mod lanes;
pub mod rows;
pub mod scalar;
pub mod threads;
pub mod tile;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use crate::quant::Format;
use crate::{Error, Result};
use lanes::SoftmaxState;
use rows::{Block, Rows};

/// Best first. The last entry runs everywhere.
static ALL: &[&Kernels] = &[
    #[cfg(target_arch = "aarch64")]
    &aarch64::i8mm::I8MM,
    #[cfg(target_arch = "aarch64")]
    &aarch64::dotprod::DOTPROD,
    #[cfg(target_arch = "aarch64")]
    &aarch64::neon::NEON,
    #[cfg(target_arch = "x86_64")]
    &x86_64::avx512::AVX512_VNNI,
    #[cfg(target_arch = "x86_64")]
    &x86_64::avx_vnni::AVX_VNNI,
    #[cfg(all(test, target_arch = "x86_64"))]
    &x86_64::avx_vnni::AVX_VNNI_IN_AVX512,
    #[cfg(target_arch = "x86_64")]
    &x86_64::avx2::AVX2,
    &scalar::SCALAR,
];

/// Activation rows that one call of a GEMM kernel takes at the most: what keeps a kernel's accumulators on the stack.
pub const GEMM_ROWS_MAX: usize = 64;

type Gemm = unsafe fn(tile: &[u8], x: Rows<'_>, out: &mut [f32]);
type AddRotated = unsafe fn(&[f32], &[f32], &[f32], bool, &mut [f32]);
type Attend = unsafe fn(&[f32], &[f32], &[f32], f32, &mut [SoftmaxState], &mut [f32]);

/// One function per hot operation, for one instruction set. `scalar.rs` has what each means.
pub struct Kernels {
    name: &'static str,
    available: fn() -> bool,
    gemm_f32: Gemm,
    gemm_f16: Gemm,
    gemm_bf16: Gemm,
    gemm_q8_0: Gemm,
    gemm_q4_0: Gemm,
    gemm_q4_1: Gemm,
    gemm_q5_0: Gemm,
    gemm_q5_1: Gemm,
    gemm_q4_k: Gemm,
    gemm_q5_k: Gemm,
    gemm_q6_k: Gemm,
    gemm_tq2_0: Gemm,
    gemm_i2_s: Gemm,
    quantize: unsafe fn(&[f32], &mut [Block], usize),
    quantize_row: unsafe fn(&[f32], &mut [Block], usize),
    rms_norm: unsafe fn(&mut [f32], &[f32], f32),
    silu_mul: unsafe fn(&mut [f32], &[f32]),
    relu2_mul: unsafe fn(&mut [f32], &[f32]),
    rope: unsafe fn(&mut [f32], &[f32], &[f32], bool),
    softmax_stats: unsafe fn(&[f32]) -> (f32, f32),
    attend: Attend,
    attend_merge: unsafe fn(&mut SoftmaxState, &mut [f32], SoftmaxState, &[f32]),
    attend_end: unsafe fn(SoftmaxState, &[f32], &mut [f32]),
    f32_from_f16: unsafe fn(&[u16], &mut [f32]),
    f16_from_f32: unsafe fn(&[f32], &mut [u16]),
    keys_from_i8: unsafe fn(&[i8], &[u16], &mut [f32]),
    values_from_i8: unsafe fn(&[i8], &[u16], usize, &mut [f32]),
    add_rotated: AddRotated,
}

/// The tables that run on this machine, best first.
pub fn available() -> impl Iterator<Item = &'static Kernels> {
    ALL.iter().copied().filter(|kernels| (kernels.available)())
}

/// The table of this name, or the best one.
pub fn select(name: Option<&str>) -> Result<&'static Kernels> {
    let Some(name) = name else { return Ok(available().next().unwrap_or(&scalar::SCALAR)) };
    if let Some(kernels) = available().find(|kernels| kernels.name == name) {
        return Ok(kernels);
    }
    let names: Vec<_> = available().map(|kernels| kernels.name).collect();
    Err(Error::argument(format!("kernel table `{name}` is not available here; these are: {}", names.join(", "))))
}

/// The safe face of a table: lengths are checked once here for all instruction sets.
impl Kernels {
    /// `{arch}-{isa}` or `scalar`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// `out[t][r] = Σ_k w[r][k] · x[t][k]` for the 16 rows r of a tile and at most 64 activation rows t.
    ///
    /// `format` is a tiled format (`tile::tiled_format`); `tile`: all of one tile; `out`: (rows of x, 16).
    pub fn gemm(&self, format: Format, tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
        assert_eq!(tile.len(), tile::tile_bytes(format, x.columns));
        assert_eq!(x.columns % rows::BLOCK, 0);
        assert_eq!(x.columns % format.block_len(), 0);
        let count = x.count();
        assert!(count <= GEMM_ROWS_MAX && out.len() == count * tile::ROWS);
        assert!(x.blocks.len() == count * x.columns / rows::BLOCK && x.negated_sums.len() == count);
        let gemm = match format {
            Format::F32 => self.gemm_f32,
            Format::F16 => self.gemm_f16,
            Format::BF16 => self.gemm_bf16,
            Format::Q8_0 => self.gemm_q8_0,
            Format::Q4_0 => self.gemm_q4_0,
            Format::Q4_1 => self.gemm_q4_1,
            Format::Q5_0 => self.gemm_q5_0,
            Format::Q5_1 => self.gemm_q5_1,
            Format::Q4_K => self.gemm_q4_k,
            Format::Q5_K => self.gemm_q5_k,
            Format::Q6_K => self.gemm_q6_k,
            Format::TQ2_0 => self.gemm_tq2_0,
            Format::I2_S => self.gemm_i2_s,
            Format::Q2_K | Format::Q3_K | Format::TQ1_0 => unreachable!("{} has no tiles", format.name()),
        };
        // SAFETY: a `Kernels` reaches callers only through `available`, which checked the CPU; lengths checked above.
        unsafe { gemm(tile, x, out) }
    }

    /// `lanes::quantize`.
    pub fn quantize(&self, x: &[f32], out: &mut [Block], stride: usize) {
        assert!(x.len() % rows::BLOCK == 0 && x.len() / rows::BLOCK <= out.len().div_ceil(stride));
        // SAFETY: as in `gemm`.
        unsafe { (self.quantize)(x, out, stride) }
    }

    /// `lanes::quantize_row`.
    pub fn quantize_row(&self, x: &[f32], out: &mut [Block], stride: usize) {
        assert!(x.len() % rows::BLOCK == 0 && x.len() / rows::BLOCK <= out.len().div_ceil(stride));
        // SAFETY: as in `gemm`.
        unsafe { (self.quantize_row)(x, out, stride) }
    }

    /// `lanes::rms_norm`.
    pub fn rms_norm(&self, x: &mut [f32], weight: &[f32], epsilon: f32) {
        assert!(x.len() == weight.len() && x.len() % 16 == 0);
        // SAFETY: as in `gemm`.
        unsafe { (self.rms_norm)(x, weight, epsilon) }
    }

    /// `lanes::silu_mul`.
    pub fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        // SAFETY: as in `gemm`.
        unsafe { (self.silu_mul)(gate, up) }
    }

    /// `lanes::relu2_mul`.
    pub fn relu2_mul(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        // SAFETY: as in `gemm`.
        unsafe { (self.relu2_mul)(gate, up) }
    }

    /// `lanes::rope` over the first `2 * cos.len()` values of a head.
    pub fn rope(&self, head: &mut [f32], cos: &[f32], sin: &[f32], adjacent: bool) {
        assert!(cos.len() == sin.len() && 2 * cos.len() <= head.len());
        // SAFETY: as in `gemm`.
        unsafe { (self.rope)(&mut head[..2 * cos.len()], cos, sin, adjacent) }
    }

    /// `lanes::softmax_stats`.
    pub fn softmax_stats(&self, x: &[f32]) -> (f32, f32) {
        // SAFETY: as in `gemm`.
        unsafe { (self.softmax_stats)(x) }
    }

    /// `lanes::attend`.
    pub fn attend(
        &self,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        scale: f32,
        states: &mut [SoftmaxState],
        accumulators: &mut [f32],
    ) {
        assert!(!states.is_empty() && q.len() % states.len() == 0 && q.len() == accumulators.len());
        let head_dim = q.len() / states.len();
        assert!(head_dim % 16 == 0 && head_dim > 0);
        assert!(k.len() == head_dim * lanes::ATTENTION_TILE && v.len() % head_dim == 0 && v.len() <= k.len());
        // SAFETY: as in `gemm`.
        unsafe { (self.attend)(q, k, v, scale, states, accumulators) }
    }

    /// `lanes::attend_merge`.
    pub fn attend_merge(
        &self,
        state: &mut SoftmaxState,
        accumulator: &mut [f32],
        segment: SoftmaxState,
        segment_accumulator: &[f32],
    ) {
        assert_eq!(accumulator.len(), segment_accumulator.len());
        // SAFETY: as in `gemm`.
        unsafe { (self.attend_merge)(state, accumulator, segment, segment_accumulator) }
    }

    /// `lanes::attend_end`.
    pub fn attend_end(&self, state: SoftmaxState, accumulator: &[f32], out: &mut [f32]) {
        assert_eq!(accumulator.len(), out.len());
        // SAFETY: as in `gemm`.
        unsafe { (self.attend_end)(state, accumulator, out) }
    }

    /// Converts f16 bits to f32.
    pub fn f32_from_f16(&self, x: &[u16], out: &mut [f32]) {
        assert_eq!(x.len(), out.len());
        // SAFETY: as in `gemm`.
        unsafe { (self.f32_from_f16)(x, out) }
    }

    /// Converts f32 to f16 bits, to nearest, half to even.
    pub fn f16_from_f32(&self, x: &[f32], out: &mut [u16]) {
        assert_eq!(x.len(), out.len());
        // SAFETY: as in `gemm`.
        unsafe { (self.f16_from_f32)(x, out) }
    }

    /// `lanes::keys_from_i8`.
    pub fn keys_from_i8(&self, quants: &[i8], scales: &[u16], out: &mut [f32]) {
        let head_dim = quants.len() / lanes::ATTENTION_TILE;
        assert!(quants.len() % lanes::ATTENTION_TILE == 0 && quants.len() == out.len());
        assert_eq!(scales.len(), head_dim.div_ceil(lanes::KV_BLOCK) * lanes::ATTENTION_TILE);
        // SAFETY: as in `gemm`.
        unsafe { (self.keys_from_i8)(quants, scales, out) }
    }

    /// `lanes::values_from_i8`.
    pub fn values_from_i8(&self, quants: &[i8], scales: &[u16], head_dim: usize, out: &mut [f32]) {
        assert!(head_dim > 0 && head_dim % 16 == 0 && quants.len() % head_dim == 0 && quants.len() == out.len());
        assert_eq!(scales.len(), quants.len() / head_dim * head_dim.div_ceil(lanes::KV_BLOCK));
        // SAFETY: as in `gemm`.
        unsafe { (self.values_from_i8)(quants, scales, head_dim, out) }
    }

    /// `lanes::add_rotated`.
    pub fn add_rotated(&self, head: &[f32], cos: &[f32], sin: &[f32], adjacent: bool, keys: &mut [f32]) {
        assert_eq!(keys.len(), head.len() * lanes::ATTENTION_TILE);
        assert!(cos.len() % lanes::ATTENTION_TILE == 0 && cos.len() == sin.len() && 2 * cos.len() <= keys.len());
        // SAFETY: as in `gemm`.
        unsafe { (self.add_rotated)(head, cos, sin, adjacent, keys) }
    }
}

#[cfg(test)]
mod tests {
    use super::rows::{Quantization, RowsBuffer};
    use super::*;

    /// What to fill bytes with: random data misses saturation and sign corners.
    pub(super) const FILLS: [fn(u64) -> u8; 4] =
        [|r| (r >> 40) as u8, |_| 0x80, |_| 0x7F, |r| if r & 1 << 40 == 0 { 0x80 } else { 0xFF }];

    pub(super) fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    /// A tile with codes from `fill` and sane scales, so that sums are finite.
    pub(super) fn tile_of(format: Format, columns: usize, fill: fn(u64) -> u8, state: &mut u64) -> Vec<u8> {
        let blocks = columns / format.block_len();
        let mut half = || half::f16::from_f32((random(state) >> 40) as f32 / 1e7 - 0.5).to_le_bytes();
        let rows: Vec<u8> = (0..tile::ROWS)
            .flat_map(|_| {
                let mut row = Vec::new();
                for _ in 0..blocks {
                    let at = row.len();
                    let mut seed = u64::from_le_bytes([half()[0], 1, 2, 3, 4, 5, half()[1], 7]);
                    row.extend((0..format.block_bytes()).map(|_| fill(random(&mut seed))));
                    let scales: &[usize] = match format {
                        Format::F32 => {
                            let value = (random(&mut seed) >> 40) as f32 / 1e7;
                            row[at..].copy_from_slice(&value.to_le_bytes());
                            &[]
                        }
                        Format::BF16 => {
                            let value = half::bf16::from_f32((random(&mut seed) >> 40) as f32 / 1e7 - 0.8);
                            row[at..].copy_from_slice(&value.to_le_bytes());
                            &[]
                        }
                        Format::Q6_K => &[208],
                        Format::TQ2_0 => &[64],
                        Format::I2_S => &[],
                        Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
                        _ => &[0],
                    };
                    if format.is_ternary() {
                        // There is no code 3.
                        row[at..].iter_mut().for_each(|byte| *byte &= !((*byte & *byte << 1) & 0xAA));
                    }
                    for &offset in scales {
                        row[at + offset..][..2].copy_from_slice(&half());
                    }
                }
                row
            })
            .collect();
        let mut out = vec![0; tile::tile_bytes(format, columns)];
        tile::interleave(format, &rows, rows.len() / tile::ROWS, &mut out);
        out
    }

    /// Quantized as these weights take them.
    pub(super) fn quantization(format: Format) -> Quantization {
        if format.is_ternary() { Quantization::Row } else { Quantization::Blocks }
    }

    fn rows_of(format: Format, count: usize, columns: usize, extreme: bool, state: &mut u64) -> RowsBuffer {
        let mut buffer = RowsBuffer::new(count, columns).expect("memory");
        let shards = buffer.shards(count);
        for index in 0..shards.panels() {
            // SAFETY: each panel is taken once.
            let mut panel = unsafe { shards.panel(index) };
            for value in &mut *panel.values {
                let r = random(state);
                *value = if extreme { if r & 1 << 40 == 0 { 3.0 } else { -3.0 } } else { (r >> 40) as f32 / 1e6 - 8.0 };
            }
            panel.fill(&scalar::SCALAR, quantization(format), |_, _| ());
        }
        buffer
    }

    pub(super) const TILED: [Format; 13] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::Q8_0,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
        Format::TQ2_0,
        Format::I2_S,
    ];

    /// The definition against plain arithmetic on dequantized weights, in f64.
    #[test]
    fn gemm_is_the_product_of_dequantized_weights_and_activations() {
        let mut state = 1;
        for format in TILED {
            let columns = 512;
            let tile = tile_of(format, columns, FILLS[0], &mut state);
            let x = rows_of(format, 3, columns, false, &mut state);
            let mut found = vec![0.0; 3 * tile::ROWS];
            scalar::SCALAR.gemm(format, &tile, x.rows(3), &mut found);
            let floats = format.block_len() == 1;
            for row in 0..tile::ROWS {
                let mut bytes = vec![0; columns / format.block_len() * format.block_bytes()];
                let (size, whole) = (format.block_bytes(), format.block_bytes() * tile::ROWS);
                for (block, blocks) in bytes.chunks_exact_mut(size).zip(tile.chunks_exact(whole)) {
                    tile::block_of_row(format, blocks, row, block);
                }
                let mut weights = vec![0.0; columns];
                format.dequantize(&bytes, &mut weights);
                for t in 0..3 {
                    let r = x.rows(3);
                    let value = |k: usize| match floats {
                        true => r.values[t * columns + k] as f64,
                        false => {
                            let block = r.block(t, k / 32);
                            block.scale as f64 * block.quants[k % 32] as f64
                        }
                    };
                    let exact: f64 = (0..columns).map(|k| weights[k] as f64 * value(k)).sum();
                    let size: f64 = (0..columns).map(|k| (weights[k] as f64 * value(k)).abs()).sum();
                    let found = found[t * tile::ROWS + row] as f64;
                    assert!((found - exact).abs() <= 1e-5 * size, "{} row {row}: {found} for {exact}", format.name());
                }
            }
        }
    }

    #[test]
    fn every_table_gives_the_bits_of_scalar_for_gemm() {
        let mut state = 7;
        for kernels in available() {
            for format in TILED {
                // The widest are more than a first cache holds, for which a GEMV may have a way of its own.
                let counts = &[1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 64][..];
                for (columns, counts) in [(256, counts), (768, &[1, 6]), (6912, &[1])] {
                    for (f, fill) in FILLS.into_iter().enumerate() {
                        for extreme in [false, true] {
                            let tile = tile_of(format, columns, fill, &mut state);
                            for &count in counts {
                                let x = rows_of(format, count, columns, extreme, &mut state);
                                let mut expected = vec![0.0; count * tile::ROWS];
                                let mut found = vec![1.0; count * tile::ROWS];
                                scalar::SCALAR.gemm(format, &tile, x.rows(count), &mut expected);
                                kernels.gemm(format, &tile, x.rows(count), &mut found);
                                let same = expected.iter().zip(&found).all(|(a, b)| a.to_bits() == b.to_bits());
                                let name = format.name();
                                assert!(same, "{} {name} fill {f} {count} rows: {found:?} {expected:?}", kernels.name);
                                assert!(format == Format::F16 || expected.iter().all(|sum| sum.is_finite()));
                            }
                        }
                    }
                }
            }
        }
    }

    /// All codes 2 and all activations as large as they get, of one sign: what sums of 16 bits must have room for.
    #[test]
    fn ternary_sums_have_room() {
        for kernels in available() {
            for format in [Format::TQ2_0, Format::I2_S] {
                for (columns, value) in [(256, 1.0), (1024, 1.0), (1024, -1.0)] {
                    let row = [vec![0xAA; 64], half::f16::ONE.to_le_bytes().to_vec()].concat();
                    let row = if format == Format::TQ2_0 { row.repeat(columns / 256) } else { vec![0xAA; columns / 4] };
                    let mut tile = vec![0; tile::tile_bytes(format, columns)];
                    tile::interleave(format, &row.repeat(tile::ROWS), row.len(), &mut tile);
                    for count in [1, 4, 16] {
                        let mut x = RowsBuffer::new(count, columns).expect("memory");
                        let shards = x.shards(count);
                        // SAFETY: the panel is taken once.
                        let mut panel = unsafe { shards.panel(0) };
                        panel.fill(&scalar::SCALAR, Quantization::Row, |_, values| values.fill(value));
                        let mut out = vec![0.0; count * tile::ROWS];
                        kernels.gemm(format, &tile, x.rows(count), &mut out);
                        assert_eq!(out, vec![columns as f32 * value; out.len()], "{} {}", kernels.name, format.name());
                    }
                }
            }
        }
    }

    #[test]
    fn every_table_gives_the_bits_of_scalar_for_the_rest() {
        let mut state = 3;
        let mut values =
            |n: usize| -> Vec<f32> { (0..n).map(|_| (random(&mut state) >> 40) as f32 / 1e6 - 8.0).collect() };
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        for kernels in available() {
            for n in [32, 64, 96, 576] {
                let (x, w) = (values(n), values(n));
                let run = |kernels: &Kernels| {
                    let mut out = Vec::new();
                    let mut y = x.clone();
                    kernels.rms_norm(&mut y, &w, 1e-5);
                    out.extend(bits(&y));
                    kernels.silu_mul(&mut y, &w);
                    out.extend(bits(&y));
                    kernels.relu2_mul(&mut y, &w);
                    out.extend(bits(&y));
                    for adjacent in [false, true] {
                        kernels.rope(&mut y, &w[..n / 4], &x[..n / 4], adjacent);
                        out.extend(bits(&y));
                    }
                    let (max, sum) = kernels.softmax_stats(&x[..n - 5]);
                    out.extend([max.to_bits(), sum.to_bits()]);
                    let mut halves = vec![0; n];
                    kernels.f16_from_f32(&x, &mut halves);
                    out.extend(halves.iter().map(|&half| half as u32));
                    kernels.f32_from_f16(&halves, &mut y);
                    out.extend(bits(&y));
                    let mut rows = RowsBuffer::new(1, n).expect("memory");
                    for how in [Quantization::Blocks, Quantization::Row, Quantization::RoundedRow] {
                        let shards = rows.shards(1);
                        // SAFETY: the panel is taken once.
                        unsafe { shards.panel(0) }.fill(kernels, how, |_, values| values.copy_from_slice(&x));
                        for block in rows.rows(1).blocks {
                            out.extend(block.quants.iter().map(|&quant| quant as u32));
                            out.extend(block.sums.iter().map(|&sum| sum as u32));
                            out.extend(bits(&[block.scale, block.scaled_sum]));
                            out.push(block.negated_sum as u32);
                        }
                        out.extend(rows.rows(1).negated_sums.iter().map(|&sum| sum as u32));
                        out.extend(bits(rows.rows(1).values));
                    }
                    out
                };
                assert_eq!(run(kernels), run(&scalar::SCALAR), "{} {n}", kernels.name);
            }
            for (queries, head_dim, positions) in [(1, 16, 1), (3, 64, 31), (4, 80, 9), (7, 128, 32), (6, 192, 17)] {
                let (q, k) = (values(queries * head_dim), values(head_dim * 32));
                let v = values(head_dim * positions);
                let run = |kernels: &Kernels| {
                    let (mut state, mut out) = (SoftmaxState::EMPTY, vec![0.0; head_dim]);
                    let (mut states, mut sums) = (vec![SoftmaxState::EMPTY; queries], vec![0.0; q.len()]);
                    for _ in 0..2 {
                        kernels.attend(&q, &k, &v, 0.01, &mut states, &mut sums);
                    }
                    let mut found = bits(&sums);
                    for (segment, sums) in states.iter().zip(sums.chunks_exact(head_dim)) {
                        kernels.attend_merge(&mut state, &mut out, *segment, sums);
                        found.extend(bits(&out));
                    }
                    kernels.attend_end(state, &out, &mut sums[..head_dim]);
                    found.extend(bits(&sums[..head_dim]));
                    found
                };
                assert_eq!(run(kernels), run(&scalar::SCALAR), "{} {queries} {head_dim} {positions}", kernels.name);
            }
            for (head_dim, positions) in [(16usize, 1), (80, 7), (128, 32)] {
                let blocks = head_dim.div_ceil(lanes::KV_BLOCK);
                let quants: Vec<i8> = (0..head_dim * 32).map(|i| ((i * 2_654_435_761) >> 9) as i8).collect();
                let (head, angles) = (values(head_dim), values(head_dim * 16));
                let scales: Vec<u16> = values(blocks * 32).iter().map(|x| (x.to_bits() >> 16) as u16).collect();
                let run = |kernels: &Kernels| {
                    let mut out = vec![0.0; head_dim * (32 + positions)];
                    let (keys, values) = out.split_at_mut(head_dim * 32);
                    kernels.keys_from_i8(&quants, &scales, keys);
                    let (quants, scales) = (&quants[..values.len()], &scales[..positions * blocks]);
                    kernels.values_from_i8(quants, scales, head_dim, values);
                    for adjacent in [false, true] {
                        kernels.add_rotated(&head, &angles[..head_dim * 8], &angles[head_dim * 8..], adjacent, keys);
                    }
                    bits(&out)
                };
                assert_eq!(run(kernels), run(&scalar::SCALAR), "{} {head_dim} {positions}", kernels.name);
            }
        }
    }
}
