//! Tiles: how weights lie in memory for the CPU kernels.
//!
//! A tile holds 16 rows of a matrix. For each block position along the columns it holds the 16 rows' blocks, field by
//! field, cut into units and interleaved: unit 0 of rows 0 to 15, then unit 1 of rows 0 to 15, and so on. With units of
//! 4 bytes a 32-bit vector lane is a row, so that one integer dot-product instruction with a broadcast activation
//! advances as many rows as the vector has lanes, scales of many rows are converted at once, and no dot product ends in
//! a horizontal sum. The bytes are the file's own, as many as in the file, in another order.

use crate::quant::Format;

/// Rows of a tile.
pub const ROWS: usize = 16;

/// A field of a block: `bytes` bytes at `offset`, interleaved in units of `unit` bytes. In a tile the fields of the 16
/// blocks are in the order of the list.
#[derive(Clone, Copy)]
pub struct Field {
    /// Where it is in the block of a file.
    pub offset: usize,
    /// How long it is.
    pub bytes: usize,
    /// How much of it stays together.
    pub unit: usize,
}

const fn field(offset: usize, bytes: usize, unit: usize) -> Field {
    Field { offset, bytes, unit }
}

/// Each half of 128 columns in the order of use: 4 bytes of high bits and the two times 4 bytes of low bits that go with
/// them, 8 times, then the half's scales. In the file's order a GEMV would jump between three places, which the CPU's
/// prefetching follows badly: it read memory at two thirds of the speed of this order.
const Q6_K: [Field; 51] = {
    let mut fields = [field(208, 2, 2); 51];
    let mut i = 0;
    while i < 50 {
        let (half, v) = (i / 25, i % 25 / 3);
        fields[i] = match i % 25 {
            24 => field(192 + 8 * half, 8, 2),
            place if place % 3 == 0 => field(128 + 32 * half + 4 * v, 4, 4),
            place => field(64 * half + 32 * (place % 3 - 1) + 4 * v, 4, 4),
        };
        i += 1;
    }
    fields
};
/// Bytes of half a Q6_K block of 16 rows: lines of 64 bytes 3v to 3v + 2 are unit v of the high and of the low bits, then
/// there are the scales.
pub const Q6_K_HALF: usize = 104 * ROWS;

/// How the blocks of a format are cut. None for formats that are stored as another one in tiles.
pub fn fields(format: Format) -> Option<&'static [Field]> {
    Some(match format {
        Format::F32 => const { &[field(0, 4, 4)] },
        Format::F16 | Format::BF16 => const { &[field(0, 2, 2)] },
        Format::Q8_0 => const { &[field(0, 2, 2), field(2, 32, 4)] },
        Format::Q4_0 => const { &[field(0, 2, 2), field(2, 16, 4)] },
        Format::Q4_1 => const { &[field(0, 2, 2), field(2, 2, 2), field(4, 16, 4)] },
        Format::Q5_0 => const { &[field(0, 2, 2), field(2, 4, 4), field(6, 16, 4)] },
        Format::Q5_1 => const { &[field(0, 2, 2), field(2, 2, 2), field(4, 4, 4), field(8, 16, 4)] },
        Format::Q4_K => const { &[field(0, 2, 2), field(2, 2, 2), field(4, 12, 4), field(16, 128, 4)] },
        Format::Q5_K => const { &[field(0, 2, 2), field(2, 2, 2), field(4, 12, 4), field(16, 160, 4)] },
        Format::Q6_K => &Q6_K,
        Format::TQ2_0 => const { &[field(64, 2, 2), field(0, 64, 4)] },
        Format::I2_S => const { &[field(0, 32, 4)] },
        Format::Q2_K | Format::Q3_K | Format::TQ1_0 => return None,
    })
}

/// The format that tiles hold a file's format in: the same values, exactly.
pub fn tiled_format(format: Format) -> Format {
    match format {
        // Q3_K is Q6_K with fewer bits: the same scales, codes that fit.
        Format::Q3_K => Format::Q6_K,
        Format::Q2_K => Format::F32,
        Format::TQ1_0 => Format::TQ2_0,
        other => other,
    }
}

/// Bytes of a tile of this format with so many columns.
pub fn tile_bytes(format: Format, columns: usize) -> usize {
    columns / format.block_len() * format.block_bytes() * ROWS
}

/// Writes one tile from up to 16 rows of blocks, one row after the other; missing rows become zeros.
pub fn interleave(format: Format, rows: &[u8], row_bytes: usize, tile: &mut [u8]) {
    let block_bytes = format.block_bytes();
    assert!(rows.len() % row_bytes == 0 && rows.len() <= ROWS * row_bytes && tile.len() == ROWS * row_bytes);
    let count = rows.len() / row_bytes;
    let fields = fields(format).unwrap_or_default();
    for (index, block) in tile.chunks_exact_mut(block_bytes * ROWS).enumerate() {
        let mut rest = &mut *block;
        for field in fields {
            let place = rest.split_off_mut(..field.bytes * ROWS).expect("the fields are the block");
            let source = &rows[index * block_bytes + field.offset..];
            match field.unit {
                // Constant sizes, so that each copy is one move.
                2 => interleave_field::<2>(source, row_bytes, count, place),
                _ => interleave_field::<4>(source, row_bytes, count, place),
            }
        }
    }
}

/// Unit by unit, so that a tile is written from end to end.
#[inline(always)]
fn interleave_field<const UNIT: usize>(source: &[u8], row_bytes: usize, count: usize, place: &mut [u8]) {
    let whole = count == ROWS && source.len() >= (ROWS - 1) * row_bytes + place.len() / ROWS;
    for (i, slots) in place.as_chunks_mut::<UNIT>().0.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
        for r in 0..ROWS {
            slots[r] = match whole {
                // SAFETY: all units of the last row are inside, so unit i of each row is.
                true => unsafe { source.as_ptr().add(r * row_bytes + i * UNIT).cast::<[u8; UNIT]>().read() },
                false if r < count => *source[r * row_bytes + i * UNIT..].first_chunk().expect("a row is whole"),
                false => [0; UNIT],
            };
        }
    }
}

/// Reads back the block of row `row` from the 16 interleaved blocks of one block position.
pub fn block_of_row(format: Format, blocks: &[u8], row: usize, out: &mut [u8]) {
    let mut rest = blocks;
    for field in fields(format).unwrap_or_default() {
        let place = rest.split_off(..field.bytes * ROWS).expect("the fields are the block");
        for (i, unit) in out[field.offset..][..field.bytes].chunks_exact_mut(field.unit).enumerate() {
            unit.copy_from_slice(&place[(i * ROWS + row) * field.unit..][..field.unit]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_block_comes_back_from_a_tile() {
        for &format in Format::ALL.iter().filter(|&&format| fields(format).is_some()) {
            let columns = format.block_len() * 3;
            let row_bytes = format.block_bytes() * 3;
            let bytes: Vec<u8> = (0..row_bytes * ROWS).map(|i| ((i as u64 * 2_654_435_761) >> 7) as u8).collect();
            for count in [1, 7, ROWS] {
                let rows = &bytes[..count * row_bytes];
                let mut tile = vec![0xAA; tile_bytes(format, columns)];
                interleave(format, rows, row_bytes, &mut tile);
                let rows: Vec<&[u8]> = rows.chunks_exact(row_bytes).collect();
                for row in 0..ROWS {
                    for (b, blocks) in tile.chunks_exact(format.block_bytes() * ROWS).enumerate() {
                        let mut found = vec![0x55; format.block_bytes()];
                        block_of_row(format, blocks, row, &mut found);
                        let zeros = vec![0; format.block_bytes()];
                        let expected = rows
                            .get(row)
                            .map_or(&zeros[..], |row| &row[b * format.block_bytes()..][..format.block_bytes()]);
                        assert_eq!(found, expected, "{} row {row} of {count}", format.name());
                    }
                }
            }
        }
    }
}
