/* One product of llama.cpp's CPU kernels between the two marks of trace.c:
 *     llama_cpp FORMAT ROWS COLUMNS
 * multiplies 16 weight rows with ROWS activation rows, and prints the kernel's name and the weights' bytes.
 *
 * Built once per core against llama.cpp's own files (cost.py). The kernel is the one that llama.cpp takes on the core
 * it is built for (`ggml_repack_get_optimal_repack_type` in repack.cpp, `type_traits_cpu` in ggml-cpu.c): weights in
 * groups of rows ("repacked") on cores with dotprod or i8mm, for the formats that have it; else one dot product per row
 * (per two rows, where i8mm and the format have it). llamafile's kernels for ARM are only for Q4_0 and Q8_0 that were
 * not repacked. The values are arbitrary: nothing branches on them. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void Dot(int n, float *y, size_t y_stride, const void *w, size_t w_stride, const void *x, size_t x_stride,
                 int rows_at_once);
typedef void Product(int n, float *y, size_t y_stride, const void *w, const void *x, int x_rows, int w_rows);

#if defined(__ARM_FEATURE_MATMUL_INT8)
#define SIMPLE_PRODUCTS(format) "gemv/gemm 4x8", ggml_gemv_##format##_4x8_q8_0, ggml_gemm_##format##_4x8_q8_0
#define K_PRODUCTS(format) "gemv/gemm 8x8", ggml_gemv_##format##_8x8_q8_K, ggml_gemm_##format##_8x8_q8_K
#define DOT_ROWS 2
#elif defined(__ARM_FEATURE_DOTPROD)
#define SIMPLE_PRODUCTS(format) "gemv/gemm 4x4", ggml_gemv_##format##_4x4_q8_0, ggml_gemm_##format##_4x4_q8_0
#define K_PRODUCTS(format) "gemv/gemm 8x4", ggml_gemv_##format##_8x4_q8_K, ggml_gemm_##format##_8x4_q8_K
#define DOT_ROWS 1
#else
#define SIMPLE_PRODUCTS(format) "vec_dot", NULL, NULL
#define K_PRODUCTS(format) "vec_dot", NULL, NULL
#define DOT_ROWS 1
#endif

Dot ggml_vec_dot_q4_0_q8_0, ggml_vec_dot_q4_1_q8_1, ggml_vec_dot_q5_0_q8_0, ggml_vec_dot_q5_1_q8_1,
    ggml_vec_dot_q8_0_q8_0, ggml_vec_dot_q4_K_q8_K, ggml_vec_dot_q5_K_q8_K, ggml_vec_dot_q6_K_q8_K,
    ggml_vec_dot_tq2_0_q8_K;
Product ggml_gemv_q4_0_4x4_q8_0, ggml_gemv_q4_0_4x8_q8_0, ggml_gemv_q8_0_4x4_q8_0, ggml_gemv_q8_0_4x8_q8_0,
    ggml_gemv_q4_K_8x4_q8_K, ggml_gemv_q4_K_8x8_q8_K, ggml_gemv_q5_K_8x4_q8_K, ggml_gemv_q5_K_8x8_q8_K,
    ggml_gemv_q6_K_8x4_q8_K, ggml_gemv_q6_K_8x8_q8_K, ggml_gemm_q4_0_4x4_q8_0, ggml_gemm_q4_0_4x8_q8_0,
    ggml_gemm_q8_0_4x4_q8_0, ggml_gemm_q8_0_4x8_q8_0, ggml_gemm_q4_K_8x4_q8_K, ggml_gemm_q4_K_8x8_q8_K,
    ggml_gemm_q5_K_8x4_q8_K, ggml_gemm_q5_K_8x8_q8_K, ggml_gemm_q6_K_8x4_q8_K, ggml_gemm_q6_K_8x8_q8_K;

/* Bytes of a block of weights and of activations, of 32 or 256 values. */
static const struct Kernel {
    const char *format;
    int block, w_bytes, x_bytes, dot_rows;
    Dot *dot;
    const char *name;
    Product *gemv, *gemm;
} KERNELS[] = {
    {"Q4_0", 32, 18, 34, 1, ggml_vec_dot_q4_0_q8_0, SIMPLE_PRODUCTS(q4_0)},
    {"Q4_1", 32, 20, 36, DOT_ROWS, ggml_vec_dot_q4_1_q8_1, "vec_dot", NULL, NULL},
    {"Q5_0", 32, 22, 34, 1, ggml_vec_dot_q5_0_q8_0, "vec_dot", NULL, NULL},
    {"Q5_1", 32, 24, 36, 1, ggml_vec_dot_q5_1_q8_1, "vec_dot", NULL, NULL},
    {"Q8_0", 32, 34, 34, 1, ggml_vec_dot_q8_0_q8_0, SIMPLE_PRODUCTS(q8_0)},
    {"Q4_K", 256, 144, 292, 1, ggml_vec_dot_q4_K_q8_K, K_PRODUCTS(q4_K)},
    {"Q5_K", 256, 176, 292, 1, ggml_vec_dot_q5_K_q8_K, K_PRODUCTS(q5_K)},
    {"Q6_K", 256, 210, 292, 1, ggml_vec_dot_q6_K_q8_K, K_PRODUCTS(q6_K)},
    {"TQ2_0", 256, 66, 292, 1, ggml_vec_dot_tq2_0_q8_K, "vec_dot", NULL, NULL},
};

enum { W_ROWS = 16, WEIGHT = 0x31 };

/* The loops of ggml_compute_forward_mul_mat_one_chunk and of repack.cpp's forward_mul_mat_one_chunk. */
static void multiply(const struct Kernel *kernel, int n, const char *w, const char *x, int x_rows, float *y) {
    size_t w_stride = (size_t)(n / kernel->block * kernel->w_bytes);
    size_t x_stride = (size_t)(n / kernel->block * kernel->x_bytes);
    int at_once = x_rows % 2 == 0 ? kernel->dot_rows : 1;
    if (kernel->gemm != NULL) {
        if (x_rows > 3) kernel->gemm(n, y, W_ROWS, w, x, x_rows - x_rows % 4, W_ROWS);
        for (int t = x_rows > 3 ? x_rows - x_rows % 4 : 0; t < x_rows; t++)
            kernel->gemv(n, y + t * W_ROWS, W_ROWS, w, x + (size_t)t * x_stride, 1, W_ROWS);
        return;
    }
    for (int t = 0; t < x_rows; t += at_once)
        for (int r = 0; r < W_ROWS; r += at_once)
            kernel->dot(n, y + t * W_ROWS + r, W_ROWS, w + (size_t)r * w_stride, w_stride, x + (size_t)t * x_stride,
                        x_stride, at_once);
}

int main(int argc, char **argv) {
    const struct Kernel *kernel = KERNELS, *end = KERNELS + sizeof KERNELS / sizeof *KERNELS;
    if (argc != 4) return 2;
    while (kernel < end && strcmp(kernel->format, argv[1]) != 0) kernel++;
    int x_rows = atoi(argv[2]), n = atoi(argv[3]);
    if (kernel == end || x_rows < 1 || n < 256 || n % 256 != 0) return 2;
    size_t w_bytes = (size_t)W_ROWS * (size_t)(n / kernel->block * kernel->w_bytes);
    size_t x_bytes = (size_t)x_rows * (size_t)(n / kernel->block * kernel->x_bytes);
    char *w = malloc(w_bytes), *x = malloc(x_bytes);
    float *y = calloc((size_t)(x_rows * W_ROWS), sizeof *y);
    if (w == NULL || x == NULL || y == NULL) return 1;
    memset(w, WEIGHT, w_bytes);
    memset(x, WEIGHT, x_bytes);
    printf("%s %zu\n", kernel->name, w_bytes);
    __asm__ volatile("hint #98" ::: "memory");
    multiply(kernel, n, w, x, x_rows, y);
    __asm__ volatile("hint #99" ::: "memory");
    free(w), free(x), free(y);
    return 0;
}
