//! Layers of ternary weights: what Hugging Face folders store, and the codes and the scale that they mean.

use super::config::Direction;
use super::folder::Folder;
use super::values;
use crate::file::safetensors::Stored;
use crate::{Error, Result};

/// A layer of the folder.
pub(super) struct Linear<'a> {
    /// Of its weights in the folder.
    pub(super) name: String,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Rows of each head this long are rearranged so that the pairs that RoPE rotates are adjacent.
    pub(super) adjacent: Option<usize>,
    pub(super) weight: Weight<'a>,
}

/// How its weights are stored.
pub(super) enum Weight<'a> {
    /// Codes of two bits. Byte `(r, c)` holds, from its low bits up, the codes of rows `r`, `r + rows / 4`,
    /// `r + rows / 2` and `r + 3 rows / 4` in column `c`.
    Packed { stored: Stored<'a>, weight_scale: f32, direction: Direction },
    /// Floats, which training made ternary whenever it used them.
    Master { stored: Stored<'a> },
}

/// How a master becomes a code.
struct Rounding {
    /// One over the mean magnitude.
    inverse: f32,
}

/// A layer that is being read.
pub(super) struct Reader<'a, 'b> {
    linear: &'b Linear<'a>,
    rounding: Rounding,
    /// The magnitude of the weights that are not zero.
    pub(super) scale: f32,
    floats: Vec<f32>,
}

impl<'a> Linear<'a> {
    /// Of packed weights, the magnitude of those that are not zero.
    pub(super) fn packed_magnitude(&self) -> Option<f32> {
        match self.weight {
            Weight::Packed { weight_scale, direction, .. } => Some(direction.magnitude(weight_scale)),
            Weight::Master { .. } => None,
        }
    }

    /// Finds the scale; of masters this reads all of them.
    pub(super) fn read(&self) -> Result<Reader<'a, '_>> {
        let (inverse, scale) = match &self.weight {
            Weight::Packed { weight_scale, direction, .. } => (0.0, direction.magnitude(*weight_scale)),
            Weight::Master { stored } => {
                let inverse = 1.0 / self.mean(stored)?.max(1e-5);
                (inverse, 1.0 / inverse)
            }
        };
        Ok(Reader { linear: self, rounding: Rounding { inverse }, scale, floats: vec![0.0; self.columns] })
    }

    /// The mean magnitude, as f32: magnitudes are added in f64, one after the other in the order of memory, so that
    /// every machine finds the same. (PyTorch adds in f32 in an order of its own, which may differ in the last bits.)
    fn mean(&self, stored: &Stored<'_>) -> Result<f32> {
        let (mut row, mut sum) = (vec![0.0; self.columns], 0.0f64);
        for r in 0..self.rows {
            values::read(&self.name, stored, r * self.columns, &mut row)?;
            for value in &row {
                sum += f64::from(value.abs());
            }
        }
        Ok((sum / (self.rows * self.columns) as f64) as f32)
    }

    /// Which row of the folder is row `r` of the file.
    fn source_row(&self, r: usize) -> usize {
        match self.adjacent {
            None => r,
            Some(head_dim) => r / head_dim * head_dim + r % 2 * (head_dim / 2) + r % head_dim / 2,
        }
    }

    /// Its bytes are not needed again soon.
    pub(super) fn release(&self, folder: &Folder) {
        let (Weight::Packed { stored, .. } | Weight::Master { stored }) = &self.weight;
        folder.release(stored.bytes);
    }
}

impl Reader<'_, '_> {
    /// Puts the codes of row `r` of the file into `out`: the weights plus one.
    pub(super) fn codes(&mut self, r: usize, out: &mut [u8]) -> Result<()> {
        let linear = self.linear;
        let row = linear.source_row(r);
        match &linear.weight {
            Weight::Packed { stored, .. } => {
                let quarter = linear.rows / 4;
                let bytes = &stored.bytes[row % quarter * linear.columns..][..linear.columns];
                let shift = 2 * (row / quarter);
                for (out, byte) in out.iter_mut().zip(bytes) {
                    *out = byte >> shift & 3;
                }
                if let Some(column) = out.iter().position(|code| *code == 3) {
                    let place = format!("row {row}, column {column}");
                    let text = format!("tensor `{}` is damaged: code 3 at {place} means no weight", linear.name);
                    return Err(Error::Format(text));
                }
            }
            Weight::Master { stored } => {
                values::read(&linear.name, stored, row * linear.columns, &mut self.floats)?;
                for (out, value) in out.iter_mut().zip(&self.floats) {
                    *out = self.rounding.code(*value);
                }
            }
        }
        Ok(())
    }
}

impl Rounding {
    /// The nearest of -1, 0 and 1 to the value over the mean magnitude, the even one of two, plus one.
    fn code(&self, value: f32) -> u8 {
        let ratio = value * self.inverse;
        // Halves round to the even neighbour, which is zero.
        1 + u8::from(ratio > 0.5) - u8::from(ratio < -0.5)
    }
}
