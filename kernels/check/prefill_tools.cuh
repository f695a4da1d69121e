// What prefill_check is made of: launches, device memory that is checked, random weights in tiles and their values.
#pragma once
#include "../prefill.cu"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#define CUDA(call)                                                                           \
    do {                                                                                     \
        cudaError_t error = call;                                                            \
        if (error != cudaSuccess) {                                                          \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error)); \
            exit(2);                                                                         \
        }                                                                                    \
    } while (0)

// Launches with or without programmatic dependent launch.
static bool g_pdl = false;
static cudaStream_t g_stream = nullptr;
template <class P>
static void launch(void (*kernel)(P), dim3 grid, u32 threads, u32 shared, const P& p) {
    static std::map<const void*, u32> allowed;
    if (shared > allowed[(const void*)kernel]) {
        CUDA(cudaFuncSetAttribute((const void*)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
        allowed[(const void*)kernel] = shared;
    }
    if (!g_stream) CUDA(cudaStreamCreate(&g_stream));
    cudaLaunchConfig_t config = {};
    config.stream = g_stream;
    config.gridDim = grid, config.blockDim = dim3(threads), config.dynamicSmemBytes = shared;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute, config.numAttrs = g_pdl ? 1 : 0;
    CUDA(cudaLaunchKernelEx(&config, kernel, p));
}

// ---- Small tools

static bool g_small = false;
static u64 g_random = 88172645463325252ull;
static u32 random_u32() {
    g_random ^= g_random << 13, g_random ^= g_random >> 7, g_random ^= g_random << 17;
    return (u32)(g_random >> 24);
}
static float uniform() { return (float)(random_u32() >> 8) / 8388608.0f - 1.0f; }  // -1 .. 1
static u16 half_bits(float x) {
    __half h = __float2half_rn(x);
    u16 bits;
    memcpy(&bits, &h, 2);
    return bits;
}
static float from_half(u16 bits) {
    __half h;
    memcpy(&h, &bits, 2);
    return __half2float(h);
}
static u32 word(const void* p) {
    u32 x;
    memcpy(&x, p, 4);
    return x;
}

static void parallel(u32 count, const std::function<void(u32)>& job) {
    u32 threads = std::max(1u, std::thread::hardware_concurrency());
    std::vector<std::thread> all;
    for (u32 t = 0; t < threads; t++)
        all.emplace_back([=, &job] {
            for (u32 i = t; i < count; i += threads) job(i);
        });
    for (auto& thread : all) thread.join();
}

static int g_failures = 0, g_checks = 0;
static void verdict(bool ok, const std::string& what, double worst) {
    g_checks++;
    if (!ok) g_failures++;
    if (!ok || getenv("VERBOSE"))
        printf("%s %s: %.3g of the tolerance\n", ok ? "ok    " : "FAILED", what.c_str(), worst);
}

// Device memory, filled with 0xff bytes: NaN in every format. A guard of 0xff behind it is checked when it is read
// back.
template <class T>
struct Gpu {
    T* p = nullptr;
    size_t count;
    static constexpr size_t GUARD = 256;
    explicit Gpu(size_t count) : count(count) {
        CUDA(cudaMalloc(&p, count * sizeof(T) + GUARD));
        poison();
    }
    explicit Gpu(const std::vector<T>& from) : Gpu(from.size()) {
        CUDA(cudaMemcpy(p, from.data(), count * sizeof(T), cudaMemcpyHostToDevice));
    }
    Gpu(const Gpu&) = delete;
    ~Gpu() { cudaFree(p); }
    void poison() { CUDA(cudaMemset(p, 0xff, count * sizeof(T) + GUARD)); }
    std::vector<T> read() const {
        std::vector<u8> bytes(count * sizeof(T) + GUARD);
        CUDA(cudaDeviceSynchronize());
        CUDA(cudaMemcpy(bytes.data(), p, bytes.size(), cudaMemcpyDeviceToHost));
        for (size_t i = count * sizeof(T); i < bytes.size(); i++)
            if (bytes[i] != 0xff) {
                verdict(false, "write behind a buffer", 0);
                break;
            }
        std::vector<T> out(count);
        memcpy((void*)out.data(), bytes.data(), count * sizeof(T));
        return out;
    }
};

static bool poisoned(float x) { return word(&x) == 0xffffffff; }

// ---- Weights, decoded as README.md describes the tiles

struct Weights {
    u32 format, rows, columns, groups, tiles;
    std::vector<u8> codes, high, scales, supers;
    std::vector<float> bias;
    float scale = 1.0f;
    std::vector<double> values;      // (rows, columns), exact
    std::vector<double> magnitudes;  // of the terms a value is the sum of
    Gpu<u8>*d_codes = nullptr, *d_high = nullptr, *d_scales = nullptr, *d_supers = nullptr;
    Gpu<float>* d_bias = nullptr;

    static u32 code_bytes(u32 f) { return f == Q8_0 ? 32 : f == TERNARY ? 8 : 16; }
    static u32 high_bytes(u32 f) { return f == Q5_0 || f == Q5_1 || f == Q5_K ? 4 : f == Q6_K ? 8 : 0; }
    static bool in_supers(u32 f) { return f == Q4_K || f == Q5_K || f == Q6_K || f == TERNARY; }

    Weights(u32 format, u32 rows, u32 columns, bool with_bias, bool with_scales = true)
        : format(format), rows(rows), columns(columns), groups(columns / 32), tiles((rows + 7) / 8) {
        size_t all = (size_t)tiles * 8 * groups, all_supers = (size_t)tiles * 8 * (groups / 8);
        codes.resize(all * code_bytes(format));
        for (auto& c : codes) {
            c = random_u32();
            if (format == TERNARY) c = c % 3 | (c / 3 % 3) << 2 | (c / 9 % 3) << 4 | (c / 27 % 3) << 6;
        }
        high.resize(all * high_bytes(format));
        for (auto& h : high) h = random_u32();
        auto push = [](std::vector<u8>& to, float x) {
            u16 h = half_bits(x);
            to.push_back(h & 255), to.push_back(h >> 8);
        };
        if (format == Q4_0 || format == Q5_0 || format == Q8_0)
            for (size_t i = 0; i < all; i++) push(scales, 0.01f * uniform());
        if (format == Q4_1 || format == Q5_1)
            for (size_t i = 0; i < all; i++) push(scales, 0.01f * uniform()), push(scales, 0.1f * uniform());
        if (format == Q4_K || format == Q5_K)
            for (size_t i = 0; i < all_supers; i++) {
                push(scales, 0.001f * uniform()), push(scales, 0.005f * uniform());
                for (int b = 0; b < 12; b++) scales.push_back(random_u32());
            }
        if (format == Q6_K) {
            for (size_t i = 0; i < 2 * all; i++) scales.push_back(random_u32());
            for (size_t i = 0; i < all_supers; i++) push(supers, 0.0002f * uniform());
        }
        if (format == TERNARY) {
            if (with_scales)
                for (size_t i = 0; i < all_supers; i++) push(scales, 0.1f * uniform());
            else
                scale = 0.37f;
        }
        if (with_bias)
            for (u32 r = 0; r < rows; r++) bias.push_back(uniform());
        values.resize((size_t)rows * columns), magnitudes.resize((size_t)rows * columns);
        parallel(rows, [this](u32 r) {
            for (u32 c = 0; c < this->columns; c++) {
                size_t at = (size_t)r * this->columns + c;
                float exact;
                values[at] = value(r, c, magnitudes[at], exact);
            }
        });
        d_codes = new Gpu<u8>(codes);
        if (!high.empty()) d_high = new Gpu<u8>(high);
        if (!scales.empty()) d_scales = new Gpu<u8>(scales);
        if (!supers.empty()) d_supers = new Gpu<u8>(supers);
        if (with_bias) d_bias = new Gpu<float>(bias);
    }
    ~Weights() { delete d_codes, delete d_high, delete d_scales, delete d_supers, delete d_bias; }
    Weights(const Weights&) = delete;

    // `as_float`: as Format::dequantize rounds it.
    double value(u32 row, u32 column, double& magnitude, float& as_float) const {
        u32 tile = row / 8, r = row % 8, group = column / 32, step = group / 4, kc = group % 4, i = column % 32;
        u32 c = std::min(4u, groups - step * 4);
        size_t at = ((size_t)tile * groups + step * 4) * 8 + r * c + kc,
               super = ((size_t)tile * (groups / 8) + group / 8) * 8 + r;
        const u32 order[2][4] = {{0, 4, 1, 5}, {2, 6, 3, 7}};
        u32 j = 0, b = 0;
        for (u32 jj = 0; jj < 8; jj++)
            for (u32 bb = 0; bb < 4; bb++)
                if (8 * (jj / 2) + order[jj % 2][bb] == i) j = jj, b = bb;
        u32 q;
        if (format == Q8_0)
            q = word(&codes[at * 32 + 4 * j]) >> (8 * b) & 255;
        else if (format == TERNARY)
            q = (word(&codes[at * 8 + 4 * (j / 4)]) >> (2 * (j % 4)) & 0x03030303) >> (8 * b) & 255;
        else
            q = (word(&codes[at * 16 + 4 * (j / 2)]) >> (j % 2 ? 4 : 0) & 0x0f0f0f0f) >> (8 * b) & 255;
        if (high_bytes(format) == 4) q += (high[at * 4 + b] >> j & 1) * 16;
        if (high_bytes(format) == 8)
            q += ((word(&high[at * 8 + 4 * (j / 4)]) >> (2 * (j % 4)) & 0x03030303) >> (8 * b) & 255) * 16;
        auto half_at = [](const std::vector<u8>& v, size_t i) { return from_half(v[2 * i] | v[2 * i + 1] << 8); };
        double d, offset = 0, m = 0;
        float fd, fm = 0;
        if (format == Q4_0 || format == Q5_0 || format == Q8_0) {
            d = fd = half_at(scales, at);
            offset = format == Q4_0 ? 8 : format == Q5_0 ? 16 : 0;
            if (format == Q8_0 && q > 127) offset = 256;
        } else if (format == Q4_1 || format == Q5_1) {
            d = fd = half_at(scales, 2 * at), m = fm = half_at(scales, 2 * at + 1);
        } else if (format == Q6_K) {
            float s = (float)(signed char)scales[2 * at + i / 16], super_d = half_at(supers, super);
            d = (double)super_d * s, fd = super_d * s, offset = 32;
        } else if (format == TERNARY) {
            d = fd = scales.empty() ? 1.0f : half_at(scales, super), offset = 1;
        } else {
            const u8* block = &scales[super * 16];
            u32 bits = 0;  // 24 from bit 24 kc on
            for (int b = 0; b < 3; b++) bits |= (u32)block[4 + 3 * kc + b] << (8 * b);
            if (group % 8 >= 4) bits >>= 12;
            float super_d = from_half(block[0] | block[1] << 8), super_m = from_half(block[2] | block[3] << 8);
            d = (double)super_d * (bits & 63), fd = super_d * (float)(bits & 63);
            m = -(double)super_m * (bits >> 6 & 63), fm = -(super_m * (float)(bits >> 6 & 63));
        }
        volatile float product = fd * (float)((int)q - (int)offset);
        volatile float sum = product + fm;
        as_float = (fm == 0.0f ? product : sum) * scale;
        magnitude = (std::fabs(d * ((double)q - offset)) + std::fabs(m)) * scale;
        return (d * ((double)q - offset) + m) * scale;
    }

    Matrix matrix() const {
        Matrix m = {};
        m.codes = d_codes->p, m.high = d_high ? d_high->p : nullptr, m.scales = d_scales ? d_scales->p : nullptr;
        m.supers = d_supers ? d_supers->p : nullptr, m.bias = d_bias ? d_bias->p : nullptr;
        m.rows = rows, m.columns = columns, m.format = format, m.scale = scale;
        return m;
    }
};

static const u32 FORMATS[] = {Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, TERNARY};
static std::string name(u32 format) {
    switch (format) {
        case Q4_0: return "Q4_0";
        case Q4_1: return "Q4_1";
        case Q5_0: return "Q5_0";
        case Q5_1: return "Q5_1";
        case Q8_0: return "Q8_0";
        case Q4_K: return "Q4_K";
        case Q5_K: return "Q5_K";
        case Q6_K: return "Q6_K";
    }
    return "ternary";
}

// Where an activation's column is stored: mma j of a step takes columns 32 c + 4 j + {0, 1} at 16 j + 2 c, {2, 3} 8
// behind.
static u32 stored(u32 column) {
    for (u32 j = 0; j < 8; j++)
        for (u32 c = 0; c < 4; c++)
            for (u32 e = 0; e < 4; e++)
                if (column % 128 == 32 * c + 4 * j + e)
                    return column / 128 * 128 + 16 * j + 2 * c + e % 2 + e / 2 * 8;
    abort();
}
