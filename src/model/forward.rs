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
    Done,
}

/// Runs the pass over `tokens`, the first at `position`, from where `progress` stands. `head`: leave logits.
///
/// `stop` is asked at each stage border; true ends this call. Returns whether the pass is complete.
pub fn forward(
    sequence: &mut dyn Sequence,
    layers: usize,
    tokens: &[u32],
    position: usize,
    head: bool,
    progress: &mut Progress,
    mut stop: impl FnMut() -> bool,
) -> Result<bool> {
    loop {
        let layer = progress.layer;
        progress.stage = match progress.stage {
            Stage::Embed => {
                sequence.embed(tokens, position)?;
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
                } else if head {
                    Stage::Head
                } else {
                    Stage::Done
                }
            }
            Stage::Head => {
                sequence.head()?;
                Stage::Done
            }
            Stage::Done => return Ok(true),
        };
        if progress.stage != Stage::Done && stop() {
            return Ok(false);
        }
    }
}
