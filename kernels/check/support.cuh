// Matrices with random weights in tiles, and what their kernels should give: for the check programs.
#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "../decode.cu"

#define CHECK(call)                                                                          \
    do {                                                                                     \
        cudaError_t error = (call);                                                          \
        if (error != cudaSuccess) {                                                          \
            printf("FAILED: %s, line %d: %s\n", #call, __LINE__, cudaGetErrorString(error)); \
            exit(1);                                                                         \
        }                                                                                    \
    } while (0)

static u32 random_state = 12345;
static u32 random_u32() {
    random_state ^= random_state << 13, random_state ^= random_state >> 17, random_state ^= random_state << 5;
    return random_state * 2654435761u >> 3;
}
static float random_float(float low, float high) {
    return low + (high - low) * (random_u32() & 0xffffff) / 16777216.0f;
}
static float random_normal() {
    float sum = 0;
    for (int i = 0; i < 11; i++) sum += random_float(-0.5f, 0.5f);
    return sum;
}
static u16 half_bits(float value) {
    __half h = __float2half(value);
    u16 bits;
    memcpy(&bits, &h, 2);
    return bits;
}
static float half_value(u16 bits) {
    __half h;
    memcpy(&h, &bits, 2);
    return __half2float(h);
}

// Device memory, filled with 0xff where nothing is given: NaN as f32 and as f16.
template <typename T>
struct Device {
    T* at = nullptr;
    size_t count = 0;
    Device() {}
    explicit Device(size_t count) : count(count) {
        CHECK(cudaMalloc(&at, std::max<size_t>(count * sizeof(T), 16)));
        poison();
    }
    explicit Device(const std::vector<T>& from) : Device(from.size()) { set(from); }
    Device(Device&& other) : at(other.at), count(other.count) { other.at = nullptr; }
    Device& operator=(Device&& other) {
        std::swap(at, other.at), std::swap(count, other.count);
        return *this;
    }
    ~Device() { cudaFree(at); }
    void poison() { CHECK(cudaMemset(at, 0xff, count * sizeof(T))); }
    void set(const std::vector<T>& from) {
        CHECK(cudaMemcpy(at, from.data(), count * sizeof(T), cudaMemcpyHostToDevice));
    }
    std::vector<T> get() const {
        std::vector<T> out(count);
        CHECK(cudaMemcpy(out.data(), at, count * sizeof(T), cudaMemcpyDeviceToHost));
        return out;
    }
};

struct Kind {
    const char* name;
    u32 format;
    bool one_scale;
    u32 codes, high, scales; // bytes a group
    u32 block, supers; // columns come in blocks; bytes every 256 columns in the last plane that is not by groups
};
static const Kind KINDS[] = {
    {"Q4_0", Q4_0, false, 16, 0, 2, 32, 0},      {"Q4_1", Q4_1, false, 16, 0, 4, 32, 0},
    {"Q5_0", Q5_0, false, 16, 4, 2, 32, 0},      {"Q5_1", Q5_1, false, 16, 4, 4, 32, 0},
    {"Q8_0", Q8_0, false, 32, 0, 2, 32, 0},      {"Q4_K", Q4_K, false, 16, 0, 2, 256, 0},
    {"Q5_K", Q5_K, false, 16, 4, 2, 256, 0},     {"Q6_K", Q6_K, false, 16, 8, 2, 256, 2},
    {"ternary", TERNARY, true, 8, 0, 0, 128, 0}, {"ternary/256", TERNARY, false, 8, 0, 0, 256, 2},
};
static size_t row_bytes(const Kind& k, u32 columns) {
    return (size_t)columns / 32 * (k.codes + k.high + k.scales) + columns / 256 * k.supers;
}
// Rows are filled up to 64: units of 8 tiles need no check.
static u32 padded_rows(u32 rows) { return (rows + 63) / 64 * 64; }

// A matrix on the host and on the device.
struct TestMatrix {
    Kind kind;
    u32 rows, columns;
    float scale = 1;
    std::vector<u8> planes[4];
    Device<u8> device[4];
    std::vector<float> bias;
    Device<float> device_bias;

    TestMatrix(const Kind& kind, u32 rows, u32 columns, bool with_bias) : kind(kind), rows(rows), columns(columns) {
        size_t padded = padded_rows(rows), groups = padded * columns / 32, blocks = padded * (columns / 256);
        planes[0].resize(groups * kind.codes), planes[1].resize(groups * kind.high);
        planes[2].resize(groups * kind.scales), planes[3].resize(kind.format == Q6_K ? blocks * 2 : 0);
        if (kind.format == TERNARY && !kind.one_scale) planes[2].resize(blocks * 2);
        for (int p = 0; p < 2; p++)
            for (u8& byte : planes[p]) {
                byte = random_u32();
                if (kind.format == TERNARY)
                    byte = random_u32() % 3 | random_u32() % 3 << 2 | random_u32() % 3 << 4 | random_u32() % 3 << 6;
                if (kind.format == Q5_0 || kind.format == Q6_K) continue;
            }
        u16* halves = (u16*)planes[2].data();
        size_t count = planes[2].size() / 2;
        if (kind.format == Q4_K || kind.format == Q5_K) {
            for (size_t i = 0; i < count; i++)
                halves[i] = i % 8 < 2 ? half_bits(random_float(1e-4f, 3e-4f)) : random_u32();
        } else if (kind.format == Q6_K) {
            for (u8& byte : planes[2]) byte = random_u32();
            for (size_t i = 0; i < blocks; i++) ((u16*)planes[3].data())[i] = half_bits(random_float(1e-5f, 3e-5f));
        } else {
            for (size_t i = 0; i < count; i++) halves[i] = half_bits(random_float(-0.02f, 0.02f));
        }
        if (kind.one_scale) scale = 0.0173f;
        // Rows that are not there: zeros, as the host writes them (ternary without scales: codes of 1).
        for (u32 row = rows; row < padded; row++)
            for (u32 column = 0; column < columns; column++) clear(row, column);
        for (int p = 0; p < 4; p++) device[p] = Device<u8>(planes[p]);
        if (with_bias) {
            for (u32 i = 0; i < rows; i++) bias.push_back(random_normal());
            device_bias = Device<float>(bias);
        }
    }

    Matrix matrix() const {
        Matrix m = {device[0].at, device[1].at, device[2].at, device[3].at, bias.empty() ? nullptr : device_bias.at,
                    rows,         columns,      kind.format,  scale,        {0, 0}};
        if (kind.one_scale) m.scales = nullptr;
        return m;
    }

    size_t group_of(u32 row, u32 column) const {
        u32 groups = columns / 32, group = column / 32, step = group / 4, in_step = step < groups / 4 ? 4 : groups % 4;
        return (size_t)(row / 8) * groups * 8 + step * 32 + row % 8 * in_step + group % 4;
    }
    size_t block_of(u32 row, u32 column) const {
        return ((size_t)(row / 8) * (columns / 256) + column / 256) * 8 + row % 8;
    }
    static u32 place(u32 column) { return column % 8 < 4 ? column % 8 * 2 : column % 8 * 2 - 7; }
    u32 word(int plane, size_t at) const {
        u32 out;
        memcpy(&out, &planes[plane][at * 4], 4);
        return out;
    }
    float half_at(int plane, size_t at) const {
        u16 out;
        memcpy(&out, &planes[plane][at * 2], 2);
        return half_value(out);
    }
    void clear(u32 row, u32 column) {
        size_t group = group_of(row, column);
        if (column % 32 == 0) {
            memset(&planes[0][group * kind.codes], kind.one_scale ? 0x55 : 0, kind.codes);
            if (kind.high) memset(&planes[1][group * kind.high], 0, kind.high);
            if (kind.format == Q4_K || kind.format == Q5_K)
                memset(&planes[2][block_of(row, column) * 16], 0, 16);
            else if (kind.scales)
                memset(&planes[2][group * kind.scales], 0, kind.scales);
            else if (!kind.one_scale)
                memset(&planes[2][block_of(row, column) * 2], 0, 2);
        }
    }

    // As the format's definition says it, in f32.
    float value(u32 row, u32 column) const {
        size_t group = group_of(row, column), block = block_of(row, column);
        u32 e = column % 32, byte = place(column) % 4, j = 2 * (e / 8) + place(column) / 4, step = column / 128;
        u32 f = kind.format;
        if (f == Q8_0) return half_at(2, group) * (float)(signed char)(word(0, group * 8 + j) >> 8 * byte);
        if (f == TERNARY) {
            float q = (float)(word(0, group * 2 + j / 4) >> (8 * byte + 2 * (j % 4)) & 3) - 1;
            return (kind.one_scale ? 1.0f : half_at(2, block)) * q * scale;
        }
        u32 q = word(0, group * 4 + j / 2) >> (8 * byte + 4 * (j % 2)) & 15;
        if (kind.high == 4) q |= (word(1, group) >> (8 * byte + j) & 1) << 4;
        if (f == Q4_0) return half_at(2, group) * ((float)q - 8);
        if (f == Q5_0) return half_at(2, group) * ((float)q - 16);
        if (f == Q4_1 || f == Q5_1) {
            float product = half_at(2, group * 2) * (float)q;
            return product + half_at(2, group * 2 + 1);
        }
        if (f == Q6_K) {
            q |= (word(1, group * 2 + j / 4) >> (8 * byte + 2 * (j % 4)) & 3) << 4;
            float sub = half_at(3, block) * (float)(signed char)planes[2][group * 2 + e / 16];
            return sub * ((float)q - 32);
        }
        u32 bit = 24 * (column / 32 % 4) + 12 * (step % 2);
        u64 bits = 0;
        memcpy(&bits, &planes[2][block * 16 + 4 + bit / 8], std::min(8u, 12 - bit / 8));
        bits >>= bit % 8;
        float sub = half_at(2, block * 8) * (float)(bits & 63),
              minimum = half_at(2, block * 8 + 1) * (float)(bits >> 6 & 63);
        float product = sub * (float)q;
        return product - minimum;
    }
};

// The codes, scales and factor that kernels make of a vector, for the reference to start from.
__global__ void dump_input(Quantization q, u8* codes, float2* groups, float* factor) {
    __shared__ Exchange<1> exchange;
    float all = quantize_input(q, NormAhead(q.norm, q.columns), shared, exchange) * late_factor(q, exchange);
    u32 padded = (q.columns + 127) / 128 * 128;
    for (u32 i = threadIdx.x; i < q.columns; i += blockDim.x) codes[i] = ((const u8*)shared)[i];
    for (u32 i = threadIdx.x; i < q.columns / 32; i += blockDim.x)
        groups[i] = ((const float2*)((const u8*)shared + padded))[i];
    if (threadIdx.x == 0) *factor = all;
}

// A format's kernels.
struct Entries {
    void (*project)(Project);
    void (*gate_up)(GateUp);
    void (*head)(Head);
};
static Entries entries(const Matrix& m) {
    switch (m.scales ? m.format : TERNARY_ONE) {
#define ENTRIES(NAME, F) \
    case F: return {decode_project_##NAME, decode_gate_up_##NAME, decode_head_##NAME};
        FOR_FORMATS(ENTRIES)
    }
    return {};
}
static void (*attention_kernel(u32 head_dim))(Attention) {
    return head_dim == 64    ? decode_attention_64
           : head_dim == 80  ? decode_attention_80
           : head_dim == 96  ? decode_attention_96
           : head_dim == 128 ? decode_attention_128
                             : decode_attention_256;
}
static u32 capability() {
    static u32 found = 0;
    if (!found) {
        cudaDeviceProp device;
        CHECK(cudaGetDeviceProperties(&device, 0));
        found = device.major * 10 + device.minor;
    }
    return found;
}
// Dynamic shared memory of kernels that take `r` tiles at a time on this device. `alone`: no block has two units.
static u32 bytes_here(u32 columns, u32 r, u32 format, bool alone = false, u32 batches = 0) {
    return vector_bytes(columns, r, batches ? batches : r < 4 ? ring_batches(r) : 2, format, capability(), alone);
}
static void prepare() {
    int most;
    CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    std::vector<const void*> kernels = {(const void*)decode_project_mixed, (const void*)decode_gate_up_mixed,
                                        (const void*)dump_input};
#define ALL(NAME, F)                                       \
    kernels.push_back((const void*)decode_project_##NAME); \
    kernels.push_back((const void*)decode_gate_up_##NAME); \
    kernels.push_back((const void*)decode_head_##NAME);
    FOR_FORMATS(ALL)
    for (u32 head_dim : {64u, 80u, 96u, 128u, 256u}) kernels.push_back((const void*)attention_kernel(head_dim));
    for (const void* kernel : kernels) {
        cudaFuncAttributes attributes;
        CHECK(cudaFuncGetAttributes(&attributes, kernel));
        CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   most - (int)attributes.sharedSizeBytes));
    }
    kernels.push_back((const void*)decode_embed), kernels.push_back((const void*)decode_finish);
    for (const void* kernel : kernels)
        CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100));
}

// A vector, what it should be after the norm, and what the kernels make of it.
struct TestVector {
    std::vector<float> x, norm;
    std::vector<double> exact, quantized; // as quantized: code * scale * factor
    Device<float> device_x, device_norm;
    float epsilon = 1e-5f;
    double worst = 0; // |quantized - exact| in units of the scale

    TestVector(u32 columns, bool with_norm, bool whole_row, bool outliers = false) {
        for (u32 i = 0; i < columns; i++) {
            x.push_back(random_normal() * (outliers && i % 97 == 3 ? 30 : 1));
            norm.push_back(random_float(0.5f, 1.5f));
        }
        device_x = Device<float>(x);
        if (with_norm) device_norm = Device<float>(norm);
        double squares = 0;
        for (float v : x) squares += (double)v * v;
        double rms = 1 / sqrt(squares / columns + epsilon);
        for (u32 i = 0; i < columns; i++) exact.push_back(with_norm ? x[i] * rms * norm[i] : x[i]);
        Device<u8> codes(columns);
        Device<float2> groups(columns / 32);
        Device<float> factor(1);
        Quantization q = {device_x.at, device_norm.at, {0, 0}, columns, whole_row, epsilon};
        dump_input<<<1, project_threads(columns), activation_bytes(columns)>>>(q, codes.at, groups.at, factor.at);
        CHECK(cudaDeviceSynchronize());
        auto c = codes.get();
        auto g = groups.get();
        float f = factor.get()[0];
        for (u32 i = 0; i < columns; i++) {
            u32 place = i / 8 * 8 + TestMatrix::place(i);
            double scale = (double)g[i / 32].x * f;
            quantized.push_back((double)(signed char)c[place] * scale);
            worst = std::max(worst, fabs(quantized[i] - exact[i]) / scale);
        }
        for (u32 i = 0; i < columns / 32; i++) {
            int sum = 0;
            for (u32 j = 0; j < 32; j++) sum += (signed char)c[i * 32 + j];
            if (g[i].y != g[i].x * (float)sum) worst = 1e9;
        }
    }
};

// Rows of a product: what it should be, with the quantized vector and with the exact one, and how large its terms are.
struct Expected {
    std::vector<double> quantized, exact, size;
};
static Expected expect(const TestMatrix& m, const TestVector& x) {
    Expected out;
    for (u32 row = 0; row < m.rows; row++) {
        double a = 0, b = 0, size = 0;
        for (u32 column = 0; column < m.columns; column++) {
            double w = m.value(row, column);
            a += w * x.quantized[column], b += w * x.exact[column], size += fabs(w * x.quantized[column]);
        }
        double bias = m.bias.empty() ? 0 : m.bias[row];
        out.quantized.push_back(a + bias), out.exact.push_back(b + bias), out.size.push_back(size + fabs(bias));
    }
    return out;
}

// The result of comparisons.
struct Report {
    int checks = 0, failed = 0;
    double worst = 0;
    void claim(bool good, const std::string& what) {
        checks++;
        if (!good && failed++ < 20) printf("FAILED: %s\n", what.c_str());
    }
    void near(double found, double expected, double size, double bound, const std::string& what) {
        double error = fabs(found - expected) / (size + 1e-30);
        if (!(error <= bound))
            claim(false, what + ": " + std::to_string(found) + ", not " + std::to_string(expected));
        else
            checks++;
        if (error == error) worst = std::max(worst, error);
    }
};
