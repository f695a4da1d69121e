// Checks every prefill kernel against plain arithmetic in double precision, then measures them.
//   nvcc -O3 -arch=sm_90 -std=c++17 prefill_check.cu -o prefill_check && ./prefill_check [small] [bench]
// `small`: few and small shapes, for compute-sanitizer. `bench`: measures; with `only` it checks nothing before. Exit
// status 0: every check passed. Results are the same whatever the machine, times of course are not.
#include "prefill_tools.cuh"

// ---- GEMM

struct Variant {
    const char* name;
    void (*kernel)(PrefillGemm);
    u32 rows, tokens, threads, stages;
};

template <class S>
static Variant variant(const char* name, void (*kernel)(PrefillGemm)) {
    return {name, kernel, S::ROWS, S::TOKENS, S::THREADS, S::STAGES};
}

static std::vector<Variant> product_variants() {
    return {variant<Shape128x64>("128x64", prefill_gemm_128x64), variant<Shape64x64>("64x64", prefill_gemm_64x64),
            variant<Shape64x16>("64x16", prefill_gemm_64x16), variant<Shape32x16>("32x16", prefill_gemm_32x16)};
}

static void run(const Variant& v, const PrefillGemm& p, bool in_parts = false) {
    u32 tile_bytes = 0, blocks = 0;
    for (u32 m = 0; m < p.count; m++) {
        tile_bytes = std::max(tile_bytes, gemm_tile_bytes(p.matrices[m].format));
        blocks += (p.matrices[m].rows + v.rows - 1) / v.rows;
    }
    if (p.mode == GATE_UP) blocks = (p.matrices[0].rows + v.rows / 2 - 1) / (v.rows / 2);
    u32 parts = in_parts ? gemm_parts(p.mode, p.matrices[0].columns) : 1;
    launch(v.kernel, dim3((p.tokens + v.tokens - 1) / v.tokens, blocks, parts), v.threads,
           gemm_shared(v.rows, v.tokens, v.stages, tile_bytes), p);
}

struct Expected {
    std::vector<double> sum, tolerance;  // (tokens, rows)
};

// x: (tokens, columns), exact; x_integers: sums are exact too.
static Expected product(const Weights& w, const std::vector<float>& x, const std::vector<float>& row_scale,
                        u32 tokens) {
    Expected out;
    out.sum.resize((size_t)tokens * w.rows), out.tolerance.resize((size_t)tokens * w.rows);
    parallel(tokens, [&](u32 t) {
        for (u32 r = 0; r < w.rows; r++) {
            double sum = 0, squares = 0, all = 0;
            const double *values = &w.values[(size_t)r * w.columns],
                         *magnitudes = &w.magnitudes[(size_t)r * w.columns];
            const float* row = &x[(size_t)t * w.columns];
            for (u32 c = 0; c < w.columns; c++) {
                sum += values[c] * row[c];
                double term = magnitudes[c] * row[c];
                squares += term * term, all += std::fabs(term);
            }
            double scale = row_scale.empty() ? 1.0 : row_scale[t], bias = w.bias.empty() ? 0.0 : w.bias[r];
            size_t at = (size_t)t * w.rows + r;
            out.sum[at] = sum * scale + bias;
            // A weight and its scale are each rounded to 11 bits, 6 times the deviation of independent errors of at
            // most 2^-11, and f32 sums.
            double exact = w.format == TERNARY ? 0 : 6 * std::sqrt(squares) / 2048;
            out.tolerance[at] = scale * (exact + all * 2e-6) + std::fabs(bias) * 2e-7 + 1e-30;
        }
    });
    return out;
}

static double silu_mul(double g, double u) { return g / (1 + std::exp(-g)) * u; }

static void check_gemm(u32 format, bool with_scales, u32 tokens, u32 rows, u32 columns,
                       const std::vector<Variant>& variants) {
    Weights a(format, rows, columns, true, with_scales), b(format, rows, columns, false, with_scales);
    const bool exact = format == TERNARY && !with_scales;
    auto x_of = [](u32 columns) { return (columns + 127) / 128 * 128; };
    u32 x_stride = x_of(columns), y_stride = 2 * rows + (rows % 4 == 0 ? 4 : 3);
    std::vector<float> x((size_t)tokens * columns), row_scale(tokens);
    std::vector<u16> x16((size_t)tokens * x_stride, 0);
    for (auto& s : row_scale) s = exact ? 0.013f : std::ldexp(1.0f, (int)(random_u32() % 5) - 12);
    for (u32 t = 0; t < tokens; t++)
        for (u32 c = 0; c < columns; c++) {
            float value = exact ? (float)((int)(random_u32() % 255) - 127) : uniform() * 1000.0f;
            u16 bits = half_bits(value);
            x[(size_t)t * columns + c] = from_half(bits);
            x16[(size_t)t * x_stride + stored(c)] = bits;
        }
    Expected ea = product(a, x, row_scale, tokens), eb = product(b, x, row_scale, tokens);
    Gpu<u16> d_x(x16);
    Gpu<float> d_scale(row_scale), d_y((size_t)tokens * y_stride);
    Gpu<u16> d_half((size_t)tokens * x_of(rows));
    Gpu<u32> d_turns(std::vector<u32>(((tokens + 15) / 16) * ((rows + 31) / 32), 0));
    std::vector<float> first[3];
    for (const auto& v : variants) {
        for (u32 mode = 0; mode < 3; mode++) {
            std::string what = name(format) + (exact ? " one scale" : "") + " gemm " + v.name + " mode " +
                               std::to_string(mode) + " " + std::to_string(tokens) + "x" + std::to_string(rows) +
                               "x" + std::to_string(columns);
            PrefillGemm p = {};
            p.matrices[0] = a.matrix(), p.matrices[1] = b.matrix(), p.count = mode == ADD ? 1 : 2;
            p.x = (const __half*)d_x.p, p.row_scale = d_scale.p, p.y = d_y.p, p.turns = d_turns.p, p.x_scale = NAN,
            p.y_scale = 0.0625f;
            p.tokens = tokens, p.x_stride = x_stride, p.y_stride = y_stride, p.mode = mode;
            p.activation = columns % 64 == 0;
            d_y.poison();
            std::vector<float> before((size_t)tokens * y_stride);
            if (mode == ADD) {
                memset((void*)before.data(), 0xff, before.size() * 4);
                for (u32 t = 0; t < tokens; t++)
                    for (u32 r = 0; r < rows; r++) before[(size_t)t * y_stride + r] = uniform();
                if (!first[ADD].empty())  // The same for all variants.
                    before = first[ADD];
                else
                    first[ADD] = before;
                CUDA(cudaMemcpy(d_y.p, before.data(), before.size() * 4, cudaMemcpyHostToDevice));
            }
            run(v, p);
            std::vector<float> y = d_y.read();
            double worst = 0;
            bool ok = true;
            for (u32 t = 0; t < tokens && ok; t++)
                for (u32 o = 0; o < y_stride; o++) {
                    float found = y[(size_t)t * y_stride + o];
                    u32 outputs = mode == STORE ? 2 * rows : rows;
                    if (o >= outputs) {
                        if (!poisoned(found)) ok = false, worst = -1;
                        continue;
                    }
                    size_t at = (size_t)t * rows + o % rows;
                    double expected, tolerance;
                    if (mode == GATE_UP) {
                        double g = ea.sum[at], u = eb.sum[at], tg = ea.tolerance[at], tu = eb.tolerance[at];
                        if (p.activation == 0) {
                            expected = silu_mul(g, u), tolerance = 1.2 * tg * std::fabs(u) + tu * (std::fabs(g) + tg);
                        } else {
                            double positive = std::max(g, 0.0);
                            expected = positive * positive * u;
                            tolerance = (2 * positive + tg) * tg * (std::fabs(u) + tu) +
                                        (positive + tg) * (positive + tg) * tu;
                        }
                        tolerance = 1.1 * tolerance + std::fabs(expected) * 4e-6 + 1e-12;
                    } else {
                        const Expected& e = mode == STORE && o >= rows ? eb : ea;
                        expected = e.sum[at] + (mode == ADD ? before[(size_t)t * y_stride + o] : 0),
                        tolerance = e.tolerance[at];
                        if (mode == ADD) tolerance += std::fabs(expected) * 2e-7 + 2e-7;
                    }
                    double error = std::fabs(found - expected) / tolerance;
                    if (!(error <= worst)) worst = error;
                    if (!(error <= 1)) ok = false;
                }
            verdict(ok, what, worst);
            // The same bits from every shape, and from any part of the tokens.
            std::vector<float>& same = first[mode];
            if (mode == ADD && gemm_parts(ADD, columns) > 1) {
                CUDA(cudaMemcpy(d_y.p, before.data(), before.size() * 4, cudaMemcpyHostToDevice));
                run(v, p, true);
                std::vector<float> parts = d_y.read();
                bool zeros = true;
                for (u32 turn : d_turns.read()) zeros &= turn == 0;
                verdict(zeros && memcmp(parts.data(), y.data(), y.size() * 4) == 0,
                        what + ": bits of thread blocks in turn", 0);
            }
            if (mode == GATE_UP && rows % 2 == 0) {
                PrefillGemm halved = p;
                halved.y_half = (__half*)d_half.p, halved.y = nullptr, halved.y_stride = x_of(rows);
                d_half.poison();
                run(v, halved);
                std::vector<u16> half = d_half.read();
                bool equal = true;
                for (u32 t = 0; t < tokens; t++)
                    for (u32 c = 0; c < x_of(rows); c++) {
                        u16 found = half[(size_t)t * x_of(rows) + stored(c)];
                        equal &= found == (c < rows ? half_bits(y[(size_t)t * y_stride + c] * 0.0625f) : 0xffff);
                    }
                verdict(equal, what + ": halves", 0);
            }
            if (mode != ADD) {
                if (same.empty())
                    same = y;
                else
                    verdict(memcmp(same.data(), y.data(), y.size() * 4) == 0, what + ": bits of another shape", 0);
                d_y.poison();
                for (u32 from = 0; from < tokens; from += 100) {
                    PrefillGemm part = p;
                    part.x += (size_t)from * x_stride, part.row_scale += from, part.y += (size_t)from * y_stride;
                    part.tokens = std::min(100u, tokens - from);
                    run(v, part);
                }
                std::vector<float> parts = d_y.read();
                verdict(memcmp(parts.data(), y.data(), y.size() * 4) == 0, what + ": bits of parts", 0);
            }
        }
    }
}

// Three matrices of different formats and rows, side by side, without row scales.
static void check_gemm_mixed(const std::vector<Variant>& variants) {
    const u32 tokens = 77, columns = 512, formats[3] = {Q4_K, Q5_K, Q6_K}, rows[3] = {200, 64, 40}, total = 304;
    Weights* w[3];
    std::vector<float> x((size_t)tokens * columns);
    std::vector<u16> x16((size_t)tokens * columns);
    for (u32 t = 0; t < tokens; t++)
        for (u32 c = 0; c < columns; c++) {
            u16 bits = half_bits(uniform());
            x[(size_t)t * columns + c] = from_half(bits), x16[(size_t)t * columns + stored(c)] = bits;
        }
    std::vector<Expected> expected;
    PrefillGemm p = {};
    for (int m = 0; m < 3; m++) {
        w[m] = new Weights(formats[m], rows[m], columns, m == 1);
        expected.push_back(product(*w[m], x, {}, tokens));
        p.matrices[m] = w[m]->matrix();
    }
    Gpu<u16> d_x(x16);
    Gpu<float> d_y((size_t)tokens * total);
    p.x = (const __half*)d_x.p, p.y = d_y.p, p.x_scale = 1, p.count = 3, p.tokens = tokens, p.x_stride = columns,
    p.y_stride = total;
    for (const auto& v : variants) {
        d_y.poison();
        run(v, p);
        std::vector<float> y = d_y.read();
        double worst = 0;
        for (u32 t = 0; t < tokens; t++)
            for (u32 o = 0, m = 0, r = 0; o < total; o++, r++) {
                if (r == rows[m]) m++, r = 0;
                size_t at = (size_t)t * rows[m] + r;
                double error = std::fabs(y[(size_t)t * total + o] - expected[m].sum[at]) / expected[m].tolerance[at];
                if (!(error <= worst)) worst = error;
            }
        verdict(worst <= 1, std::string("mixed gemm ") + v.name, worst);
    }
    for (auto* weights : w) delete weights;
}

// ---- Rows

static void check_rows(u32 columns, bool with_up, bool with_norm, bool ternary, u32 activation) {
    const u32 tokens = 5, stride = columns + 4, out_stride = (columns + 127) / 128 * 128;
    std::vector<float> x((size_t)tokens * stride), up((size_t)tokens * stride), norm(columns);
    for (auto& w : norm) w = 1 + 0.5f * uniform();
    for (u32 t = 0; t < tokens; t++)
        for (u32 c = 0; c < stride; c++) {
            float size = t == 1 ? 1e-36f : t == 2 ? 1e15f : 3.0f;
            x[(size_t)t * stride + c] = t == 3 ? 0.0f : (with_up && t == 2 ? 30.0f : size) * uniform();
            up[(size_t)t * stride + c] = uniform();
        }
    x[4 * (size_t)stride + columns / 2] = NAN;
    Gpu<float> d_x(x), d_up(up), d_norm(norm), d_scale(tokens);
    Gpu<u16> d_out((size_t)tokens * out_stride);
    PrefillRows p = {d_x.p,
                     with_up ? d_up.p : nullptr,
                     with_norm ? d_norm.p : nullptr,
                     (__half*)d_out.p,
                     d_scale.p,
                     columns,
                     stride,
                     out_stride,
                     1e-6f,
                     activation,
                     ternary};
    launch(prefill_rows, dim3(tokens), rows_threads(columns), 0, p);
    std::vector<u16> out = d_out.read();
    std::vector<float> scale = d_scale.read();
    double worst = 0;
    bool ok = std::isnan(scale[4]);
    for (u32 t = 0; t < 4; t++) {
        std::vector<double> v(columns);
        double squares = 0, most = 0;
        for (u32 c = 0; c < columns; c++) {
            double a = x[(size_t)t * stride + c], b = up[(size_t)t * stride + c];
            v[c] = !with_up ? a : activation == 0 ? silu_mul(a, b) : std::max(a, 0.0) * std::max(a, 0.0) * b;
            squares += v[c] * v[c];
        }
        double factor = with_norm ? 1 / std::sqrt(squares / columns + p.epsilon) : 1;
        for (u32 c = 0; c < columns; c++) {
            v[c] *= factor * (with_norm ? norm[c] : 1.0);
            most = std::max(most, std::fabs(v[c]));
        }
        int exponent;
        if (!ternary && std::fabs(std::frexp(scale[t], &exponent)) != 0.5) ok = false;
        if (ternary && !with_norm && !with_up) {  // To the bit, as lanes.rs has it.
            float magnitude = std::max((float)most, 1e-5f);
            if (scale[t] != magnitude / 127.0f) ok = false;
            for (u32 c = 0; c < columns; c++)
                if (from_half(out[(size_t)t * out_stride + stored(c)]) !=
                    std::nearbyintf(x[(size_t)t * stride + c] * (127.0f / magnitude)))
                    ok = false;
        }
        for (u32 c = 0; c < out_stride; c++) {
            double found = (double)from_half(out[(size_t)t * out_stride + stored(c)]) * scale[t],
                   expected = c < columns ? v[c] : 0;
            double step = ternary ? std::max(most, 1e-5) / 127 * 0.5002
                                  : std::fabs(expected) * 0.0005 + most * std::ldexp(1, -39);
            double tolerance = step + std::fabs(expected) * 1e-5 + (scale[t] < 1e-30 ? 1e-40 : 0);
            double error = std::fabs(found - expected) / (tolerance + 1e-300);
            if (c >= columns && found != 0) ok = false;
            if (!(error <= worst)) worst = error;
        }
        // Room for nothing above f16, and most of its range in use.
        if (!ternary && most > 1e-30 && !(most / scale[t] < 33000 && most / scale[t] > 16000)) ok = false;
    }
    verdict(ok && worst <= 1,
            "rows " + std::to_string(columns) + (with_up ? " up" : "") + (with_norm ? " norm" : "") +
                (ternary ? " ternary" : ""),
            worst);
}

// ---- Embedding

static void check_embed(u32 format, bool with_scales, u32 columns) {
    Weights w(format, 75, columns, false, with_scales);
    std::vector<u32> tokens = {0, 74, 7, 8, 75, 33};
    Gpu<u32> d_tokens(tokens);
    Gpu<float> d_out(tokens.size() * columns);
    launch(prefill_embed, dim3((columns + 255) / 256, (u32)tokens.size()), 256, 0,
           PrefillEmbed{w.matrix(), d_tokens.p, d_out.p});
    std::vector<float> out = d_out.read();
    bool ok = true;
    for (size_t t = 0; t < tokens.size(); t++)
        for (u32 c = 0; c < columns; c++) {
            float found = out[t * columns + c], expected;
            double magnitude;
            if (tokens[t] >= 75) {
                ok &= std::isnan(found);
                continue;
            }
            w.value(tokens[t], c, magnitude, expected);
            ok &= found == expected;
        }
    verdict(ok, name(format) + " embed " + std::to_string(columns), 0);
}

// ---- RoPE and the cache

static void check_rope(u32 head_dim, u32 pairs, bool adjacent, bool norms) {
    const u32 tokens = 9, position = 5, query_heads = 6, kv_heads = 2, capacity = 20;
    const u32 width = (query_heads + 2 * kv_heads) * head_dim, stride = width + 8;
    std::vector<float> qkv((size_t)tokens * stride), q_norm(head_dim), k_norm(head_dim);
    for (auto& x : qkv) x = 3 * uniform();
    for (auto& x : q_norm) x = 1 + 0.3f * uniform();
    for (auto& x : k_norm) x = 1 + 0.3f * uniform();
    std::vector<float2> table((size_t)capacity * pairs);
    for (u32 i = 0; i < table.size(); i++) {
        double angle = (i / pairs) * std::pow(10000.0, -2.0 * (i % pairs) / (2.0 * pairs));
        table[i] = make_float2((float)std::cos(angle), (float)std::sin(angle));
    }
    Gpu<float> d_qkv(qkv), d_q_norm(q_norm), d_k_norm(k_norm);
    Gpu<float2> d_table(table);
    Gpu<u16> d_q((size_t)tokens * query_heads * head_dim), d_k((size_t)kv_heads * capacity * head_dim),
        d_v(d_k.count);
    const float q_scale = 1.4426950408889634f / std::sqrt((float)head_dim);
    PrefillRope p = {d_qkv.p,
                     norms ? d_q_norm.p : nullptr,
                     norms ? d_k_norm.p : nullptr,
                     d_table.p,
                     (__half*)d_q.p,
                     (__half*)d_k.p,
                     (__half*)d_v.p,
                     tokens,
                     position,
                     stride,
                     query_heads,
                     kv_heads,
                     head_dim,
                     pairs,
                     capacity,
                     1e-6f,
                     q_scale,
                     adjacent,
                     0};
    u32 warps = tokens * (query_heads + 2 * kv_heads);
    launch(prefill_rope_append, dim3((warps + 7) / 8), 256, 0, p);
    std::vector<u16> q = d_q.read(), k = d_k.read(), v = d_v.read();
    double worst = 0;
    bool ok = true;
    for (u32 t = 0; t < tokens; t++)
        for (u32 h = 0; h < query_heads + 2 * kv_heads; h++) {
            const float* from = &qkv[(size_t)t * stride + h * head_dim];
            std::vector<double> x(from, from + head_dim), out;
            bool is_value = h >= query_heads + kv_heads, is_query = h < query_heads;
            if (norms && !is_value) {
                double squares = 0;
                for (double e : x) squares += e * e;
                for (u32 d = 0; d < head_dim; d++)
                    x[d] *= (is_query ? q_norm : k_norm)[d] / std::sqrt(squares / head_dim + 1e-6);
            }
            out = x;
            if (!is_value)
                for (u32 i = 0; i < pairs; i++) {
                    u32 a = adjacent ? 2 * i : i, b = adjacent ? 2 * i + 1 : i + pairs;
                    float2 cs = table[(size_t)(position + t) * pairs + i];
                    out[a] = x[a] * cs.x - x[b] * cs.y, out[b] = x[a] * cs.y + x[b] * cs.x;
                }
            for (u32 d = 0; d < head_dim; d++) {
                u16 bits = is_query ? q[((size_t)t * query_heads + h) * head_dim + d]
                           : is_value
                               ? v[((size_t)(h - query_heads - kv_heads) * capacity + position + t) * head_dim + d]
                               : k[((size_t)(h - query_heads) * capacity + position + t) * head_dim + d];
                double expected = out[d] * (is_query ? q_scale : 1),
                       error = std::fabs(from_half(bits) - expected) / (std::fabs(expected) * 5e-4 + 4e-6);
                if (!(error <= worst)) worst = error;
            }
        }
    for (u32 i = 0; i < k.size(); i++) {
        u32 at = i / head_dim % capacity;
        if ((at < position || at >= position + tokens) && (k[i] != 0xffff || v[i] != 0xffff)) ok = false;
    }
    verdict(ok && worst <= 1,
            "rope " + std::to_string(head_dim) + "/" + std::to_string(pairs) + (adjacent ? " adjacent" : "") +
                (norms ? " norms" : ""),
            worst);
}

// ---- Attention

static void (*attention_kernel(u32 head_dim))(PrefillAttention) {
    return head_dim == 64    ? prefill_attention_64
           : head_dim == 80  ? prefill_attention_80
           : head_dim == 96  ? prefill_attention_96
           : head_dim == 128 ? prefill_attention_128
                             : prefill_attention_256;
}

static void attend(u32 head_dim, const PrefillAttention& p) {
    u32 rows = p.tokens * (p.query_heads / p.kv_heads);
    launch(attention_kernel(head_dim), dim3((rows + 63) / 64, p.kv_heads), 128, attention_shared(head_dim, 2), p);
}

static void check_attention(u32 head_dim, u32 query_heads, u32 kv_heads, u32 position, u32 tokens) {
    const u32 group = query_heads / kv_heads, end = position + tokens, capacity = end + 70,
              width = query_heads * head_dim;
    const u32 out_stride = (width + 127) / 128 * 128;
    std::vector<u16> q((size_t)tokens * width), k((size_t)kv_heads * capacity * head_dim, 0xffff), v = k;
    for (auto& x : q) x = half_bits(uniform() * 4 / std::sqrt((float)head_dim));
    for (u32 h = 0; h < kv_heads; h++)
        for (u32 i = 0; i < end * head_dim; i++) {
            k[(size_t)h * capacity * head_dim + i] = half_bits(2 * uniform());
            v[(size_t)h * capacity * head_dim + i] = half_bits(uniform());
        }
    Gpu<u16> d_q(q), d_k(k), d_v(v), d_half((size_t)tokens * out_stride);
    Gpu<float> d_out((size_t)tokens * out_stride);
    PrefillAttention p = {(const __half*)d_q.p,
                          (const __half*)d_k.p,
                          (const __half*)d_v.p,
                          nullptr,
                          d_out.p,
                          tokens,
                          position,
                          query_heads,
                          kv_heads,
                          capacity,
                          out_stride};
    attend(head_dim, p);
    std::vector<float> out = d_out.read();
    std::vector<double> errors(tokens, 0);
    auto floats = [](const std::vector<u16>& from) {
        std::vector<float> to;
        for (u16 x : from) to.push_back(from_half(x));
        return to;
    };
    std::vector<float> fq = floats(q), fk = floats(k), fv = floats(v);
    parallel(tokens, [&](u32 t) {
        std::vector<double> weights(end), sums(head_dim), squares(head_dim);
        // All tokens of a short chunk, some of a long one.
        if (tokens > 64 && t % 13 != 0 && t + 3 < tokens && t > 66) return;
        for (u32 h = 0; h < query_heads; h++) {
            const float *keys = &fk[(size_t)(h / group) * capacity * head_dim],
                        *values = &fv[(size_t)(h / group) * capacity * head_dim];
            double most = -1e300, total = 0;
            for (u32 s = 0; s <= position + t; s++) {
                double score = 0;
                for (u32 d = 0; d < head_dim; d++)
                    score += (double)fq[(size_t)t * width + h * head_dim + d] * keys[(size_t)s * head_dim + d];
                weights[s] = score, most = std::max(most, score);
            }
            std::fill(sums.begin(), sums.end(), 0), std::fill(squares.begin(), squares.end(), 0);
            for (u32 s = 0; s <= position + t; s++) {
                double weight = std::exp2(weights[s] - most);
                total += weight;
                for (u32 d = 0; d < head_dim; d++) {
                    double term = weight * values[(size_t)s * head_dim + d];
                    sums[d] += term, squares[d] += term * term;
                }
            }
            for (u32 d = 0; d < head_dim; d++) {
                double expected = sums[d] / total,
                       tolerance = 6 * std::sqrt(squares[d]) / total / 2048 + std::fabs(expected) * 1e-5 + 2e-6;
                double error = std::fabs(out[(size_t)t * out_stride + h * head_dim + d] - expected) / tolerance;
                if (!(error <= errors[t])) errors[t] = error;
            }
        }
    });
    double worst = 0;
    for (double e : errors)
        if (!(e <= worst)) worst = e;
    bool ok = worst <= 1;
    for (u32 t = 0; t < tokens; t++)
        for (u32 c = width; c < out_stride; c++) ok &= poisoned(out[(size_t)t * out_stride + c]);
    std::string what = "attention " + std::to_string(head_dim) + " heads " + std::to_string(query_heads) + "/" +
                       std::to_string(kv_heads) + " at " + std::to_string(position) + " + " + std::to_string(tokens);
    verdict(ok, what, worst);
    // Halves, for the next GEMM.
    PrefillAttention halved = p;
    halved.out = nullptr, halved.out_half = (__half*)d_half.p;
    attend(head_dim, halved);
    std::vector<u16> half = d_half.read();
    ok = true;
    for (u32 t = 0; t < tokens; t++)
        for (u32 c = 0; c < out_stride; c++) {
            u16 found = half[(size_t)t * out_stride + stored(c)];
            ok &= found == (c < width ? half_bits(out[(size_t)t * out_stride + c]) : 0xffff);
        }
    verdict(ok, what + ": halves", 0);
    // The same bits from any cut.
    for (u32 cut : {100u, 33u}) {
        if (tokens <= cut) continue;
        d_out.poison();
        for (u32 from = 0; from < tokens; from += cut) {
            PrefillAttention part = p;
            part.q += (size_t)from * width, part.out += (size_t)from * out_stride;
            part.tokens = std::min(cut, tokens - from), part.position += from;
            attend(head_dim, part);
        }
        std::vector<float> parts = d_out.read();
        verdict(memcmp(parts.data(), out.data(), out.size() * 4) == 0,
                what + ": bits of parts of " + std::to_string(cut), 0);
    }
}

#include "prefill_bench.cuh"

int main(int argc, char** argv) {
    bool measure = false, check = true;
    for (int i = 1; i < argc; i++) {
        g_small |= !strcmp(argv[i], "small"), measure |= !strcmp(argv[i], "bench");
        if (!strcmp(argv[i], "only")) check = false;
    }
    const bool small = g_small;
    if (check) {
        auto variants = product_variants();
        for (u32 format : FORMATS)
            for (int with_scales = format == TERNARY ? 0 : 1; with_scales < 2; with_scales++) {
                bool supers = Weights::in_supers(format);
                u32 unit = supers ? 256 : 32;
                check_gemm(format, with_scales, 7, 8, unit, variants);
                check_gemm(format, with_scales, 1, 100, supers ? 768 : 576, variants);
                check_gemm(format, with_scales, small ? 65 : 100, 137, supers ? 512 : 896, variants);
                if (small) continue;
                check_gemm(format, with_scales, 512, 272, 1536, variants);
                check_gemm(format, with_scales, 64, 40, 8960, variants);
            }
        check_gemm_mixed(variants);
        check_gemm(Q4_0, true, small ? 10 : 130, 40, 8992, variants);
        for (u32 columns : {32u, 576u, 1536u, 8960u, 32768u})
            for (int how = 0; how < 8; how++) check_rows(columns, how & 1, how & 2, how & 4, columns == 1536);
        for (u32 format : FORMATS) {
            check_embed(format, true, Weights::in_supers(format) ? 768 : 576);
            if (format == TERNARY) check_embed(format, false, 768);
        }
        for (int how = 0; how < 4; how++) {
            check_rope(128, 64, how & 1, how & 2);
            check_rope(80, 20, how & 1, how & 2);
            check_rope(256, 128, how & 1, how & 2);
        }
        for (u32 head_dim : {64u, 80u, 96u, 128u, 256u}) {
            check_attention(head_dim, 3, 1, 0, 1);
            check_attention(head_dim, 14, 2, 0, small ? 20 : 150);
            check_attention(head_dim, 4, 4, 61, 7);
            if (small) continue;
            check_attention(head_dim, 12, 2, 0, 512);
            check_attention(head_dim, 12, 2, 1000, 130);
        }
        printf("%d checks, %d failed\n", g_checks, g_failures);
    }
    if (measure) bench();
    return g_failures > 0;
}
