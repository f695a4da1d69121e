//! Elementwise maths and attention, defined once and compiled for each instruction set.
//!
//! Every function is plain Rust over a fixed number of lanes, combined by a fixed tree: the compiler may use vectors of
//! any width but may not change an operation's order (Rust never reassociates floats), so the bits are the same on
//! every machine. A kernel table wraps these in functions with its own target features, into which they are inlined:
//! hence loops over lanes, since a closure handed to `array::from_fn` would not be. `mul_add` is one rounding
//! everywhere; `exp` is a polynomial of ours, since libm differs between machines.

use super::rows::{BLOCK, Block, SUM};
use crate::tensor::Plain;

/// Lanes of a sum.
const LANES: usize = 16;

/// Combines the lanes by halves: 16 → 8 → 4 → 2 → 1.
#[inline(always)]
fn fold_lanes<T: Copy>(mut lanes: [T; LANES], f: impl Fn(T, T) -> T) -> T {
    for i in 0..8 {
        lanes[i] = f(lanes[i], lanes[i + 8]);
    }
    for i in 0..4 {
        lanes[i] = f(lanes[i], lanes[i + 4]);
    }
    f(f(lanes[0], lanes[2]), f(lanes[1], lanes[3]))
}

/// The sum of the lanes, folded by halves. On x86-64 written in vectors: left to itself the compiler adds them one by one.
#[inline(always)]
fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        // SAFETY: 16 floats are four vectors of four, and SSE is part of x86-64.
        unsafe {
            let [a, b, c, d]: [__m128; 4] = std::mem::transmute(lanes);
            let four = _mm_add_ps(_mm_add_ps(a, c), _mm_add_ps(b, d));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    fold_lanes(lanes, |a, b| a + b)
}

/// Σ x·y over a multiple of 16 values: lane l takes the values l, l+16, l+32, …
#[inline(always)]
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    for (x, y) in x.as_chunks::<LANES>().0.iter().zip(y.as_chunks::<LANES>().0) {
        for l in 0..LANES {
            lanes[l] = x[l].mul_add(y[l], lanes[l]);
        }
    }
    sum_lanes(lanes)
}

/// e^x to about 1 ULP for x ≤ 88; 0 below -87.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2, then a polynomial for e^r (coefficients: Taylor, degree 7, whose error at
/// ln 2 / 2 is 1e-8 relative) and n added to the exponent.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4; // 355 / 512: n · LN2_HIGH is exact for |n| < 2^15.
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer, half to even.
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let p = r.mul_add(1.0 / 5040.0, 1.0 / 720.0);
    let p = p.mul_add(r, 1.0 / 120.0);
    let p = p.mul_add(r, 1.0 / 24.0);
    let p = p.mul_add(r, 1.0 / 6.0);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r, 1.0);
    let p = p.mul_add(r, 1.0);
    // The low bits of `shifted` are n; the shift drops the rest. Nonsense outside the range, which is selected away.
    let scaled = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < -87.0 { 0.0 } else { scaled }
}

/// Quantizes a row to int8 in blocks of 32: scale = max|x| / 127, quants rounded half to even. The blocks go to every
/// `stride`-th place of `out`.
///
/// A value that is not finite makes its block's scale NaN, so that it reaches the logits, where it is an error.
#[inline(always)]
pub fn quantize(x: &[f32], out: &mut [Block], stride: usize) {
    for (x, block) in x.as_chunks::<BLOCK>().0.iter().zip(out.iter_mut().step_by(stride)) {
        let max = max_magnitude(std::slice::from_ref(x));
        // Below this the inverse would overflow; such a block is zero for every purpose.
        let (scale, inverse) = if max <= 1e-30 { (0.0, 0.0) } else { (max / 127.0, 127.0 / max) };
        quantize_block(x, scale, inverse, block);
    }
}

/// As `quantize`, with one scale for the whole row, as BitNet b1.58 defines it: max|x| / 127, where the largest magnitude
/// counts as 1e-5 at least (`ActQuant` in `transformers/integrations/bitnet.py`).
#[inline(always)]
pub fn quantize_row(x: &[f32], out: &mut [Block], stride: usize) {
    let chunks = x.as_chunks::<BLOCK>().0;
    let max = max_magnitude(chunks);
    let max = if max < 1e-5 { 1e-5 } else { max };
    for (x, block) in chunks.iter().zip(out.iter_mut().step_by(stride)) {
        quantize_block(x, max / 127.0, 127.0 / max, block);
    }
}

/// The largest |x|; NaN when one is not finite.
#[inline(always)]
fn max_magnitude(x: &[[f32; BLOCK]]) -> f32 {
    const INFINITE: u32 = 0x7F80_0000;
    // Bits of magnitudes are in the order of magnitudes, infinities and NaN above all others.
    let magnitude = |x: f32| x.to_bits() & 0x7FFF_FFFF;
    let mut lanes = [0u32; SUM];
    for x in x {
        let halves = x.as_chunks::<SUM>().0;
        for l in 0..SUM {
            lanes[l] = lanes[l].max(magnitude(halves[0][l]).max(magnitude(halves[1][l])));
        }
    }
    let max = fold_lanes(lanes, u32::max);
    if max < INFINITE { f32::from_bits(max) } else { f32::NAN }
}

/// `quant = x * inverse`, rounded half to even.
#[inline(always)]
fn quantize_block(x: &[f32; BLOCK], scale: f32, inverse: f32, block: &mut Block) {
    const ROUND: f32 = 12_582_912.0; // As in `exp`: its low bits are then the integer.
    let halves = x.as_chunks::<SUM>().0;
    for h in 0..2 {
        let mut quants = [0i32; SUM];
        for l in 0..SUM {
            quants[l] = (halves[h][l] * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32;
            block.quants[h * SUM + l] = quants[l] as i8;
        }
        block.sums[h] = fold_lanes(quants, i32::wrapping_add) as i16;
    }
    let sum = block.sums[0] as i32 + block.sums[1] as i32;
    block.negated_sum = -sum;
    block.scale = scale;
    block.scaled_sum = scale * sum as f32;
}

/// RMSNorm in place: `x / sqrt(mean(x²) + epsilon) * weight`, over a multiple of 16 values.
#[inline(always)]
pub fn rms_norm(x: &mut [f32], weight: &[f32], epsilon: f32) {
    let scale = 1.0 / (dot(x, x) / x.len() as f32 + epsilon).sqrt();
    for (x, weight) in x.iter_mut().zip(weight) {
        *x = *x * scale * weight;
    }
}

/// SwiGLU: `out = gate / (1 + e^-gate) * up`, where `out` holds the gate before.
#[inline(always)]
pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        // Past 87 the exponential leaves its range, and the gate is itself to the last bit either way.
        let e = exp(if *gate < -87.0 { 87.0 } else { -*gate });
        *gate = *gate / (1.0 + e) * up;
    }
}

/// Squared ReLU with a gate: `out = max(gate, 0)² * up`, where `out` holds the gate before (So et al., Primer, 2021).
#[inline(always)]
pub fn relu2_mul(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        // NaN stays, so that it reaches the logits.
        let positive = if *gate < 0.0 { 0.0 } else { *gate };
        *gate = positive * positive * up;
    }
}

/// Rotates pairs of a head by the angles whose cosines and sines are given, one per pair.
///
/// `adjacent`: pair i is (2i, 2i+1), as GGUF's `llama` stores heads; else (i, i + n/2) of the n rotated values.
#[inline(always)]
pub fn rope(head: &mut [f32], cos: &[f32], sin: &[f32], adjacent: bool) {
    let rotate = |a: f32, b: f32, c: f32, s: f32| (a.mul_add(c, -(b * s)), a.mul_add(s, b * c));
    if adjacent {
        for ((pair, c), s) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
            (pair[0], pair[1]) = rotate(pair[0], pair[1], *c, *s);
        }
    } else {
        let (first, second) = head.split_at_mut(cos.len());
        for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = rotate(*a, *b, *c, *s);
        }
    }
}

/// The largest value and Σ e^(x - largest): what a log-probability needs. Over 16 lanes, the rest one by one.
#[inline(always)]
pub fn softmax_stats(x: &[f32]) -> (f32, f32) {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes_max = [f32::NEG_INFINITY; LANES];
    for x in chunks {
        for l in 0..LANES {
            lanes_max[l] = if x[l] > lanes_max[l] { x[l] } else { lanes_max[l] };
        }
    }
    let max = lanes_max.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    let mut lanes = [0.0; LANES];
    for x in chunks {
        for l in 0..LANES {
            lanes[l] += exp(x[l] - max);
        }
    }
    (max, rest.iter().fold(sum_lanes(lanes), |sum, x| sum + exp(x - max)))
}

/// Positions that attention takes at a time. Tiles start at multiples of it whatever the query, so a sequence has the
/// same bits however it was cut into prefill chunks. Keys are stored in tiles of this many positions, transposed:
/// (head_dim, 32), so that a vector lane is a position and no score ends in a horizontal sum.
pub const ATTENTION_TILE: usize = 32;

/// Positions whose softmax runs on its own before it is merged with that of the positions before: parts of a long
/// sequence can then be attended to at once, with the same bits as one after the other.
pub const ATTENTION_SEGMENT: usize = 8 * ATTENTION_TILE;

/// The running softmax of one query.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct SoftmaxState {
    max: f32,
    sum: f32,
}

// SAFETY: two floats, no padding.
unsafe impl Plain for SoftmaxState {}

impl SoftmaxState {
    /// Nothing seen yet.
    pub const EMPTY: SoftmaxState = SoftmaxState { max: f32::NEG_INFINITY, sum: 0.0 };
}

/// Adds up to one tile of positions to the running softmax of some queries (Milakov & Gimelshein, 2018; FlashAttention).
///
/// `q`, `accumulators`: (queries, head_dim, a multiple of 16); `keys`: (head_dim, 32), whatever past the last position;
/// `values`: (positions ≤ 32, head_dim); `states`: (queries); all f32. A score is two chains of fused multiply-adds, over
/// even and odd dimensions.
#[inline(always)]
pub fn attend(
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    scale: f32,
    states: &mut [SoftmaxState],
    accumulators: &mut [f32],
) {
    let head_dim = q.len() / states.len();
    let positions = values.len() / head_dim;
    let queries = q.chunks_exact(head_dim).zip(states).zip(accumulators.chunks_exact_mut(head_dim));
    for ((q, state), accumulator) in queries {
        let mut chains = [[0.0f32; ATTENTION_TILE]; 2];
        for (q, keys) in q.as_chunks::<2>().0.iter().zip(keys.as_chunks::<{ 2 * ATTENTION_TILE }>().0) {
            for c in 0..2 {
                for j in 0..ATTENTION_TILE {
                    chains[c][j] = q[c].mul_add(keys[c * ATTENTION_TILE + j], chains[c][j]);
                }
            }
        }
        let mut weights = [[0.0; ATTENTION_TILE]];
        for j in 0..ATTENTION_TILE {
            weights[0][j] = (chains[0][j] + chains[1][j]) * scale;
        }
        let [correction] = softmax_tile(&mut weights, positions, std::array::from_mut(state));
        for value in &mut *accumulator {
            *value *= correction;
        }
        for (weight, values) in weights[0].iter().zip(values.chunks_exact(head_dim)) {
            for (sum, value) in accumulator.iter_mut().zip(values) {
                *sum = weight.mul_add(*value, *sum);
            }
        }
    }
}

/// Turns the scores of one tile of G queries into weights, 0 past the last position, and adds them to their running
/// softmax; returns what the sums so far are to be multiplied with. Step by step for all queries, since the steps of one
/// wait for each other.
#[inline(always)]
pub fn softmax_tile<const G: usize>(
    scores: &mut [[f32; ATTENTION_TILE]; G],
    positions: usize,
    states: &mut [SoftmaxState; G],
) -> [f32; G] {
    // Integers in the order of the floats, of which the compiler makes vectors; a NaN is above all or below all.
    let key = |x: f32| x.to_bits() as i32 ^ (x.to_bits() as i32 >> 31) & i32::MAX;
    let mut maxima = [0.0; G];
    for g in 0..G {
        scores[g][positions..].fill(f32::NEG_INFINITY);
        let max = scores[g].iter().fold(key(states[g].max), |max, &score| max.max(key(score)));
        maxima[g] = f32::from_bits((max ^ (max >> 31) & i32::MAX) as u32);
    }
    for g in 0..G {
        for score in &mut scores[g] {
            *score = exp(*score - maxima[g]);
        }
    }
    let mut corrections = [0.0; G];
    for g in 0..G {
        let mut halves = [0.0; LANES];
        for l in 0..LANES {
            halves[l] = scores[g][l] + scores[g][l + LANES];
        }
        corrections[g] = exp(states[g].max - maxima[g]);
        states[g] = SoftmaxState { max: maxima[g], sum: states[g].sum.mul_add(corrections[g], sum_lanes(halves)) };
    }
    corrections
}

/// Adds the softmax of a later segment, begun from nothing, to that of the positions before it.
#[inline(always)]
pub fn attend_merge(
    state: &mut SoftmaxState,
    accumulator: &mut [f32],
    segment: SoftmaxState,
    segment_accumulator: &[f32],
) {
    let max = if segment.max > state.max { segment.max } else { state.max };
    let (before, after) = (exp(state.max - max), exp(segment.max - max));
    *state = SoftmaxState { max, sum: segment.sum.mul_add(after, state.sum * before) };
    for (sum, segment) in accumulator.iter_mut().zip(segment_accumulator) {
        *sum = segment.mul_add(after, *sum * before);
    }
}

/// Ends a running softmax: `out = accumulator / sum`.
#[inline(always)]
pub fn attend_end(state: SoftmaxState, accumulator: &[f32], out: &mut [f32]) {
    for (out, accumulator) in out.iter_mut().zip(accumulator) {
        *out = accumulator / state.sum;
    }
}

/// Values of a head that share a scale in an int8 KV cache. The last block of a head may be half as long.
pub const KV_BLOCK: usize = 32;

/// Multiplies a head with a matrix of ±1 whose rows are orthogonal (Hadamard's), and says by how much that makes a dot
/// product of two such heads larger: a power of two.
///
/// What is large in few dimensions it spreads over all of them (QuaRot, Ashkboos et al., 2024). Of a head that is no power
/// of two long, parts are multiplied.
pub fn hadamard(head: &mut [f32]) -> f32 {
    let len = 1 << head.len().trailing_zeros();
    for part in head.chunks_exact_mut(len) {
        let mut half = len / 2;
        while half > 0 {
            for pairs in part.chunks_exact_mut(2 * half) {
                let (a, b) = pairs.split_at_mut(half);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half /= 2;
        }
    }
    len as f32
}

/// Quantizes a head to int8 in blocks of 32: scale = max|x| / 127 as bf16, rounded up so that no quant leaves
/// -127..=127; quants rounded half to even.
///
/// A value that is not finite makes its block's scale NaN, so that it reaches the logits, where it is an error.
pub fn quantize_kv(x: &[f32], quants: &mut [i8], scales: &mut [u16]) {
    const ROUND: f32 = 12_582_912.0; // As in `quantize`.
    for ((x, quants), scale) in x.chunks(KV_BLOCK).zip(quants.chunks_mut(KV_BLOCK)).zip(scales) {
        let max = x.iter().fold(0.0f32, |max, x| if x.abs() > max { x.abs() } else { max });
        let finite = x.iter().all(|x| x.is_finite());
        // Below this the inverse would overflow; such a block is zero for every purpose.
        let rounded = if max > 1e-30 { ((max / 127.0).to_bits() + 0xFFFF) >> 16 } else { 0 };
        let inverse = if rounded > 0 { 1.0 / f32_from_bf16(rounded as u16) } else { 0.0 };
        for (quant, x) in quants.iter_mut().zip(x) {
            *quant = (x * inverse + ROUND).to_bits() as i8;
        }
        *scale = if finite { rounded as u16 } else { 0x7FC0 };
    }
}

#[inline(always)]
fn f32_from_bf16(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// A tile of keys as f32. `quants`, `out`: (head_dim, 32 positions); `scales`: (head_dim / 32, rounded up, 32).
#[inline(always)]
pub fn keys_from_i8(quants: &[i8], scales: &[u16], out: &mut [f32]) {
    const BLOCK_LEN: usize = KV_BLOCK * ATTENTION_TILE;
    let blocks = quants.chunks(BLOCK_LEN).zip(out.chunks_mut(BLOCK_LEN));
    for ((quants, out), scales) in blocks.zip(scales.as_chunks::<ATTENTION_TILE>().0) {
        let mut factors = [0.0; ATTENTION_TILE];
        for j in 0..ATTENTION_TILE {
            factors[j] = f32_from_bf16(scales[j]);
        }
        let rows = quants.as_chunks::<ATTENTION_TILE>().0.iter().zip(out.as_chunks_mut::<ATTENTION_TILE>().0);
        for (quants, out) in rows {
            for j in 0..ATTENTION_TILE {
                out[j] = quants[j] as f32 * factors[j];
            }
        }
    }
}

/// Values as f32. `quants`, `out`: (positions, head_dim); `scales`: (positions, head_dim / 32, rounded up).
#[inline(always)]
pub fn values_from_i8(quants: &[i8], scales: &[u16], head_dim: usize, out: &mut [f32]) {
    const HALF: usize = KV_BLOCK / 2;
    let rows = quants.chunks_exact(head_dim).zip(scales.chunks_exact(head_dim.div_ceil(KV_BLOCK)));
    for ((quants, scales), out) in rows.zip(out.chunks_exact_mut(head_dim)) {
        let halves = quants.as_chunks::<HALF>().0.iter().zip(out.as_chunks_mut::<HALF>().0);
        for (i, (quants, out)) in halves.enumerate() {
            let scale = f32_from_bf16(scales[i / 2]);
            for l in 0..HALF {
                out[l] = quants[l] as f32 * scale;
            }
        }
    }
}

/// Adds to each key of a tile, (head_dim, 32), the same head rotated to that key's position. The cosines and sines of its
/// angles: (pairs, 32); pairs as in `rope`.
#[inline(always)]
pub fn add_rotated(head: &[f32], cos: &[f32], sin: &[f32], adjacent: bool, keys: &mut [f32]) {
    let rows = keys.as_chunks_mut::<ATTENTION_TILE>().0;
    let (cos, sin) = (cos.as_chunks::<ATTENTION_TILE>().0, sin.as_chunks::<ATTENTION_TILE>().0);
    let pairs = cos.len();
    for (i, (cos, sin)) in cos.iter().zip(sin).enumerate() {
        let (first, second) = if adjacent { (2 * i, 2 * i + 1) } else { (i, i + pairs) };
        let (a, b) = (head[first], head[second]);
        for j in 0..ATTENTION_TILE {
            rows[first][j] = a.mul_add(cos[j], (-b).mul_add(sin[j], rows[first][j]));
        }
        for j in 0..ATTENTION_TILE {
            rows[second][j] = a.mul_add(sin[j], b.mul_add(cos[j], rows[second][j]));
        }
    }
    for (row, value) in rows.iter_mut().zip(head).skip(2 * pairs) {
        for key in row {
            *key += value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number in -1..1 for each i.
    fn noise(i: usize) -> f32 {
        ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0
    }

    #[test]
    fn hadamard_keeps_dot_products_and_spreads_an_outlier() {
        for head_dim in [16, 64, 80, 96, 128] {
            let (mut a, mut b): (Vec<_>, Vec<_>) = (0..head_dim).map(|i| (noise(i), noise(i + 777))).unzip();
            b[3] = 1000.0;
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum::<f64>();
            let exact = dot(&a, &b);
            let factor = hadamard(&mut a);
            assert_eq!(hadamard(&mut b), factor);
            let found = dot(&a, &b) / factor as f64;
            assert!((found - exact).abs() <= 1e-4 * exact.abs(), "{head_dim}: {found} for {exact}");
            let part = 1 << head_dim.trailing_zeros();
            assert!(factor == part as f32 && b[..part].iter().all(|b| (b.abs() - 1000.0).abs() < part as f32));
        }
    }

    #[test]
    fn an_int8_head_is_within_half_a_step_of_the_head() {
        let head_dim: usize = 80;
        let blocks = head_dim.div_ceil(KV_BLOCK);
        for size in [1e-25f32, 1.0, 3e30] {
            let mut x: Vec<f32> = (0..head_dim).map(|i| noise(i) * size).collect();
            (x[5], x[40], x[70]) = (size, -4.0 * size, 0.0);
            let (mut quants, mut scales) = (vec![9; head_dim], vec![9; blocks]);
            quantize_kv(&x, &mut quants, &mut scales);
            assert!(quants[5] >= 126 && quants[40] <= -126, "{quants:?}");
            let (mut values, mut keys) = (vec![9.0; head_dim], vec![9.0; head_dim * ATTENTION_TILE]);
            values_from_i8(&quants, &scales, head_dim, &mut values);
            let lanes = |x: &[i8]| x.iter().flat_map(|&x| [x; ATTENTION_TILE]).collect::<Vec<_>>();
            let scale_lanes: Vec<u16> = scales.iter().flat_map(|&scale| [scale; ATTENTION_TILE]).collect();
            keys_from_i8(&lanes(&quants), &scale_lanes, &mut keys);
            for (i, x) in x.iter().enumerate() {
                let step = f32_from_bf16(scales[i / KV_BLOCK]);
                assert!((values[i] - x).abs() <= 0.5001 * step, "{i}: {} for {x}, step {step}", values[i]);
                assert_eq!(keys[i * ATTENTION_TILE + 17].to_bits(), values[i].to_bits(), "{i}");
            }
        }
    }

    #[test]
    fn a_value_that_is_not_finite_poisons_its_block_of_an_int8_head() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; 64];
            x[40] = bad;
            let (mut quants, mut scales, mut out) = ([0; 64], [0; 2], [0.0; 64]);
            quantize_kv(&x, &mut quants, &mut scales);
            values_from_i8(&quants, &scales, 64, &mut out);
            assert!(out[..32].iter().all(|x| (x - 1.0).abs() < 0.01), "{out:?}");
            assert!(out[32..].iter().all(|x| x.is_nan()), "{bad}: {out:?}");
        }
        let (mut quants, mut scales) = ([1; 32], [1; 1]);
        quantize_kv(&[1e-38; 32], &mut quants, &mut scales);
        assert_eq!((quants, scales), ([0; 32], [0; 1]));
    }

    #[test]
    fn exp_is_within_two_ulp_of_the_true_value() {
        let mut worst = 0.0f64;
        for i in 0..=2_000_000 {
            let x = -87.0 + 175.0 * (i as f32 / 2_000_000.0);
            if x > 88.0 {
                break;
            }
            let exact = (x as f64).exp();
            let error = (exp(x) as f64 - exact).abs() / (exact * f32::EPSILON as f64);
            assert!(error <= 2.0, "exp({x}) = {} is {error} ULP off {exact}", exp(x));
            worst = worst.max(error);
        }
        assert!(worst > 0.1, "an error this small means that the test measures nothing");
        assert_eq!((exp(0.0), exp(-88.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    }

    #[test]
    fn quantize_rounds_half_to_even_and_reaches_127() {
        let mut x = [0.0; 64];
        x[..6].copy_from_slice(&[127.0, -127.0, 0.5, 1.5, -2.5, 63.5]);
        x[40] = f32::NAN;
        let mut blocks = [Block { quants: [9; BLOCK], scale: 9.0, scaled_sum: 9.0, sums: [9; 2], negated_sum: 9 }; 2];
        quantize(&x, &mut blocks, 1);
        assert_eq!(blocks[0].quants[..7], [127, -127, 0, 2, -2, 64, 0]);
        assert_eq!((blocks[0].sums, blocks[0].negated_sum), ([64, 0], -64));
        assert_eq!((blocks[0].scale, blocks[0].scaled_sum), (1.0, 64.0));
        assert!(blocks[1].scale.is_nan() && blocks[1].scaled_sum.is_nan(), "a NaN must poison its block");
    }

    #[test]
    fn attention_equals_the_softmax_it_stands_for() {
        let (head_dim, positions) = (32, 75);
        let value = |i: usize| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0;
        let q: Vec<f32> = (0..head_dim).map(value).collect();
        let keys: Vec<f32> = (0..positions * head_dim).map(|i| value(i + 7)).collect();
        // As the cache has them: (tiles, head_dim, 32), with nonsense past the end.
        let mut stored = vec![f32::NAN; positions.div_ceil(ATTENTION_TILE) * ATTENTION_TILE * head_dim];
        for (i, key) in keys.iter().enumerate() {
            let (position, d) = (i / head_dim, i % head_dim);
            stored[(position / ATTENTION_TILE * head_dim + d) * ATTENTION_TILE + position % ATTENTION_TILE] = *key;
        }
        let values: Vec<f32> = (0..positions * head_dim).map(|i| value(i + 99_991)).collect();
        let (mut state, mut accumulator) = (SoftmaxState::EMPTY, vec![0.0; head_dim]);
        let tile = ATTENTION_TILE * head_dim;
        let tiles: Vec<_> = stored.chunks(tile).zip(values.chunks(tile)).collect();
        // Two segments, of two tiles and one.
        for tiles in tiles.chunks(2) {
            let (mut states, mut sums) = ([SoftmaxState::EMPTY], vec![0.0; head_dim]);
            for (keys, values) in tiles {
                attend(&q, keys, values, 0.3, &mut states, &mut sums);
            }
            attend_merge(&mut state, &mut accumulator, states[0], &sums);
        }
        let mut found = vec![0.0; head_dim];
        attend_end(state, &accumulator, &mut found);
        let score = |p: usize| (0..head_dim).map(|d| q[d] as f64 * keys[p * head_dim + d] as f64).sum::<f64>() * 0.3;
        let weights: Vec<f64> = (0..positions).map(|p| score(p).exp()).collect();
        let total: f64 = weights.iter().sum();
        for d in 0..head_dim {
            let exact: f64 = (0..positions).map(|p| weights[p] / total * values[p * head_dim + d] as f64).sum();
            assert!((found[d] as f64 - exact).abs() <= 1e-6, "{} against {exact} at {d}", found[d]);
        }
    }
}
