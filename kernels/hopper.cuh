// The sums of a GEMM's step on Hopper (sm_90a): a warpgroup of four warps multiplies its 64 rows, in registers as
// above, with all tokens, straight from shared memory and while the next weights are made.
#pragma once
#include "group.cuh"

struct HopperBase {
    static constexpr int M_TILES = 1, WARPS_N = 1, PAIRS = 1, X_ROW_BYTES = 128;
    static constexpr bool HOPPER = true, MANY = true;
};

template <int WARPGROUPS, int TOKENS_, int STAGES_>
struct HopperShape : HopperBase {
    static constexpr int N_TILES = TOKENS_ / 8, WARPS_M = 4 * WARPGROUPS, THREADS = 32 * WARPS_M;
    static constexpr int ROWS = 64 * WARPGROUPS, TOKENS = TOKENS_, TILES = ROWS / 8, STAGES = STAGES_,
                         X_BYTES = TOKENS * 256;
};

// What this thread wrote to shared memory is there for the tensor cores.
__device__ __forceinline__ void fence_async() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#define SUMS4(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define SUMS16(n) SUMS4(n), SUMS4(n + 1), SUMS4(n + 2), SUMS4(n + 3)

// d (64 x 64 or 128) += a (64 x 16) * b; `b` describes 16 columns of the tokens in shared memory.
__device__ __forceinline__ void wgmma(float (&d)[8][4], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
        "%13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, "
        "1, 1, 1, 0;"
        : SUMS16(0), SUMS16(4)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ __forceinline__ void wgmma(float (&d)[16][4], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
        "%13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, "
        "%37, %38, %39, %40, "
        "%41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
        "%62, %63}, "
        "{%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
        : SUMS16(0), SUMS16(4), SUMS16(8), SUMS16(12)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#endif

template <class S, u32 KIND>
__device__ __forceinline__ void multiply_async(float (&sums)[S::N_TILES][4], const Group<KIND> (&groups)[2], u32 x) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    // Rows of 128 bytes, 8 of them 1024 further each time, in the tensor cores' order of 128-byte rows.
    const u64 layout = (u64)1 << 62 | (u64)(1024 / 16) << 32 | (u64)1 << 16;
    u32 a[2][2][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        Group<KIND> parts[2] = {groups[0], groups[1]};
#pragma unroll
        for (int g = 0; g < 2; g++) {
            if (i / 2 == 1) parts[g].second_half();
            u32 pairs[4];
            parts[g].values(i % 2, pairs);
            a[i % 2][0][g] = pairs[0], a[i % 2][0][2 + g] = pairs[1];
            a[i % 2][1][g] = pairs[2], a[i % 2][1][2 + g] = pairs[3];
        }
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < 2; j++) {
            u32 at = x + i / 2 * (S::TOKENS * 128) + (i % 2 * 2 + j) * 32;
            wgmma(sums, a[i % 2][j], layout | (at & 0x3ffff) >> 4);
        }
        wgmma_commit();
        if (i < 3)
            wgmma_wait<1>();
        else
            wgmma_wait<0>();
    }
#endif
}
