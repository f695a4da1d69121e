//! x86-64 kernel tables.

pub mod avx2;
pub mod avx512;
pub mod avx_vnni;
mod gemm256;
mod ternary256;
mod ternary512;

/// Defines the functions of `lanes` that are compiled for an instruction set.
macro_rules! elementwise {
    ($features:literal) => {
        #[target_feature(enable = $features)]
        fn quantize(x: &[f32], out: &mut [Block], stride: usize) {
            lanes::quantize(x, out, stride);
        }
        #[target_feature(enable = $features)]
        fn quantize_row(x: &[f32], out: &mut [Block], stride: usize) {
            lanes::quantize_row(x, out, stride);
        }
        #[target_feature(enable = $features)]
        fn rms_norm(x: &mut [f32], weight: &[f32], epsilon: f32) {
            lanes::rms_norm(x, weight, epsilon);
        }
        #[target_feature(enable = $features)]
        fn silu_mul(gate: &mut [f32], up: &[f32]) {
            lanes::silu_mul(gate, up);
        }
        #[target_feature(enable = $features)]
        fn relu2_mul(gate: &mut [f32], up: &[f32]) {
            lanes::relu2_mul(gate, up);
        }
        #[target_feature(enable = $features)]
        fn rope(head: &mut [f32], cos: &[f32], sin: &[f32], adjacent: bool) {
            lanes::rope(head, cos, sin, adjacent);
        }
        #[target_feature(enable = $features)]
        fn softmax_stats(x: &[f32]) -> (f32, f32) {
            lanes::softmax_stats(x)
        }
        #[target_feature(enable = $features)]
        fn attend_merge(state: &mut SoftmaxState, sums: &mut [f32], segment: SoftmaxState, segment_sums: &[f32]) {
            lanes::attend_merge(state, sums, segment, segment_sums);
        }
        #[target_feature(enable = $features)]
        fn attend_end(state: SoftmaxState, accumulator: &[f32], out: &mut [f32]) {
            lanes::attend_end(state, accumulator, out);
        }
        #[target_feature(enable = $features)]
        fn keys_from_i8(quants: &[i8], scales: &[u16], out: &mut [f32]) {
            lanes::keys_from_i8(quants, scales, out);
        }
        #[target_feature(enable = $features)]
        fn values_from_i8(quants: &[i8], scales: &[u16], head_dim: usize, out: &mut [f32]) {
            lanes::values_from_i8(quants, scales, head_dim, out);
        }
        #[target_feature(enable = $features)]
        fn add_rotated(head: &[f32], cos: &[f32], sin: &[f32], adjacent: bool, keys: &mut [f32]) {
            lanes::add_rotated(head, cos, sin, adjacent, keys);
        }
    };
}
use elementwise;
