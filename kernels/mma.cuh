// Tensor cores and what feeds them, for GEMM and attention of prefill.
#pragma once
#include "common.cuh"
#include <cuda_fp16.h>

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Copies 16 bytes to shared memory, or zeros. Asynchronously where the GPU can (sm_80).
__device__ __forceinline__ void copy_16(u32 shared, const void* from, bool valid = true) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(valid ? 16 : 0)
                 : "memory");
#else
    uint4 value = make_uint4(0, 0, 0, 0);
    if (valid) value = *(const uint4*)from;
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(value.x), "r"(value.y), "r"(value.z),
                 "r"(value.w)
                 : "memory");
#endif
}

// Ends a group of copies.
__device__ __forceinline__ void copy_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// A zero that the compiler does not know: what is computed with it in a loop, it computes there, and keeps no
// register for it. Without SAVE just a zero.
template <bool SAVE = true>
__device__ __forceinline__ u32 fresh_zero() {
    u32 zero = 0;
    if (SAVE) asm volatile("" : "+r"(zero));
    return zero;
}

// Waits until at most `PENDING` groups of this thread's copies are under way.
template <int PENDING>
__device__ __forceinline__ void copy_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// Four 8x8 matrices of halves; lane l gives the address of row l%8 of matrix l/8.
__device__ __forceinline__ void load_matrices(u32 (&out)[4], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared)
                 : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(u32 (&out)[4], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared)
                 : "memory");
}

// sums (16 x 8) += a (16 x 16) * b (16 x 8).
__device__ __forceinline__ void mma(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

__device__ __forceinline__ u32 bits(__half2 x) { return *(u32*)&x; }
__device__ __forceinline__ __half2 halves(u32 x) { return *(__half2*)&x; }
__device__ __forceinline__ __half2 both(__half x) { return __half2half2(x); }
__device__ __forceinline__ u32 pack(float low, float high) { return bits(__floats2half2_rn(low, high)); }
