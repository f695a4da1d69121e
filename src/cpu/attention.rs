//! Attention of some queries to a tile of positions, written once over a vector type of any width.
//!
//! `lanes::attend` defines the bits; here the same sums are held in registers for several queries at a time, so that
//! each key and value is loaded once for all of them.

/// Defines `attend` (see `lanes::attend`) for an instruction set.
///
/// `queries` go together; their scores are summed for `score_vectors` of positions at a time, their outputs for
/// `value_vectors` of dimensions at a time: what the registers hold. 16 dimensions must be a whole number of vectors.
macro_rules! attention {
    (
        features: $features:literal, width: $width:literal, queries: $queries:literal,
        score_vectors: $score_vectors:literal, value_vectors: $value_vectors:literal,
        load: $load:path, store: $store:path, splat: $splat:path, zero: $zero:path,
        add: $add:path, mul: $mul:path, fma: $fma:path
    ) => {
        #[target_feature(enable = $features)]
        fn attend(
            q: &[f32],
            keys: &[f32],
            values: &[f32],
            scale: f32,
            states: &mut [SoftmaxState],
            accumulators: &mut [f32],
        ) {
            let head_dim = q.len() / states.len();
            let mut from = 0;
            while from < states.len() {
                let count = (states.len() - from).min($queries);
                let range = from * head_dim..(from + count) * head_dim;
                let (q, accumulators) = (&q[range.clone()], &mut accumulators[range]);
                let states = &mut states[from..from + count];
                match count {
                    4 => attend_group::<4>(q, keys, values, scale, states, accumulators),
                    3 => attend_group::<3>(q, keys, values, scale, states, accumulators),
                    2 => attend_group::<2>(q, keys, values, scale, states, accumulators),
                    _ => attend_group::<1>(q, keys, values, scale, states, accumulators),
                }
                from += count;
            }
        }

        #[target_feature(enable = $features)]
        fn attend_group<const G: usize>(
            q: &[f32],
            keys: &[f32],
            values: &[f32],
            scale: f32,
            states: &mut [SoftmaxState],
            accumulators: &mut [f32],
        ) {
            let head_dim = q.len() / G;
            let positions = values.len() / head_dim;
            let mut weights = [[0.0f32; ATTENTION_TILE]; G];
            for from in (0..ATTENTION_TILE).step_by($score_vectors * $width) {
                scores(q, keys, from, scale, &mut weights);
            }
            let states = states.first_chunk_mut().expect("a state a query");
            let corrections = lanes::softmax_tile(&mut weights, positions, states);
            let mut from = 0;
            while from + $value_vectors * $width <= head_dim {
                accumulate::<G, $value_vectors>(&weights, values, head_dim, from, &corrections, accumulators);
                from += $value_vectors * $width;
            }
            while from < head_dim {
                accumulate::<G, { 16 / $width }>(&weights, values, head_dim, from, &corrections, accumulators);
                from += 16;
            }
        }

        /// Scaled scores of the positions from `from` on: a chain over the even dimensions and one over the odd ones.
        #[inline]
        #[target_feature(enable = $features)]
        fn scores<const G: usize>(
            q: &[f32],
            keys: &[f32],
            from: usize,
            scale: f32,
            scores: &mut [[f32; ATTENTION_TILE]; G],
        ) {
            let head_dim = q.len() / G;
            assert!(keys.len() == head_dim * ATTENTION_TILE && q.len() == G * head_dim);
            let mut chains = [[[$zero(); $score_vectors]; G]; 2];
            for c in 0..2 {
                let mut sums = [[$zero(); $score_vectors]; G];
                for d in (c..head_dim).step_by(2) {
                    let mut key = [$zero(); $score_vectors];
                    for i in 0..$score_vectors {
                        // SAFETY: d < head_dim and from + 32 lanes at the most stay in a row of 32: asserted above.
                        key[i] = unsafe { $load(keys.as_ptr().add(d * ATTENTION_TILE + from + i * $width)) };
                    }
                    for g in 0..G {
                        // SAFETY: g < G and d < head_dim: asserted above.
                        let value = $splat(unsafe { *q.get_unchecked(g * head_dim + d) });
                        for i in 0..$score_vectors {
                            sums[g][i] = $fma(value, key[i], sums[g][i]);
                        }
                    }
                }
                chains[c] = sums;
            }
            let scale = $splat(scale);
            for g in 0..G {
                for (i, place) in scores[g][from..].chunks_exact_mut($width).take($score_vectors).enumerate() {
                    let score = $mul($add(chains[0][g][i], chains[1][g][i]), scale);
                    // SAFETY: a chunk has room for a vector.
                    unsafe { $store(place.as_mut_ptr(), score) };
                }
            }
        }

        /// `accumulators[g][d] = accumulators[g][d] * corrections[g] + Σ_j weights[g][j] * values[j][d]` for V vectors of
        /// dimensions from `from` on.
        #[inline]
        #[target_feature(enable = $features)]
        fn accumulate<const G: usize, const V: usize>(
            weights: &[[f32; ATTENTION_TILE]; G],
            values: &[f32],
            head_dim: usize,
            from: usize,
            corrections: &[f32; G],
            accumulators: &mut [f32],
        ) {
            let positions = values.len() / head_dim;
            assert!(accumulators.len() == G * head_dim && from + V * $width <= head_dim && positions <= ATTENTION_TILE);
            let mut sums = [[$zero(); V]; G];
            for g in 0..G {
                for v in 0..V {
                    // SAFETY: from + V vectors stay in a row of head_dim: asserted above.
                    let sum = unsafe { $load(accumulators.as_ptr().add(g * head_dim + from + v * $width)) };
                    sums[g][v] = $mul(sum, $splat(corrections[g]));
                }
            }
            for j in 0..positions {
                let mut value = [$zero(); V];
                for v in 0..V {
                    // SAFETY: j is a whole row of values, in which the vector is, as above.
                    value[v] = unsafe { $load(values.as_ptr().add(j * head_dim + from + v * $width)) };
                }
                for g in 0..G {
                    let weight = $splat(weights[g][j]);
                    for v in 0..V {
                        sums[g][v] = $fma(weight, value[v], sums[g][v]);
                    }
                }
            }
            for g in 0..G {
                for v in 0..V {
                    // SAFETY: as for the loads.
                    unsafe { $store(accumulators.as_mut_ptr().add(g * head_dim + from + v * $width), sums[g][v]) };
                }
            }
        }
    };
}
pub(super) use attention;
