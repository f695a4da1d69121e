// What the decode kernels take: matrices of usual shapes, and a whole token of a model of 1.5 billion weights.
#pragma once
#include "support.cuh"

__global__ void fill_random(u32* out, size_t count, u32 seed, u32 keep, u32 set) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x) {
        u32 h = (u32)i * 2654435761u + seed;
        h ^= h >> 15, h *= 0x85ebca6b, h ^= h >> 13;
        out[i] = (h & keep) | set;
    }
}
__global__ void read_all(const uint4* from, size_t count, u32* out) {
    u32 all = 0;
    const size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += 4 * step) {
        u32 v[4][4];
#pragma unroll
        for (u32 u = 0; u < 4; u++)
            if (i + u * step < count)
                load_weights(v[u], from + i + u * step);
            else
                v[u][0] = v[u][1] = v[u][2] = v[u][3] = 0;
#pragma unroll
        for (u32 u = 0; u < 4; u++) all ^= v[u][0] ^ v[u][1] ^ v[u][2] ^ v[u][3];
    }
    if (all == 0x12345678) *out = all;
}

struct Bench {
    cudaStream_t stream;
    int multiprocessors;
    double read_rate; // GB/s
    bool pdl = true;

    template <typename... A>
    void launch(void (*kernel)(A...), dim3 blocks, u32 threads, u32 bytes, bool full_edge, A... args) {
        cudaLaunchConfig_t config = {};
        config.gridDim = blocks, config.blockDim = dim3(threads), config.dynamicSmemBytes = bytes,
        config.stream = stream;
        cudaLaunchAttribute attribute;
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
        config.attrs = &attribute, config.numAttrs = pdl && !full_edge ? 1 : 0;
        CHECK(cudaLaunchKernelEx(&config, kernel, args...));
    }

    // µs of what `f` launches, as a graph: the median of `times`.
    double graph(const std::function<void()>& f, int times = 15) {
        cudaGraph_t graph;
        cudaGraphExec_t exec;
        CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
        f();
        CHECK(cudaStreamEndCapture(stream, &graph));
        CHECK(cudaGraphInstantiate(&exec, graph, 0));
        cudaEvent_t a, b;
        CHECK(cudaEventCreate(&a));
        CHECK(cudaEventCreate(&b));
        std::vector<float> all;
        for (int i = 0; i < times + 2; i++) {
            CHECK(cudaEventRecord(a, stream));
            CHECK(cudaGraphLaunch(exec, stream));
            CHECK(cudaEventRecord(b, stream));
            CHECK(cudaEventSynchronize(b));
            float ms;
            CHECK(cudaEventElapsedTime(&ms, a, b));
            if (i >= 2) all.push_back(ms * 1000);
        }
        std::sort(all.begin(), all.end());
        CHECK(cudaGraphExecDestroy(exec));
        CHECK(cudaGraphDestroy(graph));
        return all[all.size() / 2];
    }
};

// Memory that matrices with random weights are cut from.
struct Pool {
    Device<u8> memory;
    size_t used = 0;
    explicit Pool(size_t bytes) : memory(bytes) {
        // As f16 every half is a number from 2^-7 to 2^-6: scales are tame, codes are what they are.
        fill_random<<<2048, 256>>>((u32*)memory.at, bytes / 4, 7, 0x03ff03ff, 0x20002000);
        CHECK(cudaDeviceSynchronize());
    }
    u8* take(size_t bytes) {
        u8* at = memory.at + used;
        used += (bytes + 255) / 256 * 256;
        if (used > memory.count) printf("FAILED: the pool is too small\n"), exit(1);
        return at;
    }
    Matrix matrix(const Kind& k, u32 rows, u32 columns) {
        size_t groups = (size_t)padded_rows(rows) * columns / 32, blocks = (size_t)padded_rows(rows) * (columns / 256);
        Matrix m = {take(groups * k.codes),
                    take(groups * k.high),
                    take(groups * k.scales),
                    take(blocks * k.supers),
                    nullptr,
                    rows,
                    columns,
                    k.format,
                    1,
                    {0, 0}};
        if (k.format == TERNARY) m.scales = k.one_scale ? nullptr : m.supers;
        return m;
    }
};

// One shape, over copies of the matrix that do not fit the cache.
static void bench_shape(Bench& b, const Kind& kind, u32 rows, u32 columns, bool quantized_input) {
    size_t bytes = row_bytes(kind, columns) * rows;
    u32 copies = std::min<size_t>(200, std::max<size_t>(2, (400u << 20) / bytes + 1));
    Pool pool(copies * (bytes + (size_t)64 * columns + 4096));
    bool wide = rows == 17920, head = rows > 100000;
    std::vector<Matrix> m, second;
    for (u32 i = 0; i < copies; i++) {
        m.push_back(pool.matrix(kind, wide ? rows / 2 : rows, columns));
        if (wide) second.push_back(pool.matrix(kind, rows / 2, columns));
    }
    TestVector x(columns, true, kind.format == TERNARY);
    Device<float> y(rows);
    Device<Partial> partials(rows / 64 + 1);
    Device<u8> codes(std::max(rows, columns));
    Device<float2> groups(std::max(rows, columns) / 32);
    CHECK(cudaMemset(codes.at, 3, codes.count));
    CHECK(cudaMemset(groups.at, 0, groups.count * 8));
    const u32 threads = project_threads(columns);
    const Entries kernels = entries(m[0]);
    printf("%-12s %6ux%-5u %7.2f MB:", kind.name, rows, columns, bytes * 1e-6);
    double best = 1e9;
    auto measure = [&](const char* name, const std::function<void(u32)>& f) {
        double us[2];
        for (int pdl = 0; pdl < 2; pdl++) {
            b.pdl = pdl;
            us[pdl] = b.graph([&] {
                for (u32 i = 0; i < std::max(copies, 20u); i++) f(i % copies);
            }) / std::max(copies, 20u);
            best = std::min(best, us[pdl]);
        }
        printf("  %s %.2f|%.2f", name, us[0], us[1]);
    };
    char name[64];
    for (u32 per : {1u, 2u, 3u}) {
        const u32 rows_each = wide || head ? 64 : PROJECT_ROWS, units = (rows + rows_each - 1) / rows_each;
        const u32 blocks = std::min(units, per * b.multiprocessors);
        if (per > 1 && blocks < per * b.multiprocessors && blocks <= (per - 1) * b.multiprocessors) continue;
        const bool deep = head && per == 1; // as a model's head has it
        const u32 bytes = deep ? bytes_here(columns, 8, kind.format, false, 4)
                               : bytes_here(columns, wide || head ? 8 : PROJECT_TILES, kind.format, blocks == units);
        snprintf(name, sizeof name, deep ? "deep x%u" : "x%u", per);
        measure(name, [&](u32 i) {
            if (wide)
                b.launch(kernels.gate_up, blocks, threads, bytes, false,
                         GateUp{x.device_x.at,
                                x.device_norm.at,
                                m[i],
                                second[i],
                                nullptr,
                                {codes.at, groups.at},
                                1e-6f,
                                0});
            else if (head)
                b.launch(kernels.head, blocks, threads, bytes, false,
                         Head{x.device_x.at, x.device_norm.at, m[i], y.at, partials.at, 1e-6f, 0});
            else
                b.launch(kernels.project, blocks, threads, bytes, false,
                         Project{quantized_input ? nullptr : x.device_x.at,
                                 {codes.at, groups.at},
                                 quantized_input ? nullptr : x.device_norm.at,
                                 y.at,
                                 {m[i], {}, {}},
                                 1,
                                 0,
                                 1e-6f,
                                 0});
        });
    }
    printf("  best %.2f us %.0f GB/s %.0f%%\n", best, bytes / best * 1e-3, bytes / best * 1e-3 / b.read_rate * 100);
    fflush(stdout);
}

// The launches of a token of Qwen2.5-1.5B (28 layers, 12 query heads, 2 kv heads of 128, hidden 1536, 8960, 151936).
struct Skeleton {
    static const u32 LAYERS = 28, HIDDEN = 1536, INNER = 8960, VOCAB = 151936, CONTEXT = 4224, DIM = 128, QUERY = 12,
                     KV = 2;
    struct Choice { // blocks a multiprocessor at the most
        u32 project, gate_up, head;
    };
    Bench& b;
    Pool pool{1100u << 20};
    std::vector<Matrix> q, k, v, output, gate, up, down;
    Matrix embedding;
    Device<float> residual{HIDDEN}, norm{HIDDEN}, qkv{2048}, attended{HIDDEN}, logits{VOCAB},
        bias{2048};
    Device<float> partials;
    Device<u8> codes{INNER};
    Device<float2> groups{INNER / 32}, rope{(size_t)CONTEXT * 64};
    Device<u16> cache{(size_t)LAYERS * 2 * KV * CONTEXT * DIM};
    Device<u32> counters;
    Device<State> state{1};
    Device<Partial> bests{(VOCAB + 63) / 64};
    u32 parts = (QUERY / KV + ATTENTION_HEADS - 1) / ATTENTION_HEADS, lines = KV * parts,
        splits = attention_splits(lines);

    explicit Skeleton(Bench& b) : b(b), partials((size_t)128 * QUERY * (DIM + 2)), counters(std::vector<u32>(64, 0)) {
        const Kind& kind = KINDS[0];
        embedding = pool.matrix(kind, VOCAB, HIDDEN);
        for (u32 i = 0; i < LAYERS; i++) {
            q.push_back(pool.matrix(kind, 1536, HIDDEN)), k.push_back(pool.matrix(kind, 256, HIDDEN));
            v.push_back(pool.matrix(kind, 256, HIDDEN)), output.push_back(pool.matrix(kind, HIDDEN, 1536));
            gate.push_back(pool.matrix(kind, INNER, HIDDEN)), up.push_back(pool.matrix(kind, INNER, HIDDEN));
            down.push_back(pool.matrix(kind, HIDDEN, INNER));
        }
        CHECK(cudaMemset(cache.at, 0x11, cache.count * 2));
        CHECK(cudaMemset(rope.at, 0, rope.count * 8));
        norm.set(std::vector<float>(HIDDEN, 0.01f)), bias.set(std::vector<float>(2048, 0.1f));
        for (auto* m : {&q, &k, &v})
            for (Matrix& matrix : *m) matrix.bias = bias.at;
    }

    // `skip`: 1 qkv, 2 attention, 3 output, 4 gate and up, 5 down, 6 head, 7 embedding, 8 finish.
    double token(const Choice& c, u32 position, u32 skip = 0) {
        state.set({State{1, position, 0, 0, 0, 0}});
        const u32 many = b.multiprocessors;
        auto project = [&](const Project& p, u32 columns, bool skipped) {
            u32 units = 0;
            for (u32 i = 0; i < p.matrices; i++) units += (p.matrix[i].rows + PROJECT_ROWS - 1) / PROJECT_ROWS;
            const u32 blocks = std::min(units, c.project * many);
            if (!skipped)
                b.launch(decode_project_q4_0, blocks, project_threads(columns),
                         bytes_here(columns, PROJECT_TILES, Q4_0, blocks == units), false, p);
        };
        return b.graph([&] {
            if (skip != 7) b.launch(decode_embed, 1, 256, 0, true, (const State*)state.at, embedding, residual.at);
            for (u32 i = 0; i < LAYERS; i++) {
                u16* keys = cache.at + (size_t)i * 2 * KV * CONTEXT * DIM;
                project(Project{residual.at, {0, 0}, norm.at, qkv.at, {q[i], k[i], v[i]}, 3, 0, 1e-6f, 0},
                        HIDDEN, skip == 1);
                if (skip != 2)
                    b.launch(decode_attention_128, dim3(splits, lines), attention_threads(DIM),
                             attention_bytes(DIM, capability()), false,
                             Attention{state.at,
                                       qkv.at,
                                       qkv.at + 1536,
                                       qkv.at + 1792,
                                       nullptr,
                                       nullptr,
                                       rope.at,
                                       keys,
                                       keys + (size_t)KV * CONTEXT * DIM,
                                       partials.at,
                                       counters.at,
                                       attended.at,
                                       QUERY,
                                       KV,
                                       DIM,
                                       CONTEXT,
                                       64,
                                       0,
                                       1e-6f,
                                       0});
                project(Project{attended.at, {0, 0}, nullptr, residual.at, {output[i], {}, {}}, 1, 1, 1e-6f, 0}, 1536,
                        skip == 3);
                if (skip != 4)
                    b.launch(decode_gate_up_q4_0, std::min(INNER / 32, c.gate_up * many), project_threads(HIDDEN),
                             bytes_here(HIDDEN, 8, Q4_0), false,
                             GateUp{residual.at,
                                    norm.at,
                                    gate[i],
                                    up[i],
                                    nullptr,
                                    {codes.at, groups.at},
                                    1e-6f,
                                    0});
                project(Project{nullptr,
                                {codes.at, groups.at},
                                nullptr,
                                residual.at,
                                {down[i], {}, {}},
                                1,
                                1,
                                1e-6f,
                                0},
                        INNER, skip == 5);
            }
            if (skip != 6)
                b.launch(decode_head_q4_0, std::min((VOCAB + 63) / 64, c.head * many), project_threads(HIDDEN),
                         bytes_here(HIDDEN, 8, Q4_0, false, 4), false,
                         Head{residual.at, norm.at, embedding, logits.at, bests.at, 1e-6f, 0});
            if (skip != 8)
                b.launch(decode_finish, 1, FINISH_THREADS, 0, false, state.at, (State*)nullptr,
                         (const Partial*)bests.at, (VOCAB + 63) / 64);
        });
    }
};

static void run_bench() {
    Bench b;
    cudaDeviceProp device;
    CHECK(cudaGetDeviceProperties(&device, 0));
    CHECK(cudaStreamCreate(&b.stream));
    b.multiprocessors = device.multiProcessorCount;
    printf("\n%s, %d multiprocessors, L2 %d MB; %u warps at the most share the columns\n", device.name,
           b.multiprocessors, device.l2CacheSize >> 20, PROJECT_WARPS);
    {
        Pool pool(1u << 30);
        Device<u32> out(1);
        double us = b.graph([&] {
            read_all<<<16 * b.multiprocessors, 1024, 0, b.stream>>>((uint4*)pool.memory.at, (1u << 30) / 16, out.at);
        });
        b.read_rate = (1u << 30) / us * 1e-3;
        printf("reading 1 GiB: %.0f GB/s\n", b.read_rate);
    }
    printf(
        "us a launch in a chain, plain edges|programmatic edges; x: blocks a multiprocessor at the most\n");
    const u32 SHAPES[][2] = {{1536, 1536}, {2048, 1536}, {17920, 1536}, {1536, 8960}, {151936, 1536}};
    for (auto& shape : SHAPES) bench_shape(b, KINDS[0], shape[0], shape[1], shape[1] == 8960);
    bench_shape(b, KINDS[0], 1536, 8960, false);
    for (const Kind& kind : KINDS)
        if (kind.format != Q4_0)
            bench_shape(b, kind, 1536, 8960, kind.format != TERNARY), bench_shape(b, kind, 17920, 1536, false);
    Skeleton s(b);
    const Skeleton::Choice usual = {1, 2, 1};
    printf("a token of 1.5B Q4_0, us (programmatic edges; without them):\n");
    for (u32 position : {0u, 1024u, 4096u}) {
        b.pdl = true;
        double with = s.token(usual, position);
        b.pdl = false;
        printf("  position %-5u %7.1f  %7.1f\n", position, with, s.token(usual, position));
    }
    b.pdl = true;
    printf("each kind left out, positions 0, 1024, 4096:\n");
    const char* NAMES[] = {"", "qkv", "attention", "output", "gate and up", "down", "head", "embedding", "end"};
    double all[3] = {s.token(usual, 0), s.token(usual, 1024), s.token(usual, 4096)};
    for (u32 skip = 1; skip <= 8; skip++)
        printf("  %-12s %7.1f %7.1f %7.1f\n", NAMES[skip], all[0] - s.token(usual, 0, skip),
               all[1] - s.token(usual, 1024, skip), all[2] - s.token(usual, 4096, skip));
    printf("choices, position 128 (usual: projections x1, gate and up x2, head x1):\n");
    auto choice = [&](const char* name, Skeleton::Choice c) { printf("  %s %.1f;", name, s.token(c, 128)); };
    choice("usual", usual), choice("projections x2", {2, 2, 1});
    choice("gate_up x1", {1, 1, 1}), choice("gate_up x3", {1, 3, 1}), choice("head x2", {1, 2, 2});
    for (u32 splits : {8u, 16u, 32u, 64u, 128u}) {
        s.splits = splits;
        printf("\n  %u splits: %.1f at 128, %.1f at 1024, %.1f at 4096", splits, s.token(usual, 128),
               s.token(usual, 1024), s.token(usual, 4096));
    }
    printf("\n");
}
