//! The NEON intrinsics that are used here, as functions that are safe everywhere, because every AArch64 has NEON, and
//! that are always inlined: `#[target_feature]` would forbid that, and what multiplies has to end up in functions that
//! have its features.

use std::arch::aarch64 as arch;
pub use std::arch::aarch64::{
    float32x4_t, int8x8_t, int8x16_t, int16x8_t, int32x4_t, int64x2_t, uint8x8_t, uint8x16_t, uint16x4_t, uint32x4_t,
};

macro_rules! intrinsics {
    ($($name:ident $(<$n:ident>)? ($($x:ident: $type:ty),*) -> $out:ty;)*) => {$(
        #[inline(always)]
        pub fn $name$(<const $n: i32>)?($($x: $type),*) -> $out {
            // SAFETY: of registers only, and the target has NEON.
            unsafe { arch::$name$(::<$n>)?($($x),*) }
        }
    )*};
}

intrinsics! {
    vaddq_f32(a: float32x4_t, b: float32x4_t) -> float32x4_t;
    vaddq_s32(a: int32x4_t, b: int32x4_t) -> int32x4_t;
    vaddq_u8(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t;
    vandq_u8(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t;
    vcvtq_f32_s32(a: int32x4_t) -> float32x4_t;
    vcvtq_f32_u32(a: uint32x4_t) -> float32x4_t;
    vcvtq_n_f32_s32<N>(a: int32x4_t) -> float32x4_t;
    vdupq_laneq_s32<N>(a: int32x4_t) -> int32x4_t;
    vdupq_n_f32(a: f32) -> float32x4_t;
    vdupq_n_s16(a: i16) -> int16x8_t;
    vdupq_n_s32(a: i32) -> int32x4_t;
    vdupq_n_s8(a: i8) -> int8x16_t;
    vdupq_n_u32(a: u32) -> uint32x4_t;
    vdupq_n_u8(a: u8) -> uint8x16_t;
    veorq_u8(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t;
    vfmaq_f32(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t;
    vfmaq_laneq_f32<N>(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t;
    vfmsq_f32(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t;
    vget_low_s8(a: int8x16_t) -> int8x8_t;
    vmlal_high_s8(a: int16x8_t, b: int8x16_t, c: int8x16_t) -> int16x8_t;
    vmlal_s8(a: int16x8_t, b: int8x8_t, c: int8x8_t) -> int16x8_t;
    vmovl_s8(a: int8x8_t) -> int16x8_t;
    vmovl_u16(a: uint16x4_t) -> uint32x4_t;
    vmull_high_s8(a: int8x16_t, b: int8x16_t) -> int16x8_t;
    vmull_s8(a: int8x8_t, b: int8x8_t) -> int16x8_t;
    vmulq_f32(a: float32x4_t, b: float32x4_t) -> float32x4_t;
    vmulq_laneq_f32<N>(a: float32x4_t, b: float32x4_t) -> float32x4_t;
    vmvnq_u8(a: uint8x16_t) -> uint8x16_t;
    vorrq_u8(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t;
    vpadalq_s16(a: int32x4_t, b: int16x8_t) -> int32x4_t;
    vpaddlq_s16(a: int16x8_t) -> int32x4_t;
    vpaddq_s16(a: int16x8_t, b: int16x8_t) -> int16x8_t;
    vpaddq_s32(a: int32x4_t, b: int32x4_t) -> int32x4_t;
    vqtbl1q_u8(table: uint8x16_t, index: uint8x16_t) -> uint8x16_t;
    vreinterpret_s8_u8(a: uint8x8_t) -> int8x8_t;
    vreinterpret_u16_u8(a: uint8x8_t) -> uint16x4_t;
    vreinterpretq_f32_s32(a: int32x4_t) -> float32x4_t;
    vreinterpretq_f32_u32(a: uint32x4_t) -> float32x4_t;
    vreinterpretq_f32_u8(a: uint8x16_t) -> float32x4_t;
    vreinterpretq_s32_f32(a: float32x4_t) -> int32x4_t;
    vreinterpretq_s32_s16(a: int16x8_t) -> int32x4_t;
    vreinterpretq_s32_s64(a: int64x2_t) -> int32x4_t;
    vreinterpretq_s32_s8(a: int8x16_t) -> int32x4_t;
    vreinterpretq_s64_s32(a: int32x4_t) -> int64x2_t;
    vreinterpretq_s8_s32(a: int32x4_t) -> int8x16_t;
    vreinterpretq_s8_u8(a: uint8x16_t) -> int8x16_t;
    vreinterpretq_u32_u8(a: uint8x16_t) -> uint32x4_t;
    vreinterpretq_u8_s8(a: int8x16_t) -> uint8x16_t;
    vreinterpretq_u8_u32(a: uint32x4_t) -> uint8x16_t;
    vshlq_n_s32<N>(a: int32x4_t) -> int32x4_t;
    vshlq_n_u32<N>(a: uint32x4_t) -> uint32x4_t;
    vshlq_n_u8<N>(a: uint8x16_t) -> uint8x16_t;
    vshlq_u8(a: uint8x16_t, by: int8x16_t) -> uint8x16_t;
    vshrq_n_s32<N>(a: int32x4_t) -> int32x4_t;
    vshrq_n_s8<N>(a: int8x16_t) -> int8x16_t;
    vshrq_n_u8<N>(a: uint8x16_t) -> uint8x16_t;
    vsliq_n_u8<N>(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t;
    vsraq_n_s16<N>(a: int16x8_t, b: int16x8_t) -> int16x8_t;
    vsraq_n_s32<N>(a: int32x4_t, b: int32x4_t) -> int32x4_t;
    vsubq_f32(a: float32x4_t, b: float32x4_t) -> float32x4_t;
    vtstq_u8(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t;
    vzip1q_f32(a: float32x4_t, b: float32x4_t) -> float32x4_t;
    vzip1q_s64(a: int64x2_t, b: int64x2_t) -> int64x2_t;
    vzip1q_u32(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t;
    vzip2q_s64(a: int64x2_t, b: int64x2_t) -> int64x2_t;
    vzip2q_u32(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t;
}
