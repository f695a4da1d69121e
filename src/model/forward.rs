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
