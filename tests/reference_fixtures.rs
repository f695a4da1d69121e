//! Exact mode against transformers on tiny random models: `tests/reference/make_fixtures.py` made them and says how,
//! `make_bitnet_fixtures.py` those of BitNet.
//!
//! In exact mode weights and activations are f32, so what is left is the arithmetic of the architectures: norms,
//! biases, grouped heads, both RoPE layouts and every RoPE scaling. BitNet rounds activations to int8 in exact mode too,
//! as the model defines it; its fixtures keep away from the middle between two codes, where any two programs differ.

use edgellm::{LoadOptions, Model, Result, Session, SessionOptions, Source};
use std::path::PathBuf;

/// Largest error allowed, as a part of the largest logit. The goldens are within 1e-6 of the f64 result; f32 sums in
/// another order move these models' logits by up to 3e-6.
const TOLERANCE: f32 = 1e-5;

/// What transformers said: `logits` is (tokens, vocab).
struct Golden {
    ids: Vec<u32>,
    logits: Vec<f32>,
}

fn path(name: &str, extension: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/reference/fixtures/{name}.{extension}"))
}

fn words(name: &str, extension: &str) -> Vec<[u8; 4]> {
    let path = path(name, extension);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    bytes.as_chunks().0.to_vec()
}

impl Golden {
    fn read(name: &str) -> Golden {
        let ids: Vec<u32> = words(name, "ids").into_iter().map(u32::from_le_bytes).collect();
        let logits: Vec<f32> = words(name, "logits").into_iter().map(f32::from_le_bytes).collect();
        assert!(!ids.is_empty() && logits.len().is_multiple_of(ids.len()), "{name}: fixture damaged");
        Golden { ids, logits }
    }

    fn vocab(&self) -> usize {
        self.logits.len() / self.ids.len()
    }

    fn row(&self, position: usize) -> &[f32] {
        &self.logits[position * self.vocab()..][..self.vocab()]
    }

    /// The first position whose logits are further from these than the tolerance, NaN included, and by how much.
    fn first_difference(&self, found: &[Row]) -> Option<(usize, f32)> {
        let scale = self.logits.iter().fold(0f32, |scale, logit| scale.max(logit.abs()));
        found.iter().find_map(|(position, row)| {
            assert_eq!(row.len(), self.vocab());
            let errors = row.iter().zip(self.row(*position)).map(|(found, expected)| (found - expected).abs() / scale);
            // In the total order NaN, which `>` would pass, is larger than everything.
            let worst = errors.max_by(f32::total_cmp).unwrap_or(f32::NAN);
            worst.total_cmp(&TOLERANCE).is_gt().then_some((*position, worst))
        })
    }
}

/// A position and the logits after it.
type Row = (usize, Vec<f32>);

fn exact(source: Source<'_>, context_len: usize) -> Result<Session> {
    let model = Model::load(source, LoadOptions { exact: true, threads: 1, ..LoadOptions::default() })?;
    Session::new(&model, &SessionOptions { context_len, ..SessionOptions::default() })
}

/// Logits after every token, one token a step.
fn one_by_one(session: &mut Session, ids: &[u32]) -> Result<Vec<Row>> {
    session.rewind(0)?;
    let mut rows = Vec::new();
    for (position, &id) in ids.iter().enumerate() {
        session.append(&[id])?;
        assert!(session.forward(None)?);
        rows.push((position, session.logits()?.to_vec()));
    }
    Ok(rows)
}

/// Logits after prompts of some lengths, each run as one chunk: around multiples of what kernels take at once.
fn one_chunk(session: &mut Session, ids: &[u32]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for end in [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 80, 95, ids.len()] {
        session.rewind(0)?;
        session.append(&ids[..end])?;
        assert!(session.forward(None)?);
        rows.push((end - 1, session.logits()?.to_vec()));
    }
    Ok(rows)
}

fn matches_transformers(name: &str) -> Result<()> {
    let golden = Golden::read(name);
    let mut session = exact(Source::Path(&path(name, "gguf")), golden.ids.len())?;
    let decoded = one_by_one(&mut session, &golden.ids)?;
    assert_eq!(golden.first_difference(&decoded), None, "{name}, one by one: (position, error)");
    let prefilled = one_chunk(&mut session, &golden.ids)?;
    assert_eq!(golden.first_difference(&prefilled), None, "{name}, one chunk: (position, error)");
    Ok(())
}

#[test]
fn qwen3_with_query_and_key_norms_matches_transformers() -> Result<()> {
    matches_transformers("qwen3")
}

#[test]
fn bitnet_with_squared_relu_in_i2_s_matches_transformers() -> Result<()> {
    matches_transformers("bitnet-i2_s")
}

#[test]
fn bitnet_with_silu_in_tq2_0_matches_transformers() -> Result<()> {
    matches_transformers("bitnet-tq2")
}

#[test]
fn llama_with_rope_freqs_matches_transformers() -> Result<()> {
    matches_transformers("llama3-rope")
}

#[test]
fn llama_with_linear_rope_scaling_matches_transformers() -> Result<()> {
    matches_transformers("llama-linear")
}

#[test]
fn qwen2_with_biases_and_a_tied_head_matches_transformers() -> Result<()> {
    matches_transformers("qwen2")
}

/// The model file with the bytes from `marker` on changed by `change`. Leaked: the model asks for `'static`.
fn changed(name: &str, marker: &[u8], change: impl FnOnce(&mut [u8])) -> &'static [u8] {
    let mut bytes = std::fs::read(path(name, "gguf")).expect("fixture");
    let found = bytes.windows(marker.len()).position(|window| window == marker).expect("marker");
    change(&mut bytes[found..]);
    bytes.leak()
}

/// A model that differs in one number must be told apart, or the tests above prove nothing.
fn is_told_apart(name: &str, bytes: &'static [u8]) -> Result<()> {
    let golden = Golden::read(name);
    let mut session = exact(Source::Bytes(bytes), golden.ids.len())?;
    let rows = one_by_one(&mut session, &golden.ids)?;
    assert!(golden.first_difference(&rows).is_some(), "{name}: a wrong model matches");
    Ok(())
}

/// A metadata value of type f32, changed: after the key come a u32 type and the value.
fn changed_value(name: &str, key: &str, from: f32, to: f32) -> &'static [u8] {
    changed(name, key.as_bytes(), |rest| {
        let value = &mut rest[key.len() + 4..][..4];
        assert_eq!(value, from.to_le_bytes());
        value.copy_from_slice(&to.to_le_bytes());
    })
}

#[test]
fn a_wrong_rope_base_is_told_apart() -> Result<()> {
    is_told_apart("llama3-rope", changed_value("llama3-rope", "llama.rope.freq_base", 10000.0, 10100.0))
}

#[test]
fn a_wrong_rope_scale_is_told_apart() -> Result<()> {
    is_told_apart("llama-linear", changed_value("llama-linear", "llama.rope.scaling.factor", 4.0, 4.04))
}

#[test]
fn missing_rope_freqs_are_told_apart() -> Result<()> {
    // The last five of rope_freqs.weight's eight divisors.
    let divisors = 32f32.to_le_bytes().repeat(5);
    let bytes = changed("llama3-rope", &divisors, |rest| rest[..20].copy_from_slice(&1f32.to_le_bytes().repeat(5)));
    is_told_apart("llama3-rope", bytes)
}

/// The model file with a change in its last tensor's last 32 codes, or in the 32 bytes after them, the scale and padding.
fn changed_end(name: &str, change: impl FnOnce(&mut [u8; 64])) -> &'static [u8] {
    let mut bytes = std::fs::read(path(name, "gguf")).expect("fixture");
    change(bytes.last_chunk_mut().expect("64 bytes"));
    bytes.leak()
}

#[test]
fn another_ternary_scale_is_told_apart() -> Result<()> {
    let bytes = changed_end("bitnet-i2_s", |end| {
        let scale = f32::from_le_bytes([end[32], end[33], end[34], end[35]]);
        assert!(scale > 0.01 && scale < 1.0);
        end[32..36].copy_from_slice(&(scale * 1.001).to_le_bytes());
    });
    is_told_apart("bitnet-i2_s", bytes)
}

#[test]
fn one_ternary_weight_of_two_hundred_thousand_is_told_apart() -> Result<()> {
    let bytes = changed_end("bitnet-i2_s", |end| end[31] = (end[31] & !3) | (((end[31] & 3) + 1) % 3));
    is_told_apart("bitnet-i2_s", bytes)
}

#[test]
fn another_order_of_tokens_is_told_apart() -> Result<()> {
    let golden = Golden::read("qwen3");
    let mut session = exact(Source::Path(&path("qwen3", "gguf")), golden.ids.len())?;
    let mut ids = golden.ids.clone();
    ids.swap(10, 11);
    let rows = one_by_one(&mut session, &ids)?;
    assert_eq!(golden.first_difference(&rows).map(|(position, _)| position), Some(10));
    Ok(())
}

#[test]
fn the_comparison_sees_nan_and_shifted_rows() {
    let golden = Golden::read("qwen2");
    let mut rows: Vec<Row> = (0..golden.ids.len()).map(|position| (position, golden.row(position).to_vec())).collect();
    assert_eq!(golden.first_difference(&rows), None);
    rows[7].1[3] = f32::NAN;
    assert_eq!(golden.first_difference(&rows).map(|(position, _)| position), Some(7));
    rows[7].1[3] = golden.row(7)[3];
    for (position, row) in &mut rows {
        *row = golden.row((*position + 1) % golden.ids.len()).to_vec();
    }
    assert_eq!(golden.first_difference(&rows).map(|(position, _)| position), Some(0));
}
