//! GGUF files whose I2_S tensors are in another order of codes.

use super::with_model_file;
use edgellm::I2sLayout;
use edgellm::quant::Format;

/// The file with every I2_S tensor's codes in this order, given one in blocks of 128; everything else stays.
pub fn in_i2s_layout(bytes: &[u8], layout: I2sLayout) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    let mut tensors = 0;
    with_model_file(bytes, |file| {
        for tensor in file.expect("a good file").tensors().filter(|tensor| tensor.format == Format::I2_S) {
            let mut values = vec![f32::NAN; tensor.bytes.len() * 4];
            tensor.format.dequantize(tensor.bytes, &mut values);
            let at = tensor.bytes.as_ptr().addr() - bytes.as_ptr().addr();
            changed[at..at + tensor.bytes.len()].copy_from_slice(&packed(&values, tensor.shape[0], layout));
            tensors += 1;
        }
    });
    assert!(tensors > 0, "no I2_S tensor");
    changed
}

/// Weights of a matrix as bitnet.cpp's `quantize_i2_s` packs them, without the scale behind them.
fn packed(values: &[f32], columns: usize, layout: I2sLayout) -> Vec<u8> {
    let mut bytes = vec![0; values.len() / 4];
    for (e, value) in values.iter().enumerate() {
        let (row, column) = (e / columns, e % columns);
        let (at, field) = match layout {
            I2sLayout::Block128 => (e / 128 * 32 + e % 32, e % 128 / 32),
            I2sLayout::Block64 => (e / 64 * 16 + e % 16, e % 64 / 16),
            I2sLayout::Rows4 => (row / 4 * columns + column, row % 4),
        };
        bytes[at] |= ((value + 1.0) as u8) << (6 - 2 * field);
    }
    bytes
}
