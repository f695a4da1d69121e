// What prefill_check measures: every GEMM of Qwen2.5-1.5B in each tile shape, attention, and all of its 28
// layers.

// Bytes that are codes of any format, and halves that are small scales.
__global__ void fill_codes(u32* p, size_t count) {
    for (size_t i = blockIdx.x * 256 + threadIdx.x; i < count; i += gridDim.x * 256)
        p[i] = (u32)i * 2654435761u ^ (u32)(i >> 7) * 40503u;
}
__global__ void fill_halves(u32* p, size_t count, u32 value) {
    for (size_t i = blockIdx.x * 256 + threadIdx.x; i < count; i += gridDim.x * 256) p[i] = value;
}

static u32* filled(size_t bytes, u32 halves) {
    u32* p;
    CUDA(cudaMalloc(&p, bytes));
    if (halves)
        fill_halves<<<512, 256>>>(p, bytes / 4, halves);
    else
        fill_codes<<<512, 256>>>(p, bytes / 4);
    return p;
}

static Matrix bench_matrix(u32 format, u32 rows, u32 columns) {
    Matrix m = {};
    size_t groups = (size_t)rows * (columns / 32), scale = 0x1c001c00;  // 2^-8
    m.codes = (const u8*)filled(groups * Weights::code_bytes(format), 0);
    if (Weights::high_bytes(format)) m.high = (const u8*)filled(groups * Weights::high_bytes(format), 0);
    m.scales = (const u8*)filled(format == Q4_K || format == Q5_K ? groups * 2 : groups * 4, (u32)scale);
    if (format == Q6_K) m.supers = (const u8*)filled(groups / 4, (u32)scale);
    m.rows = rows, m.columns = columns, m.format = format, m.scale = 1;
    return m;
}

// Milliseconds of `what`, the median of some.
static double milliseconds(int repeats, const std::function<void(int)>& what) {
    static cudaEvent_t from = nullptr, to = nullptr;
    if (!from) {
        CUDA(cudaEventCreate(&from));
        CUDA(cudaEventCreate(&to));
    }
    std::vector<float> times;
    CUDA(cudaDeviceSynchronize());
    what(0);
    for (int i = 0; i < repeats; i++) {
        CUDA(cudaEventRecord(from, g_stream));
        what(i + 1);
        CUDA(cudaEventRecord(to, g_stream));
        CUDA(cudaEventSynchronize(to));
        float ms;
        CUDA(cudaEventElapsedTime(&ms, from, to));
        times.push_back(ms);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

struct Model {
    u32 layers = 28, hidden = 1536, ffn = 8960, query_heads = 12, kv_heads = 2, head_dim = 128;
    std::vector<PrefillGemm> qkv, output, gate_up, down;  // a layer each

    Model(u32 format, u32 layers) : layers(layers) {
        for (u32 l = 0; l < layers; l++) {
            PrefillGemm g = {};
            g.matrices[0] = bench_matrix(format, 1536, hidden), g.matrices[1] = bench_matrix(format, 256, hidden);
            g.matrices[2] = bench_matrix(format, 256, hidden), g.count = 3, g.mode = STORE;
            qkv.push_back(g);
            g = {}, g.matrices[0] = bench_matrix(format, hidden, 1536), g.count = 1, g.mode = ADD;
            output.push_back(g);
            g = {}, g.matrices[0] = bench_matrix(format, ffn, hidden),
            g.matrices[1] = bench_matrix(format, ffn, hidden);
            g.count = 2, g.mode = GATE_UP;
            gate_up.push_back(g);
            g = {}, g.matrices[0] = bench_matrix(format, hidden, ffn), g.count = 1, g.mode = ADD;
            down.push_back(g);
        }
    }
    ~Model() {
        for (auto* all : {&qkv, &output, &gate_up, &down})
            for (auto& g : *all)
                for (auto& m : g.matrices)
                    cudaFree((void*)m.codes), cudaFree((void*)m.high), cudaFree((void*)m.scales),
                        cudaFree((void*)m.supers);
    }
};

static void bench_format(u32 format, u32 layers, u32 context) {
    Model model(format, layers);
    auto variants = product_variants();
    const u32 most = 2048;
    std::vector<float> ones(most, 1.0f);
    Gpu<float> x((size_t)most * 1536), qkv((size_t)most * 2048), activated((size_t)most * 8960), row_scale(ones);
    Gpu<u16> xh((size_t)most * 8960), attended((size_t)most * 1536), q((size_t)most * 1536);
    Gpu<u16> activated_half((size_t)most * 8960);
    Gpu<u32> turns(std::vector<u32>(16384, 0));
    Gpu<u16> keys((size_t)context * 256), values((size_t)context * 256);
    Gpu<float> norm(std::vector<float>(1536, 1.0f));
    std::vector<float2> angles((size_t)context * 64, make_float2(0.6f, 0.8f));
    Gpu<float2> table(angles);
    fill_halves<<<512, 256>>>((u32*)xh.p, xh.count / 2, 0x30003000);
    fill_halves<<<512, 256>>>((u32*)attended.p, attended.count / 2, 0x30003000);
    fill_halves<<<512, 256>>>((u32*)keys.p, keys.count / 2, 0x30003000);
    fill_halves<<<512, 256>>>((u32*)values.p, values.count / 2, 0x30003000);
    fill_halves<<<512, 256>>>((u32*)x.p, x.count, 0x3f800000);

    for (u32 tokens : {16u, 32u, 64u, 512u, 2048u}) {
        if (format != Q4_0 && tokens != 16 && tokens < 512) continue;
        auto fit = [&](const PrefillGemm& from, const u16* in, u32 columns, float* out, u32 y_stride) {
            PrefillGemm g = from;
            g.x = (const __half*)in, g.row_scale = row_scale.p, g.y = out, g.tokens = tokens, g.x_stride = columns,
            g.y_stride = y_stride;
            g.turns = turns.p, g.x_scale = 1, g.y_scale = 0.0625f;
            if (g.mode == GATE_UP) g.y_half = (__half*)activated_half.p;
            return g;
        };
        auto qkv_of = [&](u32 l) { return fit(model.qkv[l], xh.p, 1536, qkv.p, 2048); };
        auto output_of = [&](u32 l) { return fit(model.output[l], attended.p, 1536, x.p, 1536); };
        auto gate_up_of = [&](u32 l) { return fit(model.gate_up[l], xh.p, 1536, activated.p, 8960); };
        auto down_of = [&](u32 l) { return fit(model.down[l], activated_half.p, 8960, x.p, 1536); };
        struct Op {
            const char* name;
            std::function<PrefillGemm(u32)> of;
            double flops;
            size_t best;
            double best_ms;
            bool in_parts;
        } ops[] = {{"qkv", qkv_of, 2.0 * 2048 * 1536 * tokens, 0, 1e9, false},
                   {"output", output_of, 2.0 * 1536 * 1536 * tokens, 0, 1e9, false},
                   {"gate_up", gate_up_of, 2.0 * 17920 * 1536 * tokens, 0, 1e9, false},
                   {"down", down_of, 2.0 * 1536 * 8960 * tokens, 0, 1e9, false}};
        g_pdl = false;
        double gemm_ms = 0, gemm_flops = 0;
        for (auto& op : ops) {
            printf("%s %u %-8s us (TFLOP/s):", name(format).c_str(), tokens, op.name);
            for (size_t v = 0; v < variants.size(); v++) {
                // The few that are meant for so many tokens.
                if (tokens > 64 ? variants[v].tokens < 64 : variants[v].tokens > 64) continue;
                const u32 each = 8;
                for (bool in_parts : {false, true}) {
                    PrefillGemm first = op.of(0);
                    if (in_parts && gemm_parts(first.mode, first.matrices[0].columns) == 1) continue;
                    double ms = milliseconds(5,
                                             [&](int i) {
                                                 for (u32 l = 0; l < each; l++)
                                                     run(variants[v], op.of((i * each + l) % layers), in_parts);
                                             }) /
                                each;
                    printf("  %s%s %.1f (%.0f)", variants[v].name, in_parts ? " in parts" : "", ms * 1e3,
                           op.flops / ms / 1e9);
                    if (ms < op.best_ms) op.best_ms = ms, op.best = v, op.in_parts = in_parts;
                }
            }
            printf("\n");
            gemm_ms += op.best_ms, gemm_flops += op.flops;
        }
        printf("%s %u all GEMMs of a layer: %.1f us, %.0f TFLOP/s\n", name(format).c_str(), tokens, gemm_ms * 1e3,
               gemm_flops / gemm_ms / 1e9);
        PrefillRows hidden = {x.p, nullptr, norm.p, (__half*)xh.p, row_scale.p, 1536, 1536, 1536, 1e-6f, 0, 0};
        PrefillRows ffn = {activated.p, nullptr, nullptr, (__half*)xh.p, row_scale.p, 8960, 8960, 8960, 1e-6f, 0, 0};
        PrefillRope rope = {
            qkv.p, nullptr, nullptr, table.p, (__half*)q.p, (__half*)keys.p, (__half*)values.p, tokens, 0, 2048,
            12,    2,       128,     64,      context,      1e-6f,           0.1275f,           0,      0};
        PrefillAttention attention = {
            (__half*)q.p, (__half*)keys.p, (__half*)values.p, (__half*)attended.p, nullptr, tokens, 0, 12, 2, context,
            1536};
        auto norm_rows = [&] { launch(prefill_rows, dim3(tokens), rows_threads(1536), 0, hidden); };
        auto ffn_rows = [&] { launch(prefill_rows, dim3(tokens), rows_threads(8960), 0, ffn); };
        auto append = [&] { launch(prefill_rope_append, dim3(tokens * 16 / 8), 256, 0, rope); };
        auto attend_all = [&] { attend(128, attention); };
        auto many = [&](const std::function<void()>& what) {
            return milliseconds(5,
                                [&](int) {
                                    for (int i = 0; i < 16; i++) what();
                                }) /
                   16 * 1e3;
        };
        printf("%s %u us: rows 1536 %.1f, rows 8960 %.1f, rope %.1f, attention %.1f\n", name(format).c_str(), tokens,
               many(norm_rows), many(ffn_rows), many(append), many(attend_all));
        auto all_layers = [&] {
            for (u32 l = 0; l < 28; l++) {
                u32 w = l % layers;
                auto gemm_of = [&](int op, const PrefillGemm& g) {
                    run(variants[ops[op].best], g, ops[op].in_parts);
                };
                norm_rows(), gemm_of(0, qkv_of(w)), append(), attend_all(), gemm_of(1, output_of(w));
                norm_rows(), gemm_of(2, gate_up_of(w)), gemm_of(3, down_of(w));
            }
        };
        for (bool pdl : {false, true}) {
            g_pdl = pdl;
            double host = 0;
            double ms = milliseconds(5, [&](int) {
                auto from = std::chrono::steady_clock::now();
                all_layers();
                host = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - from).count();
            });
            printf("%s %u tokens, 28 layers%s: %.2f ms, %.0f tok/s; launched in %.2f ms\n", name(format).c_str(),
                   tokens, pdl ? ", PDL" : "", ms, tokens / ms * 1e3, host);
            cudaGraph_t graph;
            cudaGraphExec_t executable;
            CUDA(cudaStreamBeginCapture(g_stream, cudaStreamCaptureModeThreadLocal));
            all_layers();
            CUDA(cudaStreamEndCapture(g_stream, &graph));
            CUDA(cudaGraphInstantiate(&executable, graph, 0));
            ms = milliseconds(5, [&](int) { CUDA(cudaGraphLaunch(executable, g_stream)); });
            printf("%s %u tokens, 28 layers in a graph%s: %.2f ms, %.0f tok/s\n", name(format).c_str(), tokens,
                   pdl ? ", PDL" : "", ms, tokens / ms * 1e3);
            CUDA(cudaGraphExecDestroy(executable));
            CUDA(cudaGraphDestroy(graph));
        }
        g_pdl = false;
    }
    if (format != Q4_0) return;
    g_pdl = false;
    for (u32 end : {512u, 2048u, 8192u, 32768u}) {
        u32 tokens = std::min(end, 2048u), position = end - tokens;
        for (u32 chunk : {512u, 2048u}) {
            if (chunk > tokens) continue;
            double flops = 0;
            for (u32 t = 0; t < tokens; t++) flops += 4.0 * 12 * 128 * (position + t + 1);
            double ms = milliseconds(3, [&](int) {
                for (u32 from = 0; from < tokens; from += chunk)
                    attend(128, {(__half*)q.p, (__half*)keys.p, (__half*)values.p, (__half*)attended.p, nullptr,
                                 chunk, position + from, 12, 2, context, 1536});
            });
            printf("attention of the last %u tokens of %u in chunks of %u: %.1f us, %.0f TFLOP/s\n", tokens, end,
                   chunk, ms * 1e3, flops / ms / 1e9);
        }
    }
}

static void bench() {
    cudaDeviceProp device;
    CUDA(cudaGetDeviceProperties(&device, 0));
    printf("%s, %d SMs\n", device.name, device.multiProcessorCount);
    bench_format(Q4_0, 28, 32768);
    for (u32 format : {Q4_K, Q6_K, Q8_0}) bench_format(format, 4, 2048);
}
