// Compares every decode kernel with a reference in double precision, and with itself; with `bench` it also measures.
//   nvcc -O3 -std=c++17 -arch=sm_90 -o decode_check kernels/check/decode_check.cu && ./decode_check [bench]
#include "support.cuh"
#include "decode_bench.cuh"

static Report report;
const double BOUND = 3e-6; // of the sum of the terms' sizes: f32 sums in short trees

template <typename P>
static void launch(void (*kernel)(P), dim3 blocks, u32 threads, u32 bytes, const P& p) {
    kernel<<<blocks, threads, bytes>>>(p);
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
}

// One matrix in every way of launching it.
static void check_project(const Kind& kind, u32 rows, u32 columns, double& w4a8) {
    TestMatrix m(kind, rows, columns, rows % 2 == 1);
    bool norm = columns != 8960;
    TestVector x(columns, norm, kind.format == TERNARY, columns == 576);
    std::string what = std::string(kind.name) + " " + std::to_string(rows) + "x" + std::to_string(columns);
    // Half an ulp of 12582912 + 127 is 1/2: rounding is right but for the reciprocal's error.
    report.claim(x.worst <= 0.5001, what + ": quantization is off by " + std::to_string(x.worst));
    Expected e = expect(m, x);
    double error = 0, size = 0;
    for (u32 i = 0; i < rows; i++) error += pow(e.quantized[i] - e.exact[i], 2), size += pow(e.exact[i], 2);
    w4a8 = std::max(w4a8, sqrt(error / size));
    Device<float> y(rows + 8);
    std::vector<float> first, residual(rows + 8, 0.75f);
    const u32 units = (rows + PROJECT_ROWS - 1) / PROJECT_ROWS;
    for (auto kernel : {entries(m.matrix()).project, decode_project_mixed})
        for (u32 blocks : {units, 1u, 3u, units + 5})
            for (u32 add : {0u, 1u}) {
                Project p = {x.device_x.at, {0, 0}, x.device_norm.at, y.at, {m.matrix(), {}, {}}, 1, add, x.epsilon, 0};
                if (add)
                    y.set(residual);
                else
                    y.poison();
                u32 bytes = bytes_here(columns, PROJECT_TILES, kind.format, blocks >= units);
                launch(kernel, blocks, project_threads(columns), bytes, p);
                auto found = y.get();
                for (u32 i = 0; i < rows; i++)
                    report.near(found[i], e.quantized[i] + 0.75 * add, e.size[i] + add, BOUND,
                                what + " row " + std::to_string(i));
                for (u32 i = rows; i < rows + 8; i++)
                    report.claim(add ? found[i] == 0.75f : found[i] != found[i], what + ": wrote behind its rows");
                if (add) continue;
                found.resize(rows);
                if (first.empty()) first = found;
                report.claim(!memcmp(first.data(), found.data(), rows * 4), what + ": other bits in another launch");
            }
}

// q, k and v at once, in three formats; then the quantized form of the input.
static void check_three() {
    const u32 columns = 512;
    TestMatrix q(KINDS[5], 136, columns, true), k(KINDS[0], 40, columns, true), v(KINDS[7], 21, columns, false);
    TestVector x(columns, true, false);
    Device<float> y(136 + 40 + 21);
    std::vector<float> first;
    for (u32 blocks : {3u, 4u, 7u, 14u, 40u}) {
        Project p = {x.device_x.at, {0, 0}, x.device_norm.at, y.at, {q.matrix(), k.matrix(), v.matrix()}, 3, 0,
                     x.epsilon,     0};
        y.poison();
        u32 bytes = bytes_here(columns, PROJECT_TILES, KINDS[7].format, blocks >= 14); // 9 + 3 + 2 units
        launch(decode_project_mixed, blocks, project_threads(columns), bytes, p);
        auto found = y.get();
        if (first.empty()) {
            first = found;
            u32 row = 0;
            for (TestMatrix* m : {&q, &k, &v}) {
                Expected e = expect(*m, x);
                for (u32 i = 0; i < m->rows; i++, row++)
                    report.near(found[row], e.quantized[i], e.size[i], BOUND,
                                "three matrices, row " + std::to_string(row));
            }
        }
        report.claim(!memcmp(first.data(), found.data(), found.size() * 4),
                     "three matrices: other bits with " + std::to_string(blocks));
    }
}

static double act(u32 activation, double gate, double up) {
    return activation == 0 ? gate / (1 + exp(-gate)) * up : std::max(gate, 0.0) * std::max(gate, 0.0) * up;
}

static void check_gate_up(const Kind& a, const Kind& b, u32 rows, u32 columns, u32 activation) {
    TestMatrix gate(a, rows, columns, false), up(b, rows, columns, activation == 1);
    TestVector x(columns, true, a.format == TERNARY || b.format == TERNARY);
    bool same = a.format == b.format && a.one_scale == b.one_scale;
    std::string what = std::string("gate and up ") + a.name + " " + b.name + " " + std::to_string(rows) + "x" +
                       std::to_string(columns);
    Expected g = expect(gate, x), u = expect(up, x);
    Device<float> out(rows);
    Device<u8> codes(rows);
    Device<float2> groups(rows / 32);
    auto kernel = same ? entries(gate.matrix()).gate_up : decode_gate_up_mixed;
    auto bytes = [&](u32 blocks) {
        u32 format = slot_bytes(a.format) > slot_bytes(b.format) ? a.format : b.format;
        return bytes_here(columns, same ? 8 : 1, format, blocks >= rows / 32);
    };
    std::vector<float> first;
    for (u32 blocks : {rows / 32, 1u, 3u}) {
        GateUp p = {x.device_x.at, x.device_norm.at, gate.matrix(), up.matrix(), out.at, {0, 0}, x.epsilon, activation};
        out.poison();
        launch(kernel, blocks, project_threads(columns), bytes(blocks), p);
        auto found = out.get();
        for (u32 i = 0; i < rows; i++) {
            double size = (1 + g.size[i]) * (fabs(u.quantized[i]) + u.size[i]) * (activation ? g.size[i] + 1 : 1);
            report.near(found[i], act(activation, g.quantized[i], u.quantized[i]), size, BOUND, what);
        }
        if (first.empty()) first = found;
        report.claim(!memcmp(first.data(), found.data(), rows * 4), what + ": other bits in another launch");
    }
    GateUp p = {x.device_x.at, x.device_norm.at,      gate.matrix(), up.matrix(),
                nullptr,       {codes.at, groups.at}, x.epsilon,     activation};
    launch(kernel, 2, project_threads(columns), bytes(2), p);
    auto c = codes.get();
    auto gr = groups.get();
    for (u32 i = 0; i < rows; i++) {
        double scale = gr[i / 32].x, found = (double)(signed char)c[i / 8 * 8 + TestMatrix::place(i)] * scale;
        report.claim(fabs(found - first[i]) <= 0.5001 * scale, what + ": quantized output " + std::to_string(i));
        int sum = 0;
        for (u32 j = 0; j < 32; j++) sum += (signed char)c[i / 32 * 32 + j];
        report.claim(gr[i / 32].y == gr[i / 32].x * (float)sum, what + ": sum of a group");
    }
    // As an input it has the same bits as the f32 form, which is quantized in the same way.
    if (a.format == TERNARY || b.format == TERNARY || rows > 4096) return;
    TestMatrix down(KINDS[0], 24, rows, false);
    Device<float> y(24), z(24);
    Project from_f32 = {out.at, {0, 0}, nullptr, y.at, {down.matrix(), {}, {}}, 1, 0, 0, 0}, from_codes = from_f32;
    from_codes.x = nullptr, from_codes.quantized = {codes.at, groups.at}, from_codes.y = z.at;
    launch(decode_project_q4_0, 3, project_threads(rows), bytes_here(rows, PROJECT_TILES, Q4_0), from_f32);
    launch(decode_project_q4_0, 3, project_threads(rows), bytes_here(rows, PROJECT_TILES, Q4_0), from_codes);
    auto yy = y.get(), zz = z.get();
    report.claim(yy[0] == yy[0] && !memcmp(yy.data(), zz.data(), 24 * 4),
                 what + ": quantized input differs from f32 input");
}

static void check_head(const Kind& kind, u32 rows, u32 columns) {
    TestMatrix m(kind, rows, columns, false);
    TestVector x(columns, true, kind.format == TERNARY);
    std::string what = std::string("head ") + kind.name + " " + std::to_string(rows) + "x" + std::to_string(columns);
    Expected e = expect(m, x);
    u32 count = (rows + HEAD_ROWS - 1) / HEAD_ROWS;
    Device<float> logits(rows + 8);
    Device<Partial> partials(count);
    Device<State> state(1), mailbox(1);
    std::vector<float> first;
    std::vector<State> first_state;
    for (u32 blocks : {count, 1u, 3u}) {
        const u32 bytes = bytes_here(columns, 8, kind.format, blocks == count, blocks == 3 ? 4 : 2);
        for (u32 bad : {0u, 1u}) {
            if (bad) { // A NaN in the vector has to be reported.
                auto x_bad = x.x;
                x_bad[5] = NAN;
                x.device_x.set(x_bad);
            } else {
                x.device_x.set(x.x);
            }
            Head p = {x.device_x.at, x.device_norm.at, m.matrix(), logits.at, partials.at, x.epsilon, 0};
            logits.poison(), partials.poison(), mailbox.poison();
            state.set({State{7, 41, 0, 0, 0, 3}});
            launch(entries(m.matrix()).head, blocks, project_threads(columns), bytes, p);
            decode_finish<<<1, FINISH_THREADS>>>(state.at, mailbox.at, partials.at, count);
            CHECK(cudaDeviceSynchronize());
            State s = state.get()[0], mail = mailbox.get()[0];
            report.claim(!memcmp(&s, &mail, sizeof s), what + ": mailbox differs");
            report.claim(s.position == 42 && s.done == 4, what + ": position");
            if (bad) {
                report.claim(s.best == ~0u && s.token == 7, what + ": a NaN was not noticed");
                continue;
            }
            auto found = logits.get();
            double max = -1e30, sum = 0;
            u32 best = 0;
            for (u32 i = 0; i < rows; i++) {
                report.near(found[i], e.quantized[i], e.size[i], BOUND, what);
                if (found[i] > max) max = found[i], best = i;
            }
            for (u32 i = 0; i < rows; i++) sum += exp(found[i] - max);
            report.claim(found[rows] != found[rows], what + ": wrote behind its rows");
            report.claim(s.best == best && s.token == best && s.best_logit == found[best], what + ": the best");
            report.claim(fabs(s.log_sum_exp - (max + log(sum))) < 2e-6 * (1 + fabs(max)), what + ": log of the sum");
            if (first.empty()) first = found, first_state = {s};
            report.claim(!memcmp(first.data(), found.data(), rows * 4) && !memcmp(&first_state[0], &s, sizeof s),
                         what + ": other bits in another launch");
        }
    }
}

static void check_embed(const Kind& kind, u32 columns) {
    TestMatrix m(kind, 19, columns, false);
    Device<float> out(columns);
    Device<State> state(1);
    std::string what = std::string("embedding ") + kind.name;
    for (u32 token : {0u, 7u, 18u, 19u}) {
        state.set({State{token, 0, 0, 0, 0, 0}});
        out.poison();
        decode_embed<<<token == 7 ? 2 : 1, 256>>>(state.at, m.matrix(), out.at);
        CHECK(cudaDeviceSynchronize());
        auto found = out.get();
        for (u32 i = 0; i < columns; i++)
            report.claim(token < 19 ? found[i] == m.value(token, i) : found[i] != found[i],
                         what + " " + std::to_string(i));
    }
}

struct AttentionCase {
    u32 query_heads, kv_heads, head_dim, pairs, adjacent, norm, position;
};

static void check_attention(const AttentionCase& c) {
    char what[200];
    snprintf(what, sizeof what, "attention %u/%u heads of %u, %u pairs, adjacent %u, norm %u, position %u",
             c.query_heads, c.kv_heads, c.head_dim, c.pairs, c.adjacent, c.norm, c.position);
    const u32 hd = c.head_dim, context = c.position + 3, group = c.query_heads / c.kv_heads, qw = c.query_heads * hd,
              kw = c.kv_heads * hd;
    std::vector<float> x, q_norm, k_norm;
    for (u32 i = 0; i < qw + 2 * kw; i++) x.push_back(random_normal());
    for (u32 i = 0; i < hd; i++) q_norm.push_back(random_float(0.5f, 2)), k_norm.push_back(random_float(0.5f, 2));
    std::vector<float2> rope(context * std::max(c.pairs, 1u));
    for (u32 p = 0; p < context; p++)
        for (u32 i = 0; i < c.pairs; i++) {
            double angle = p * pow(10000.0, -(double)i / c.pairs);
            rope[p * c.pairs + i] = make_float2(cos(angle), sin(angle));
        }
    std::vector<u16> keys((size_t)kw * context, 0x7e00), values = keys; // NaN where nothing was written
    for (u32 h = 0; h < c.kv_heads; h++)
        for (u32 p = 0; p < c.position; p++)
            for (u32 i = 0; i < hd; i++) {
                keys[((size_t)h * context + p) * hd + i] = half_bits(random_normal());
                values[((size_t)h * context + p) * hd + i] = half_bits(random_normal());
            }
    u32 parts = (group + ATTENTION_HEADS - 1) / ATTENTION_HEADS, lines = c.kv_heads * parts,
        splits = attention_splits(lines);
    Device<float> dx(x), dq(q_norm), dk(k_norm), partials((size_t)splits * c.query_heads * (hd + 2)), out(qw + 8);
    Device<float2> drope(rope);
    Device<u16> dkeys(keys), dvalues(values);
    Device<u32> counters(std::vector<u32>(lines, 0));
    Device<State> state(std::vector<State>{State{0, c.position, 0, 0, 0, 0}});
    Attention p = {state.at,
                   dx.at,
                   dx.at + qw,
                   dx.at + qw + kw,
                   c.norm ? dq.at : nullptr,
                   c.norm ? dk.at : nullptr,
                   drope.at,
                   dkeys.at,
                   dvalues.at,
                   partials.at,
                   counters.at,
                   out.at,
                   c.query_heads,
                   c.kv_heads,
                   hd,
                   context,
                   c.pairs,
                   c.adjacent,
                   1e-6f,
                   0};
    std::vector<float> first;
    for (int time = 0; time < 3; time++) {
        out.poison();
        launch(attention_kernel(hd), dim3(splits, lines), attention_threads(hd), attention_bytes(hd, capability()), p);
        auto found = out.get();
        report.claim(found[qw] != found[qw], std::string(what) + ": wrote behind its heads");
        found.resize(qw);
        if (time == 0) first = found;
        report.claim(!memcmp(first.data(), found.data(), qw * 4), std::string(what) + ": other bits the next time");
    }
    for (u32 counter : counters.get()) report.claim(counter == 0, std::string(what) + ": a counter is left");
    auto turned = [&](const float* head, const std::vector<float>& norm) {
        std::vector<double> v(head, head + hd);
        if (c.norm) {
            double squares = 0;
            for (double e : v) squares += e * e;
            for (u32 i = 0; i < hd; i++) v[i] *= norm[i] / sqrt(squares / hd + 1e-6);
        }
        for (u32 i = 0; i < c.pairs; i++) {
            float2 t = rope[c.position * c.pairs + i];
            double &a = v[c.adjacent ? 2 * i : i], &b = v[c.adjacent ? 2 * i + 1 : i + c.pairs], old = a;
            a = old * t.x - b * t.y, b = old * t.y + b * t.x;
        }
        return v;
    };
    auto new_keys = dkeys.get(), new_values = dvalues.get();
    for (u32 h = 0; h < c.kv_heads; h++) {
        auto k = turned(&x[qw + h * hd], k_norm);
        for (u32 at = 0; at < context; at++)
            for (u32 i = 0; i < hd; i++) {
                size_t place = ((size_t)h * context + at) * hd + i;
                if (at == c.position) {
                    report.claim(fabs(half_value(new_keys[place]) - k[i]) < 6e-4 * (1 + fabs(k[i])),
                                 std::string(what) + ": new key");
                    report.claim(new_values[place] == half_bits(x[qw + kw + h * hd + i]),
                                 std::string(what) + ": new value");
                } else if (new_keys[place] != keys[place] || new_values[place] != values[place]) {
                    report.claim(false, std::string(what) + ": changed another position");
                }
            }
    }
    for (u32 head = 0; head < c.query_heads; head++) {
        auto q = turned(&x[head * hd], q_norm);
        std::vector<double> scores, sum(hd, 0.0);
        double max = -1e30, total = 0;
        for (u32 at = 0; at <= c.position; at++) {
            double s = 0;
            for (u32 i = 0; i < hd; i++)
                s += q[i] * half_value(new_keys[((size_t)(head / group) * context + at) * hd + i]);
            scores.push_back(s / sqrt((double)hd));
            max = std::max(max, scores.back());
        }
        for (u32 at = 0; at <= c.position; at++) {
            double w = exp(scores[at] - max);
            total += w;
            for (u32 i = 0; i < hd; i++)
                sum[i] += w * half_value(new_values[((size_t)(head / group) * context + at) * hd + i]);
        }
        for (u32 i = 0; i < hd; i++) report.near(first[head * hd + i], sum[i] / total, 1, 2e-5, what);
    }
}

static void section(const char* name) {
    printf("%-34s %9d checks, %d failed, worst %.1e of the terms\n", name, report.checks, report.failed, report.worst);
    fflush(stdout);
    report.worst = 0;
}

int main(int argc, char** argv) {
    bool bench = argc > 1 && !strcmp(argv[1], "bench"), only = argc > 1 && !strcmp(argv[1], "only-bench");
    prepare();
    if (!only) {
        for (const Kind& kind : KINDS) {
            double w4a8 = 0;
            for (u32 columns : {32u, 64u, 96u, 128u, 256u, 576u, 896u, 1536u, 2560u, 8960u})
                for (u32 rows : {1u, 8u, 21u, 136u})
                    if (columns % kind.block == 0) check_project(kind, rows, columns, w4a8);
            check_project(kind, 9, 32768, w4a8);
            section(kind.name);
            printf("    int8 activations: relative error of a product %.1e\n", w4a8);
        }
        check_three();
        section("three matrices");
        for (const Kind& kind : KINDS)
            for (u32 activation : {0u, 1u}) check_gate_up(kind, kind, 160, 512 + 256 * activation, activation);
        check_gate_up(KINDS[0], KINDS[0], 96, 1536, 0);
        check_gate_up(KINDS[0], KINDS[0], 64, 576, 0);
        for (u32 i = 0; i < 10; i++) check_gate_up(KINDS[i], KINDS[(i * 7 + 3) % 10], 96, 2560, i % 2);
        section("gate and up");
        for (const Kind& kind : KINDS) {
            check_head(kind, 333, 512);
            check_embed(kind, 768);
        }
        check_head(KINDS[0], 10, 32), check_head(KINDS[0], 4096, 1536);
        check_embed(KINDS[0], 576), check_embed(KINDS[4], 96);
        section("embedding, head, end");
        for (u32 position : {0u, 1u, 5u, 63u, 64u, 65u, 127u, 200u, 511u, 512u, 1000u, 4097u}) {
            check_attention({12, 2, 128, 64, 0, 0, position});
            check_attention({14, 2, 64, 32, 0, 0, position});
            check_attention({8, 8, 96, 48, 1, 0, position});
            check_attention({16, 4, 256, 128, 0, 1, position});
            check_attention({16, 8, 128, 64, 0, 1, position});
        }
        for (u32 position : {0u, 77u, 777u}) {
            check_attention({4, 4, 96, 8, 1, 1, position});
            check_attention({9, 3, 64, 16, 0, 0, position}), check_attention({9, 3, 64, 16, 1, 1, position});
            check_attention({20, 2, 80, 40, 0, 1, position}), check_attention({16, 1, 128, 20, 0, 0, position});
            check_attention({64, 1, 64, 0, 0, 0, position}), check_attention({3, 1, 256, 72, 0, 1, position});
        }
        check_attention({12, 2, 128, 64, 0, 0, 33000});
        section("attention");
        printf(report.failed ? "FAILED: %d of %d\n" : "all good: %d of %d failed\n", report.failed, report.checks);
    }
    if (bench || only) run_bench();
    return report.failed != 0;
}
