// A matrix times one vector: the vector in int8 in shared memory, the weights through a ring (in shared memory, or in registers).
//
// A thread block takes R tiles at a time (a unit), its warps share the columns: warp w has steps w, w + warps, ...
// Within a step a warp goes through the R tiles, so that it reads its part of the vector once for all of them. A ring
// of weights is on its way at any time, the first of them before pdl_wait().
//
// The sum of a row: over its groups in a lane, over the four lanes of a row, over the warps; all in an order that the
// columns alone decide.
#pragma once
#include "tiles.cuh"

// The thread's place. Read anew for each format (`volatile`): computed once for all, it would cost registers in each.
struct Lane {
    u32 warp, warps, lane, row, kc;
    __device__ __forceinline__ Lane() : warps(blockDim.x / 32) {
        u32 thread;
        asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
        warp = thread / 32, lane = thread % 32, row = lane / 4, kc = lane % 4;
    }
};

// A vector in shared memory, filled up with zeros to whole steps.
struct Activations {
    u32 codes; // (steps * 128): dot words in order
    u32 groups; // (steps * 4): scale, scale * sum

    __device__ __forceinline__ Activations(const void* shared, u32 columns)
        : codes((u32)__cvta_generic_to_shared(shared)), groups(codes + (columns + 127) / 128 * 128) {}

    __device__ __forceinline__ Input read(u32 group) const {
        Input in;
        u32 at = codes + group * 32;
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(in.x[0]), "=r"(in.x[1]), "=r"(in.x[2]), "=r"(in.x[3])
                     : "r"(at));
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(in.x[4]), "=r"(in.x[5]), "=r"(in.x[6]), "=r"(in.x[7])
                     : "r"(at + 16));
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(in.scale), "=f"(in.sum) : "r"(groups + group * 8));
        return in;
    }
};

extern __shared__ uint4 shared[]; // activation_bytes(columns), and behind it the rings where they are in shared memory

// The units of a thread block: `unit`, `unit + stride`, ... below `units`.
struct Units {
    u32 unit, stride, units;
};

#if SHARED_RINGS

// A warp's way through the weights, unit by unit, each step by step, each tile by tile. PAIRED: the second half of a
// unit's tiles are those of a second matrix, else a unit is R tiles of the first. The warp copies whole pieces (a
// tile's step is contiguous in each plane) to its ring in shared memory, where batches of pieces are on their way
// or wait: more than registers could hold, also for the next kernel while this one still runs.
template <u32 FORMAT>
struct Slot {
    static const u32 CODES = 32 * 4 * code_words(FORMAT), HIGH = 32 * 4 * high_words(FORMAT);
    static const u32 SUPER = FORMAT == Q4_K || FORMAT == Q5_K ? 128
                             : FORMAT == TERNARY              ? 16
                                                              : 0; // scales of 256 columns
    static const u32 SCALES = FORMAT == Q4_1 || FORMAT == Q5_1 ? 128 : SUPER || FORMAT == TERNARY_ONE ? 0 : 64;
    static const u32 SUPERS = FORMAT == Q6_K ? 16 : 0;
    static const u32 BYTES = CODES + HIGH + SUPER + SCALES + SUPERS;
    static_assert(BYTES == slot_bytes(FORMAT), "what the host counts with");
};

// Copies 16 bytes if `wanted`: a predicate, no branch.
__device__ __forceinline__ void copy_async(u32 to, const void* from, bool wanted) {
    asm volatile(
        "{ .reg .pred wanted; setp.ne.u32 wanted, %2, 0; @wanted cp.async.cg.shared.global [%0], [%1], 16; }" ::"r"(to),
        "l"(from), "r"((u32)wanted)
        : "memory");
}
__device__ __forceinline__ u32 shared_u32(u32 at) {
    u32 out;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(out) : "r"(at) : "memory");
    return out;
}
__device__ __forceinline__ u32 shared_u16(u32 at) {
    u16 out;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(out) : "r"(at) : "memory");
    return out;
}
__device__ __forceinline__ void shared_u32x2(u32* out, u32 at) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(out[0]), "=r"(out[1]) : "r"(at) : "memory");
}
__device__ __forceinline__ void shared_u32x4(u32* out, u32 at) {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
}

template <u32 FORMAT, u32 R, bool PAIRED>
struct Stream {
    typedef Slot<FORMAT> S;
    static const u32 RING_BATCHES = ring_batches(R);
    static const u32 BATCH = batch_pieces(R), PER_STEP = R / BATCH, BATCH_BYTES = BATCH * S::BYTES;
    static_assert(RING_BATCHES % PER_STEP == 0, "a batch asks for the same tiles so many batches later");
    static const bool TAILS = FORMAT != Q4_K && FORMAT != Q5_K && FORMAT != Q6_K && !is_ternary(FORMAT);
    const Matrix &first, &second;
    u32 ring, slots; // the warp's ring, and the batches that it has room for: RING_BATCHES at the most
    u32 to, from; // where the next batch goes, and where the next one waits
    u32 groups; // of a row
    u32 mine; // steps of this warp
    u32 full, tail; // whole steps of a row, groups after them
    u32 in_tail; // the lane's place in the step of those
    Units ahead; // what is asked for next: unit,
    u32 turn; // and number of the warp's step in it

    __device__ __forceinline__ Stream(const Matrix& first, const Matrix& second, u32 columns, const Units& units,
                                      const Lane& l)
        : first(first), second(second), ahead(units), turn(0) {
        u32 room;
        asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(room));
        room -= activation_bytes(columns);
        for (slots = RING_BATCHES; slots * l.warps * BATCH_BYTES > room;) slots -= PER_STEP;
        ring = (u32)__cvta_generic_to_shared(shared) + activation_bytes(columns) + l.warp * (slots * BATCH_BYTES);
        to = from = ring;
        groups = columns / 32, full = groups / 4;
        u32 steps = (groups + 3) / 4, each = (steps + PROJECT_WARPS - 1) / PROJECT_WARPS;
        mine = l.warp + (each - 1) * l.warps < steps ? each : each - 1;
        tail = groups % 4;
        // Lanes without a group read another one's; their activations are zero.
        in_tail = TAILS && tail ? l.row * tail + min_u32(l.kc, tail - 1) : 0;
        if (mine == 0) ahead.unit = ahead.units;
    }

    __device__ __forceinline__ u32 next(u32 place) const {
        place += BATCH_BYTES;
        return place == ring + slots * BATCH_BYTES ? ring : place;
    }

    // Asks for batch `batch` of the step that is next. PACED: never for more than two pieces at a time.
    template <bool PACED>
    __device__ __forceinline__ void load(u32 batch, const Lane& l) {
        if (ahead.unit < ahead.units) {
            const u32 step = l.warp + turn * l.warps, r = batch * BATCH;
            const bool other = PAIRED && r >= R / 2;
            const Matrix& m = other ? second : first;
            const u32 tile = ahead.unit * (PAIRED ? R / 2 : R) + (other ? r - R / 2 : r);
            u32 group = tile * (groups * 8) + step * 32, super = tile * groups + (step >> 1) * 8;
            const u32 in_step = !TAILS || step < full ? 4 : tail; // groups of a row in that step
            u32 slot = to + l.lane * 16;
            // Lane l takes bytes 16 l .. of each part; `each`: bytes of one of its groups (or rows of 256 columns).
            auto part = [&](u32 bytes, const u8* plane, u32 index, u32 each) {
                const u32 lanes = TAILS ? bytes / 64 * in_step : bytes / 16; // a step's four groups
                const u8* source = each > 16 ? plane + (u64)index * each + l.lane * 16
                                             : plane + (u64)(index + l.lane * (16 / each)) * each;
                copy_async(slot, source, (bytes == 512 && !TAILS) || l.lane < lanes);
                if (bytes > 512) copy_async(slot + 512, source + 512, l.lane + 32 < lanes);
                slot += bytes;
            };
#pragma unroll
            for (u32 i = 0; i < BATCH; i++) {
                part(S::CODES, m.codes, group, S::CODES / 32);
                if (S::HIGH) part(S::HIGH, m.high, group, S::HIGH ? S::HIGH / 32 : 1);
                if (S::SUPER) part(S::SUPER, m.scales, super, S::SUPER ? S::SUPER / 8 : 1);
                if (S::SCALES) part(S::SCALES, m.scales, group, S::SCALES ? S::SCALES / 32 : 1);
                if (S::SUPERS) part(S::SUPERS, m.supers, super, 2);
                group += groups * 8, super += groups;
                if (PACED) asm volatile("cp.async.commit_group;\n\tcp.async.wait_group 1;" ::: "memory");
            }
            to = next(to);
            if (batch == PER_STEP - 1 && ++turn == mine) turn = 0, ahead.unit += ahead.stride;
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    }

    // The first loads. A kernel that starts early has time for them, and what waits in the memory's queues holds up the
    // kernels before it, whose few values are on the critical path: so it asks for no more than keeps the memory busy.
    static const bool PACED_FILL = __CUDA_ARCH__ >= 900;
    __device__ __forceinline__ void fill(const Lane& l) {
#pragma unroll 1
        for (u32 i = 0; i < slots; i += PER_STEP)
#pragma unroll
            for (u32 batch = 0; batch < PER_STEP; batch++) load<PACED_FILL>(batch, l);
    }

    // The lane's group of the piece at `piece`.
    __device__ __forceinline__ void take(u32* w, u32 piece, u32 place, const Lane& l) const {
        constexpr u32 C = code_words(FORMAT), H = high_words(FORMAT);
        const u32 scale = piece + S::CODES + S::HIGH;
        if constexpr (C == 2) {
            shared_u32x2(w, piece + place * 8);
        } else {
            shared_u32x4(w, piece + place * (4 * C));
            if constexpr (C == 8) shared_u32x4(w + 4, piece + place * 32 + 16);
        }
        if constexpr (H == 1) w[C] = shared_u32(piece + S::CODES + place * 4);
        if constexpr (H == 2) shared_u32x2(w + C, piece + S::CODES + place * 8);
        if constexpr (S::SUPER == 128) shared_u32x4(w + C + H, scale + l.row * 16);
        if constexpr (S::SUPER == 16) w[C + H] = shared_u16(scale + l.row * 2);
        if constexpr (S::SCALES == 128) w[C + H] = shared_u32(scale + place * 4);
        if constexpr (S::SCALES == 64) w[C + H] = shared_u16(scale + place * 2);
        if constexpr (S::SUPERS) w[C + H + 1] = shared_u16(scale + S::SCALES + l.row * 2);
    }

    // This warp's share of a unit's rows, in `sums`; the loads go on, to the units after it.
    __device__ __forceinline__ void run(float (&sums)[R], const Lane& l, const Activations& x) {
#pragma unroll
        for (u32 r = 0; r < R; r++) sums[r] = 0;
#pragma unroll 1
        for (u32 k = 0; k < mine; k++) {
            const u32 step = l.warp + k * l.warps, place = !TAILS || step < full ? l.lane : in_tail;
            const Input in = x.read(step * 4 + l.kc);
#pragma unroll
            for (u32 batch = 0; batch < PER_STEP; batch++) {
                if (slots == RING_BATCHES)
                    asm volatile("cp.async.wait_group %0;" ::"n"(RING_BATCHES - 1) : "memory");
                else if (slots == 2)
                    asm volatile("cp.async.wait_group 1;" ::: "memory");
                else
                    asm volatile("cp.async.wait_group 0;" ::: "memory");
                __syncwarp();
#pragma unroll
                for (u32 i = 0; i < BATCH; i++) {
                    const u32 r = batch * BATCH + i;
                    u32 w[group_words(FORMAT)];
                    take(w, from + i * S::BYTES, place, l);
                    sums[r] = add_group<FORMAT>(w, in, l.kc, step, sums[r]);
                }
                from = next(from);
                __syncwarp();
                load<false>(batch, l);
            }
        }
#pragma unroll
        for (u32 r = 0; r < R; r++) sums[r] *= gain(FORMAT);
    }
};

#else

const u32 RING_WORDS = 40;

// Groups in a ring: as many as its words can hold, so that a turn is whole rounds of it.
__host__ __device__ constexpr u32 ring_groups(u32 format, u32 turn) {
    u32 groups = turn;
    while (turn % groups != 0 || groups * group_words(format) > RING_WORDS) groups--;
    return groups;
}

// The same way with the ring in registers: its pieces are groups, in the order of turns (DEPTH of the warp's steps),
// steps, tiles.
template <u32 FORMAT, u32 R, bool PAIRED>
struct Stream {
    static const u32 DEPTH = R == 2 ? 3 : 1, RING = ring_groups(FORMAT, R* DEPTH);
    static const u32 WORDS = group_words(FORMAT);
    static const bool TAILS = FORMAT != Q4_K && FORMAT != Q5_K && FORMAT != Q6_K && !is_ternary(FORMAT);
    const Matrix &first, &second;
    Units now; // what is multiplied next
    u32 ring[RING * WORDS];
    u32 groups; // of a row
    u32 mine; // steps of this warp
    u32 full; // whole steps of a row
    u32 in_tail; // the lane's place in the step after them
    Place at; // of the last piece that was asked for
    bool there;

    __device__ __forceinline__ Stream(const Matrix& first, const Matrix& second, u32 columns, const Units& units,
                                      const Lane& l)
        : first(first), second(second), now(units) {
        groups = columns / 32, full = groups / 4;
        u32 steps = (groups + 3) / 4, each = (steps + PROJECT_WARPS - 1) / PROJECT_WARPS;
        mine = l.warp + (each - 1) * l.warps < steps ? each : each - 1;
        // Lanes without a group read another one's; their activations are zero.
        u32 tail = groups % 4;
        in_tail = TAILS && tail ? l.row * tail + min_u32(l.kc, tail - 1) : 0;
    }

    // Asks for piece `i` of a turn.
    __device__ __forceinline__ void load(u32 unit, bool valid, u32 turn, u32 i, const Lane& l) {
        const u32 r = i % R;
        if (r == 0) {
            u32 k = turn * DEPTH + i / R, step = l.warp + k * l.warps, tile = unit * (PAIRED ? R / 2 : R);
            there = valid && (DEPTH == 1 || k < mine);
            at.group = tile * (groups * 8) + step * 32 + (!TAILS || step < full ? l.lane : in_tail);
            at.super = tile * groups + (step >> 1) * 8 + l.row;
        } else if (PAIRED && r == R / 2) {
            at.group -= (R / 2 - 1) * groups * 8, at.super -= (R / 2 - 1) * groups; // the other matrix's first
        } else {
            at.group += groups * 8, at.super += groups;
        }
        if (there) load_group<FORMAT>(ring + i % RING * WORDS, PAIRED && r >= R / 2 ? second : first, at);
    }

    __device__ __forceinline__ void fill(const Lane& l) {
#pragma unroll
        for (u32 i = 0; i < RING; i++) load(now.unit, now.unit < now.units && mine > 0, 0, i, l);
    }

    __device__ __forceinline__ void run(float (&sums)[R], const Lane& l, const Activations& x) {
        const u32 unit = now.unit, next = unit + now.stride;
        now.unit = next;
#pragma unroll
        for (u32 r = 0; r < R; r++) sums[r] = 0;
        u32 turns = (mine + DEPTH - 1) / DEPTH;
#pragma unroll 1
        for (u32 turn = 0; turn < turns; turn++) {
            bool last = turn + 1 == turns;
            u32 after = last ? next : unit, after_turn = last ? 0 : turn + 1;
            bool valid = !last || next < now.units;
#pragma unroll
            for (u32 j = 0; j < DEPTH; j++) {
                u32 k = turn * DEPTH + j, step = l.warp + k * l.warps;
                bool here = DEPTH == 1 || k < mine;
                Input in;
                if (here) in = x.read(step * 4 + l.kc);
#pragma unroll
                for (u32 r = 0; r < R; r++) {
                    const u32 i = j * R + r;
                    if (here) sums[r] = add_group<FORMAT>(ring + i % RING * WORDS, in, l.kc, step, sums[r]);
                    if (i + RING < R * DEPTH)
                        load(unit, true, turn, i + RING, l);
                    else
                        load(after, valid, after_turn, i + RING - R * DEPTH, l);
                }
            }
        }
#pragma unroll
        for (u32 r = 0; r < R; r++) sums[r] *= gain(FORMAT);
    }
};
#endif

// Applies CALL to the format of a matrix.
#define FOR_FORMAT(matrix, CALL)                                    \
    switch ((matrix).scales ? (matrix).format : (u32)TERNARY_ONE) { \
        case Q4_0: {                                                \
            CALL(Q4_0);                                             \
        } break;                                                    \
        case Q4_1: {                                                \
            CALL(Q4_1);                                             \
        } break;                                                    \
        case Q5_0: {                                                \
            CALL(Q5_0);                                             \
        } break;                                                    \
        case Q5_1: {                                                \
            CALL(Q5_1);                                             \
        } break;                                                    \
        case Q8_0: {                                                \
            CALL(Q8_0);                                             \
        } break;                                                    \
        case Q4_K: {                                                \
            CALL(Q4_K);                                             \
        } break;                                                    \
        case Q5_K: {                                                \
            CALL(Q5_K);                                             \
        } break;                                                    \
        case Q6_K: {                                                \
            CALL(Q6_K);                                             \
        } break;                                                    \
        case TERNARY: {                                             \
            CALL(TERNARY);                                          \
        } break;                                                    \
        default: {                                                  \
            CALL(TERNARY_ONE);                                      \
        } break;                                                    \
    }

// What warps tell one another.
template <u32 R>
struct Exchange {
    float sums[2][PROJECT_WARPS][R * 8]; // of one unit and the next
    float squares[PROJECT_WARPS];
    u32 largest[PROJECT_WARPS];
};

// Sums over the four lanes of a row, all rows' in `out`.
template <u32 R>
__device__ __forceinline__ void store_sums(float (&sums)[R], float* out, const Lane& l) {
    if constexpr (R == 1) {
        float sum = sums[0] + shuffle_xor(sums[0], 1);
        sum += shuffle_xor(sum, 2);
        if (l.kc == 0) out[l.row] = sum;
    } else {
        bool odd = l.kc & 1, upper = l.kc & 2;
        float halved[R / 2]; // of tile 2i + (kc & 1)
#pragma unroll
        for (u32 i = 0; i < R / 2; i++) {
            float keep = odd ? sums[2 * i + 1] : sums[2 * i], give = odd ? sums[2 * i] : sums[2 * i + 1];
            halved[i] = keep + shuffle_xor(give, 1);
        }
        if constexpr (R == 2) {
            float sum = halved[0] + shuffle_xor(halved[0], 2);
            if (!upper) out[(l.kc & 1) * 8 + l.row] = sum;
        } else {
#pragma unroll
            for (u32 i = 0; i < R / 4; i++) { // of tile 4i + kc
                float keep = upper ? halved[2 * i + 1] : halved[2 * i],
                      give = upper ? halved[2 * i] : halved[2 * i + 1];
                out[(4 * i + l.kc) * 8 + l.row] = keep + shuffle_xor(give, 2);
            }
        }
    }
}

// The sum over the warps of the unit's row `index`.
template <u32 R>
__device__ __forceinline__ float row_sum(const Exchange<R>& exchange, u32 buffer, u32 index, u32 warps) {
    float sum = 0;
#pragma unroll
    for (u32 w = 0; w < PROJECT_WARPS; w++)
        if (w < warps) sum += exchange.sums[buffer][w][index];
    return sum;
}

// ---- the vector ----

// How a vector is quantized.
struct Quantization {
    const float* x; // (columns), NULL: it is given as `quantized`
    const float* norm; // (columns) or NULL
    Quantized quantized;
    u32 columns;
    bool whole_row; // one scale for all values: what ternary weights are trained for
    float epsilon;
};

// Four values as bytes of a word: round(value * inverse), half to even.
__device__ __forceinline__ u32 quantize4(float4 v, float inverse) {
    const float ROUND = 12582912.0f; // Its low bits are then the integer.
    u32 a = __float_as_uint(fmaf(v.x, inverse, ROUND)), b = __float_as_uint(fmaf(v.y, inverse, ROUND));
    u32 c = __float_as_uint(fmaf(v.z, inverse, ROUND)), d = __float_as_uint(fmaf(v.w, inverse, ROUND));
    return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

// The lane's four values of a group of eight lanes, quantized, into shared memory. All lanes of the warp are here.
__device__ __forceinline__ void store_chunk(u8* codes, float2* groups, u32 chunk, float4 v, float inverse,
                                            float scale) {
    u32 bytes = quantize4(v, inverse);
    int sum = dot_signed(bytes, 0x01010101, 0);
    u32 other = shuffle_xor(bytes, 1);
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
    sum += shuffle_xor(sum, 4);
    // An even chunk has columns 0-3 of 8, the next one 4-7; their dot words are 0, 4, 1, 5 and 2, 6, 3, 7.
    u32 word = __byte_perm(bytes, other, (chunk & 1) ? 0x3726 : 0x5140);
    ((u32*)codes)[chunk] = word;
    if (chunk % 8 == 0) groups[chunk / 8] = make_float2(scale, scale * (float)sum);
}

__device__ __forceinline__ u32 largest_of(float4 v) {
    return max_u32(max_u32(magnitude(v.x), magnitude(v.y)), max_u32(magnitude(v.z), magnitude(v.w)));
}

// One chunk of four values times the norm's weights, and its squares' sum before them.
__device__ __forceinline__ float4 weighted(float4 v, float4 w, float& squares) {
    squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    return make_float4(v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w);
}

const u32 CHUNKS = 2; // loaded at once

// A norm's weights for a chunk of four values.
__device__ __forceinline__ float4 norm_weights(const float* norm, u32 chunk) {
    return norm ? __ldg((const float4*)norm + chunk) : make_float4(1, 1, 1, 1);
}

// Those of a thread's first chunks, asked for before the vector is there.
struct NormAhead {
    float4 w[CHUNKS];
    __device__ __forceinline__ NormAhead(const float* norm, u32 columns) {
#pragma unroll
        for (u32 u = 0; u < CHUNKS; u++) {
            const u32 chunk = threadIdx.x + u * blockDim.x;
            w[u] = norm_weights(chunk < columns / 4 ? norm : 0, chunk);
        }
    }
};

// Chunks of a vector that is filled up to whole steps: a warp takes a step.
__device__ __forceinline__ u32 padded_chunks(u32 columns) { return (columns + 127) / 128 * 32; }

// One scale a group: RMSNorm's own factor comes in at the end, so one pass is enough.
__device__ __forceinline__ void quantize_groups(const Quantization& q, const NormAhead& ahead, u8* codes, float2* groups,
                                                float* squares_out) {
    u32 chunks = q.columns / 4, padded = padded_chunks(q.columns);
    float squares = 0;
    for (u32 from = threadIdx.x; from < padded; from += CHUNKS * blockDim.x) {
        float4 v[CHUNKS];
#pragma unroll
        for (u32 u = 0; u < CHUNKS; u++) {
            u32 chunk = from + u * blockDim.x;
            v[u] = chunk < chunks ? load4(q.x + 4 * chunk) : make_float4(0, 0, 0, 0);
        }
#pragma unroll
        for (u32 u = 0; u < CHUNKS; u++) {
            u32 chunk = from + u * blockDim.x;
            if (chunk >= padded) break;
            const bool first = from == threadIdx.x;
            float4 w = weighted(v[u], first ? ahead.w[u] : norm_weights(chunk < chunks ? q.norm : 0, chunk), squares);
            u32 largest = largest_of(w);
            largest = max_u32(largest, shuffle_xor(largest, 1));
            largest = max_u32(largest, shuffle_xor(largest, 2));
            largest = max_u32(largest, shuffle_xor(largest, 4));
            float max = __uint_as_float(largest < INFINITE ? largest : 0x7fffffff); // NaN reaches the logits.
            bool zero = max <= 1e-36f; // Its inverse would overflow.
            store_chunk(codes, groups, chunk, w, zero ? 0 : 127.0f * reciprocal_approx(max),
                        zero ? 0 : max * (1.0f / 127));
        }
    }
    if (q.norm) {
        squares = warp_sum(squares);
        if (threadIdx.x % 32 == 0) squares_out[threadIdx.x / 32] = squares;
    }
}

// 1 / sqrt(mean square + epsilon), from the warps' sums of squares.
__device__ __forceinline__ float norm_factor(const float* squares, u32 columns, float epsilon) {
    float sum = 0;
#pragma unroll
    for (u32 w = 0; w < PROJECT_WARPS; w++)
        if (w < blockDim.x / 32) sum += squares[w];
    float x = __fdividef(sum, (float)columns) + epsilon, y = rsqrtf(x);
    return y * fmaf(-0.5f * x * y, y, 1.5f); // One step of Newton's makes it as good as a division.
}

// One scale for the row: first its largest value, then the codes. Groups have the scale 1, the row's is the factor.
template <u32 R>
__device__ __forceinline__ float quantize_row(const Quantization& q, const NormAhead& ahead, u8* codes, float2* groups,
                                              Exchange<R>& exchange) {
    const u32 KEPT = CHUNKS; // of a thread: those it reads once
    u32 chunks = q.columns / 4, padded = padded_chunks(q.columns), warps = blockDim.x / 32;
    float squares = 0;
    u32 largest = 0; // of the bits
    float4 kept[KEPT];
#pragma unroll
    for (u32 i = 0; i < KEPT; i++) {
        u32 chunk = threadIdx.x + i * blockDim.x;
        kept[i] = chunk < chunks ? load4(q.x + 4 * chunk) : make_float4(0, 0, 0, 0);
    }
#pragma unroll
    for (u32 i = 0; i < KEPT; i++) {
        kept[i] = weighted(kept[i], ahead.w[i], squares);
        largest = max_u32(largest, largest_of(kept[i]));
    }
    for (u32 chunk = threadIdx.x + KEPT * blockDim.x; chunk < chunks; chunk += blockDim.x)
        largest = max_u32(largest, largest_of(weighted(load4(q.x + 4 * chunk), norm_weights(q.norm, chunk), squares)));
    squares = warp_sum(squares);
    largest = warp_max(largest);
    if (threadIdx.x % 32 == 0)
        exchange.squares[threadIdx.x / 32] = squares, exchange.largest[threadIdx.x / 32] = largest;
    __syncthreads();
#pragma unroll
    for (u32 w = 0; w < PROJECT_WARPS; w++)
        if (w < warps) largest = max_u32(largest, exchange.largest[w]);
    float factor = q.norm ? norm_factor(exchange.squares, q.columns, q.epsilon) : 1.0f;
    float max = __uint_as_float(largest < INFINITE ? largest : 0x7fffffff) * factor;
    max = max < 1e-5f ? 1e-5f : max; // As BitNet b1.58 defines it; NaN stays.
    float inverse = 127.0f / max * factor;
#pragma unroll
    for (u32 i = 0; i < KEPT; i++) {
        u32 chunk = threadIdx.x + i * blockDim.x;
        if (chunk < padded) store_chunk(codes, groups, chunk, kept[i], inverse, 1.0f);
    }
    for (u32 chunk = threadIdx.x + KEPT * blockDim.x; chunk < padded; chunk += blockDim.x) {
        bool there = chunk < chunks;
        float4 v = there ? load4(q.x + 4 * chunk) : make_float4(0, 0, 0, 0);
        store_chunk(codes, groups, chunk, weighted(v, norm_weights(there ? q.norm : 0, chunk), squares), inverse, 1.0f);
    }
    return max / 127.0f;
}

// Copies what an earlier kernel has quantized.
__device__ __forceinline__ void copy_quantized(const Quantization& q, u8* codes, float2* groups) {
    u32 padded = (q.columns + 127) / 128 * 128;
    for (u32 i = threadIdx.x; i < padded / 16; i += blockDim.x)
        ((uint4*)codes)[i] = 16 * i < q.columns ? load_u32x4(q.quantized.codes + 16 * i) : make_uint4(0, 0, 0, 0);
    for (u32 i = threadIdx.x; i < padded / 32; i += blockDim.x)
        groups[i] = 32 * i < q.columns ? load2(q.quantized.groups + i) : make_float2(0, 0);
}

// The vector into shared memory; ends with a barrier. Returns a factor of all products, but for the norm's (below).
template <u32 R>
__device__ __forceinline__ float quantize_input(const Quantization& q, const NormAhead& ahead, uint4* shared,
                                                Exchange<R>& exchange) {
    u8* codes = (u8*)shared;
    float2* groups = (float2*)(codes + (q.columns + 127) / 128 * 128);
    float factor = 1.0f;
    if (q.whole_row) {
        factor = quantize_row(q, ahead, codes, groups, exchange);
    } else if (q.x) {
        quantize_groups(q, ahead, codes, groups, exchange.squares);
    } else {
        copy_quantized(q, codes, groups);
    }
    __syncthreads();
    return factor;
}

// The norm's factor of all products, where the codes were made without it.
template <u32 R>
__device__ __forceinline__ float late_factor(const Quantization& q, const Exchange<R>& exchange) {
    return q.norm && !q.whole_row ? norm_factor(exchange.squares, q.columns, q.epsilon) : 1.0f;
}
