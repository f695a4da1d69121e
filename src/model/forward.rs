//! The forward pass: token ids to logits, stage by stage.

use crate::Result;
use crate::backend::Sequence;

/// How far a forward pass has come: it can stop between any two stages and go on later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    layer: usize,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Embed,
    AttnIn,
    Attention,
    AttnOut,
    FfnIn,
    FfnOut,
    Head,
    /// A piece of a pass over one generated token, of so many.
    Decode(usize, usize),
    /// Everything is asked for.
    Last,
    Done,
}

/// What a pass computes.
pub struct Pass<'a> {
    /// Its tokens.
    pub tokens: &'a [u32],
    /// The first one's position.
    pub position: usize,
    /// Leave logits.
    pub head: bool,
    /// The one token was generated, and logits are wanted: a backend may take it in pieces of its own.
    pub decode: bool,
    /// Wait at each border for what was asked for, so that `stop` is asked in time.
    pub paced: bool,
}

/// Runs the pass from where `progress` stands.
///
/// `stop` is asked at each stage border; true ends this call. Returns whether the pass is complete.
pub fn forward(
    sequence: &mut dyn Sequence,
    layers: usize,
    pass: &Pass<'_>,
    progress: &mut Progress,
    mut stop: impl FnMut() -> bool,
) -> Result<bool> {
    if pass.decode && progress.stage == Stage::Embed {
        let pieces = sequence.decode_pieces(pass.paced);
        if pieces > 0 {
            progress.stage = Stage::Decode(0, pieces);
        }
    }
    loop {
        let layer = progress.layer;
        progress.stage = match progress.stage {
            Stage::Embed => {
                sequence.embed(pass.tokens, pass.position)?;
                Stage::AttnIn
            }
            Stage::AttnIn => {
                sequence.attn_in(layer)?;
                Stage::Attention
            }
            Stage::Attention => {
                sequence.attention(layer)?;
                Stage::AttnOut
            }
            Stage::AttnOut => {
                sequence.attn_out(layer)?;
                Stage::FfnIn
            }
            Stage::FfnIn => {
                sequence.ffn_in(layer)?;
                Stage::FfnOut
            }
            Stage::FfnOut => {
                sequence.ffn_out(layer)?;
                progress.layer += 1;
                if progress.layer < layers {
                    Stage::AttnIn
                } else if pass.head {
                    Stage::Head
                } else {
                    Stage::Last
                }
            }
            Stage::Head => {
                sequence.head()?;
                Stage::Last
            }
            Stage::Decode(piece, pieces) => {
                sequence.decode_piece(piece, pieces, pass.tokens[0], pass.position)?;
                if piece + 1 < pieces { Stage::Decode(piece + 1, pieces) } else { Stage::Last }
            }
            Stage::Last => {
                sequence.wait()?;
                Stage::Done
            }
            Stage::Done => return Ok(true),
        };
        if !matches!(progress.stage, Stage::Last | Stage::Done) {
            if pass.paced {
                sequence.wait()?;
            }
            if stop() {
                return Ok(false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KvFormat, LoadOptions, Model, Source};
    use std::path::Path;
    use std::sync::Arc;

    /// A pass over the first tokens, one that ends with a head, one over a generated token.
    const PASSES: [(std::ops::Range<usize>, bool); 3] = [(0..7, false), (7..12, true), (12..13, true)];
    const TOKENS: [u32; 13] = [5, 17, 200, 3, 90, 44, 121, 9, 60, 31, 300, 2, 77];

    fn model() -> Arc<Model> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/edgellm-tiny-b1.58.gguf");
        let options = LoadOptions { threads: 2, ..LoadOptions::default() };
        Model::load(Source::Path(&path), options).expect("a good model")
    }

    fn sequence(model: &Model, format: KvFormat) -> Box<dyn Sequence> {
        model.backend().new_sequence(32, 8, format).expect("memory")
    }

    /// Runs all passes, stopped at those borders (counted through all of them) for which `stops`, where `meanwhile` is
    /// called. Gives the bits of the logits of each head, and how many borders there are.
    fn run(
        model: &Model,
        format: KvFormat,
        stops: impl Fn(usize) -> bool,
        mut meanwhile: impl FnMut(),
    ) -> (Vec<Vec<u32>>, usize) {
        let mut sequence = sequence(model, format);
        let (mut border, mut all) = (0, Vec::new());
        for (range, head) in PASSES {
            let (tokens, position) = (&TOKENS[range.clone()], range.start);
            let pass = Pass { tokens, position, head, decode: range.len() == 1, paced: true };
            let mut progress = Progress::default();
            let stop = |border: &mut usize| {
                *border += 1;
                stops(*border - 1)
            };
            let layers = model.config().shape.layers;
            while !forward(&mut *sequence, layers, &pass, &mut progress, || stop(&mut border)).expect("a good pass") {
                meanwhile();
            }
            if head {
                all.push(sequence.logits().expect("just computed").iter().map(|logit| logit.to_bits()).collect());
            }
        }
        (all, border)
    }

    #[test]
    fn a_pass_resumed_at_any_border_gives_the_bits_of_an_unbroken_one() {
        let model = model();
        for format in [KvFormat::F16, KvFormat::I8] {
            let (expected, borders) = run(&model, format, |_| false, || {});
            assert_eq!(
                borders,
                3 * 5 * model.config().shape.layers + 2,
                "after each stage but the last, and each embed"
            );
            let disturb = || {
                run(&model, format, |_| false, || {});
            };
            for stop in 0..borders {
                assert_eq!(run(&model, format, |border| border == stop, disturb).0, expected, "{format:?}: {stop}");
                assert_eq!(
                    run(&model, format, |border| border >= stop, || {}).0,
                    expected,
                    "{format:?}: from {stop} on"
                );
            }
        }
    }
}
