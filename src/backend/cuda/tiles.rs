//! Weights as the kernels read them (`kernels/README.md` has the layout): tiles of 8 rows, in planes.
//!
//! A plane is ordered tile, step (128 columns), row, group (32 columns). The four planes of a matrix are its codes, their
//! high bits, the scales and the scales of scales; most formats have only some of them.

use crate::quant::{Format, q3_k_as_q6_k, scales_k4, ternary};
use crate::{Error, Result};

/// Rows of a tile.
pub const ROWS: usize = 8;
/// A matrix is filled up to this many rows: kernels take up to 8 tiles at once.
pub const ROWS_MULTIPLE: usize = 64;
/// Columns of a group.
const GROUP: usize = 32;
/// Groups of a step; the last step of a row may have fewer.
const STEP: usize = 4;

/// Bytes of the planes of some tiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    pub codes: usize,
    pub high: usize,
    pub scales: usize,
    pub supers: usize,
}

impl Layout {
    /// Of `count` times as many tiles; None when that is more than there is address space.
    pub fn times(self, count: usize) -> Option<Layout> {
        Some(Layout {
            codes: self.codes.checked_mul(count)?,
            high: self.high.checked_mul(count)?,
            scales: self.scales.checked_mul(count)?,
            supers: self.supers.checked_mul(count)?,
        })
    }

    /// Of all planes.
    pub fn bytes(self) -> usize {
        self.codes + self.high + self.scales + self.supers
    }
}

/// The planes of some tiles, as long as their [`Layout`] says.
pub struct Planes<'a> {
    pub codes: &'a mut [u8],
    pub high: &'a mut [u8],
    pub scales: &'a mut [u8],
    pub supers: &'a mut [u8],
}

/// How the rows of a tensor become tiles.
#[derive(Clone, Copy, Debug)]
pub struct Tiling {
    source: Format,
    columns: usize,
    one_scale: bool,
}

impl Tiling {
    /// For rows of `columns` values. `one_scale`: the blocks' scales, all equal where they are not zero, are left out, and
    /// blocks with the scale zero become zeros (ternary formats only; I2_S has no scales, and is always so).
    pub fn new(source: Format, columns: usize, one_scale: bool) -> Result<Self> {
        if matches!(source, Format::F32 | Format::F16 | Format::BF16 | Format::Q2_K) {
            return Err(Error::Unsupported(format!("{} weights do not run on CUDA", source.name())));
        }
        if columns == 0 || columns % source.block_len() != 0 {
            let block = source.block_len();
            return Err(Error::Unsupported(format!("{columns} columns of {}: not blocks of {block}", source.name())));
        }
        Ok(Tiling { source, columns, one_scale: source.is_ternary() && (one_scale || source == Format::I2_S) })
    }

    /// The format of the tiles.
    pub fn format(&self) -> Format {
        match self.source {
            Format::Q3_K => Format::Q6_K,
            Format::TQ1_0 | Format::I2_S => Format::TQ2_0,
            format => format,
        }
    }

    /// Bytes of a tile.
    pub fn tile(&self) -> Layout {
        let groups = self.columns / GROUP * ROWS;
        let blocks = self.columns / 256 * ROWS;
        let layout = |codes, high, scales, supers| Layout {
            codes: codes * groups,
            high: high * groups,
            scales: scales * groups,
            supers: supers * blocks,
        };
        match self.format() {
            Format::Q4_0 => layout(16, 0, 2, 0),
            Format::Q4_1 => layout(16, 0, 4, 0),
            Format::Q5_0 => layout(16, 4, 2, 0),
            Format::Q5_1 => layout(16, 4, 4, 0),
            Format::Q8_0 => layout(32, 0, 2, 0),
            Format::Q4_K => layout(16, 0, 2, 0),
            Format::Q5_K => layout(16, 4, 2, 0),
            Format::Q6_K => layout(16, 8, 2, 2),
            _ if self.one_scale => layout(8, 0, 0, 0),
            _ => Layout { scales: 2 * blocks, ..layout(8, 0, 0, 0) },
        }
    }

    /// Bytes of a matrix of `rows` rows, filled up to whole [`ROWS_MULTIPLE`]s.
    pub fn layout(&self, rows: usize) -> Result<Layout> {
        let too_large = || Error::Unsupported(format!("{rows} rows of {} values: too many", self.columns));
        let tiles = rows.div_ceil(ROWS_MULTIPLE).checked_mul(ROWS_MULTIPLE / ROWS);
        tiles.and_then(|tiles| self.tile().times(tiles)).ok_or_else(too_large)
    }

    /// Writes the tiles of these rows (whole rows; 8 make a tile). What the rows do not fill of the planes' tiles is zeros.
    pub fn repack(&self, rows: &[u8], planes: &mut Planes<'_>) {
        let row_bytes = self.columns / self.source.block_len() * self.source.block_bytes();
        assert!(rows.len() % row_bytes == 0, "not whole rows");
        let tile = self.tile();
        let tiles = planes.codes.len() / tile.codes;
        let expected = tile.times(tiles).expect("as much as the planes have");
        let found = [planes.codes.len(), planes.high.len(), planes.scales.len(), planes.supers.len()];
        assert_eq!(found, [expected.codes, expected.high, expected.scales, expected.supers], "planes of other tiles");
        assert!(rows.len() <= tiles * ROWS * row_bytes, "more rows than the planes have");
        for index in 0..tiles {
            let rows = rows.get(index * ROWS * row_bytes..).unwrap_or_default();
            let mut planes = Planes {
                codes: &mut planes.codes[index * tile.codes..][..tile.codes],
                high: &mut planes.high[index * tile.high..][..tile.high],
                scales: &mut planes.scales[index * tile.scales..][..tile.scales],
                supers: &mut planes.supers[index * tile.supers..][..tile.supers],
            };
            for row in 0..ROWS {
                let blocks = rows.get(row * row_bytes..(row + 1) * row_bytes);
                self.repack_row(blocks, row, &mut planes);
            }
        }
    }

    /// Row `row` of a tile; None: zeros.
    fn repack_row(&self, blocks: Option<&[u8]>, row: usize, planes: &mut Planes<'_>) {
        let (block_len, block_bytes) = (self.source.block_len(), self.source.block_bytes());
        let mut block = Block::ZERO;
        for index in 0..self.columns / block_len {
            if let Some(blocks) = blocks {
                block.read(self.source, &blocks[index * block_bytes..][..block_bytes], self.one_scale);
            } else if self.one_scale {
                block.codes.fill(1); // Without a scale, this is zero.
            }
            for (g, codes) in block.codes[..block_len].as_chunks::<GROUP>().0.iter().enumerate() {
                self.write_group(index * (block_len / GROUP) + g, row, codes, planes);
            }
            self.write_scales(index, row, &block, planes);
        }
    }

    /// Where group `group` of row `row` is among the groups of a tile.
    fn place(&self, group: usize, row: usize) -> usize {
        let groups = self.columns / GROUP;
        let step = group / STEP;
        let in_step = (groups - step * STEP).min(STEP);
        step * STEP * ROWS + row * in_step + group % STEP
    }

    /// The codes of a group.
    fn write_group(&self, group: usize, row: usize, codes: &[u8; GROUP], planes: &mut Planes<'_>) {
        let at = self.place(group, row);
        let (from, codes) = (codes, planes.codes.as_chunks_mut::<4>().0);
        let high = planes.high.as_chunks_mut::<4>().0;
        match self.format() {
            Format::Q8_0 => {
                for (out, word) in codes[at * 8..][..8].iter_mut().zip(dot_words(from)) {
                    *out = word.to_le_bytes();
                }
            }
            Format::TQ2_0 => {
                for (out, words) in codes[at * 2..][..2].iter_mut().zip(dot_words(from).as_chunks::<4>().0) {
                    *out = fold(words, 2, |word| word).to_le_bytes();
                }
            }
            format => {
                for (out, eight) in codes[at * 4..][..4].iter_mut().zip(from.as_chunks::<8>().0) {
                    *out = low_bits(*eight).to_le_bytes();
                }
                if format == Format::Q6_K {
                    for (out, words) in high[at * 2..][..2].iter_mut().zip(dot_words(from).as_chunks::<4>().0) {
                        *out = fold(words, 2, |word| word >> 4 & 0x0303_0303).to_le_bytes();
                    }
                } else if !high.is_empty() {
                    high[at] = fold(&dot_words(from), 1, |word| word >> 4 & 0x0101_0101).to_le_bytes();
                }
            }
        }
    }

    /// The scales of source block `index`.
    fn write_scales(&self, index: usize, row: usize, block: &Block, planes: &mut Planes<'_>) {
        let [scale, minimum] = [block.scale.to_le_bytes(), block.minimum.to_le_bytes()];
        match self.format() {
            Format::Q4_1 | Format::Q5_1 => {
                let out = &mut planes.scales[self.place(index, row) * 4..][..4];
                out[..2].copy_from_slice(&scale);
                out[2..].copy_from_slice(&minimum);
            }
            Format::Q4_K | Format::Q5_K => {
                let mut packed = u128::from(u32::from_le_bytes([scale[0], scale[1], minimum[0], minimum[1]]));
                for kc in 0..STEP {
                    let six =
                        [block.sub_scales[kc], block.minimums[kc], block.sub_scales[kc + 4], block.minimums[kc + 4]];
                    for (i, six) in six.into_iter().enumerate() {
                        packed |= u128::from(six) << (32 + 24 * kc + 6 * i);
                    }
                }
                planes.scales[(index * ROWS + row) * 16..][..16].copy_from_slice(&packed.to_le_bytes());
            }
            Format::Q6_K => {
                for (g, pair) in block.sub_scales.as_chunks::<2>().0.iter().enumerate() {
                    planes.scales[self.place(index * 8 + g, row) * 2..][..2].copy_from_slice(pair);
                }
                planes.supers[(index * ROWS + row) * 2..][..2].copy_from_slice(&scale);
            }
            Format::TQ2_0 if self.one_scale => {}
            Format::TQ2_0 => planes.scales[(index * ROWS + row) * 2..][..2].copy_from_slice(&scale),
            _ => planes.scales[self.place(index, row) * 2..][..2].copy_from_slice(&scale),
        }
    }
}

/// The codes of a group in the order in which the kernels multiply them: word `2b` has columns `8b` + 0, 4, 1, 5, word
/// `2b + 1` has `8b` + 2, 6, 3, 7.
fn dot_words(codes: &[u8; GROUP]) -> [u32; 8] {
    let mut words = [0; 8];
    for (words, eight) in words.as_chunks_mut::<2>().0.iter_mut().zip(codes.as_chunks::<8>().0) {
        let eight = u64::from_le_bytes(*eight);
        let both = spread(eight as u32) | spread((eight >> 32) as u32) << 8;
        *words = [both as u32, (both >> 32) as u32];
    }
    words
}

/// The bytes of a word with a zero after each.
fn spread(word: u32) -> u64 {
    let pairs = (u64::from(word) | u64::from(word) << 16) & 0x0000_FFFF_0000_FFFF;
    (pairs | pairs << 8) & 0x00FF_00FF_00FF_00FF
}

/// The low four bits of eight codes as a word: those of dot word `2b`, and above them those of `2b + 1`.
fn low_bits(eight: [u8; 8]) -> u32 {
    let low = u64::from_le_bytes(eight) & 0x0F0F_0F0F_0F0F_0F0F;
    let folded = low | low >> 12; // Bytes 0, 1, 4, 5 are columns 0 and 2, 1 and 3, 4 and 6, 5 and 7.
    let [first, second] = [folded as u32 & 0xFFFF, (folded >> 32) as u32 & 0xFFFF];
    (first | first << 8) & 0x00FF_00FF | ((second | second << 8) & 0x00FF_00FF) << 8
}

/// Words side by side in one, each `bits` above the one before.
fn fold(words: &[u32], bits: usize, part: impl Fn(u32) -> u32) -> u32 {
    words.iter().enumerate().fold(0, |folded, (i, &word)| folded | part(word) << (bits * i))
}

/// A block of any format, taken apart.
struct Block {
    codes: [u8; 256],     // block_len; signed where the format's are
    sub_scales: [u8; 16], // of 32 (Q4_K, Q5_K) or 16 (Q6_K, signed) values
    minimums: [u8; 8],
    scale: u16, // f16
    minimum: u16,
}

impl Block {
    const ZERO: Block = Block { codes: [0; 256], sub_scales: [0; 16], minimums: [0; 8], scale: 0, minimum: 0 };

    /// `one_scale`: as in [`Tiling::new`].
    fn read(&mut self, format: Format, bytes: &[u8], one_scale: bool) {
        let f16 = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        match format {
            Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 => {
                let qs = bytes.len() - 16;
                (self.scale, self.minimum) = (f16(0), f16(2)); // Only the formats with a minimum look at it.
                nibbles(&bytes[qs..], &mut self.codes[..32]);
                if matches!(format, Format::Q5_0 | Format::Q5_1) {
                    let qh = u32::from_le_bytes([bytes[qs - 4], bytes[qs - 3], bytes[qs - 2], bytes[qs - 1]]);
                    for (e, code) in self.codes[..32].iter_mut().enumerate() {
                        *code |= ((qh >> e & 1) as u8) << 4;
                    }
                }
            }
            Format::Q8_0 => {
                self.scale = f16(0);
                self.codes[..32].copy_from_slice(&bytes[2..]);
            }
            Format::Q4_K | Format::Q5_K => {
                (self.scale, self.minimum) = (f16(0), f16(2));
                let packed = std::array::from_fn(|i| bytes[4 + i]);
                let (scales, minimums) = scales_k4(&packed);
                self.sub_scales[..8].copy_from_slice(&scales);
                self.minimums = minimums;
                let qs = &bytes[bytes.len() - 128..];
                for (codes, qs) in self.codes.chunks_exact_mut(64).zip(qs.chunks_exact(32)) {
                    nibbles(qs, codes);
                }
                if format == Format::Q5_K {
                    for (e, code) in self.codes.iter_mut().enumerate() {
                        *code |= (bytes[16 + e % 32] >> (e / 32) & 1) << 4;
                    }
                }
            }
            Format::Q6_K => self.read_q6_k(bytes),
            Format::Q3_K => {
                let mut converted = [0; 210];
                q3_k_as_q6_k(bytes.try_into().expect("a block"), &mut converted);
                self.read_q6_k(&converted);
            }
            Format::TQ1_0 => {
                self.scale = f16(52);
                self.codes = ternary::tq1_0_codes(bytes.try_into().expect("a block"));
            }
            Format::TQ2_0 => {
                self.scale = f16(64);
                for (e, code) in self.codes.iter_mut().enumerate() {
                    *code = bytes[e / 128 * 32 + e % 32] >> (2 * (e % 128 / 32)) & 3;
                }
            }
            Format::I2_S => {
                for (e, code) in self.codes[..128].iter_mut().enumerate() {
                    *code = bytes[e % 32] >> (6 - 2 * (e / 32)) & 3;
                }
            }
            Format::F32 | Format::F16 | Format::BF16 | Format::Q2_K => unreachable!("refused by Tiling::new"),
        }
        if one_scale && format != Format::I2_S && self.scale & 0x7FFF == 0 {
            self.codes.fill(1);
        }
    }

    fn read_q6_k(&mut self, bytes: &[u8]) {
        self.scale = u16::from_le_bytes([bytes[208], bytes[209]]);
        self.sub_scales.copy_from_slice(&bytes[192..208]);
        for h in 0..2 {
            let (low, high) = (&bytes[64 * h..][..64], &bytes[128 + 32 * h..][..32]);
            for (g, codes) in self.codes[128 * h..][..128].chunks_exact_mut(32).enumerate() {
                for (l, code) in codes.iter_mut().enumerate() {
                    *code = low[32 * (g % 2) + l] >> (4 * (g / 2)) & 15 | (high[l] >> (2 * g) & 3) << 4;
                }
            }
        }
    }
}

/// The low halves of all bytes, then the high ones.
fn nibbles(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(bytes.len());
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    /// Reads a matrix back from its planes by the layout's own words, one value at a time.
    struct Reader {
        tiling: Tiling,
        planes: [Vec<u8>; 4],
    }

    impl Reader {
        fn new(tiling: Tiling, rows: &[u8], count: usize) -> Self {
            Self::of(tiling, rows, tiling.layout(count).unwrap())
        }

        fn of(tiling: Tiling, rows: &[u8], layout: Layout) -> Self {
            let Layout { codes, high, scales, supers } = layout;
            let mut planes = [codes, high, scales, supers].map(|len| vec![0xA5; len]);
            let [codes, high, scales, supers] = &mut planes;
            tiling.repack(rows, &mut Planes { codes, high, scales, supers });
            Reader { tiling, planes }
        }

        fn word(&self, plane: usize, at: usize) -> u32 {
            u32::from_le_bytes(self.planes[plane][at * 4..][..4].try_into().unwrap())
        }

        fn f16(&self, plane: usize, at: usize) -> f32 {
            f16::from_le_bytes(self.planes[plane][at * 2..][..2].try_into().unwrap()).to_f32()
        }

        fn value(&self, row: usize, column: usize) -> f32 {
            let (tile, row) = (row / 8, row % 8);
            let (groups, group) = (self.tiling.columns / 32, column / 32);
            let (step, kc) = (group / 4, group % 4);
            let c = if step == groups / 4 { groups % 4 } else { 4 };
            let at = tile * groups * 8 + step * 32 + row * c + kc; // of the group, in all planes with one entry a group
            let block = (tile * (groups / 8) + group / 8) * 8 + row; // of the 256 columns
            let e = column % 32;
            let place = [0, 2, 4, 6, 1, 3, 5, 7][e % 8]; // among the 8 bytes of two dot words
            let (j, byte) = (2 * (e / 8) + place / 4, place % 4);
            let nibble = || (self.word(0, at * 4 + j / 2) >> (8 * byte + 4 * (j % 2)) & 15) as i32;
            let bit = || (self.word(1, at) >> (8 * byte + j) & 1) as i32;
            let code = |q: i32| q as f32;
            match self.tiling.format() {
                Format::Q4_0 => self.f16(2, at) * code(nibble() - 8),
                Format::Q4_1 => self.f16(2, at * 2) * code(nibble()) + self.f16(2, at * 2 + 1),
                Format::Q5_0 => self.f16(2, at) * code((nibble() | bit() << 4) - 16),
                Format::Q5_1 => self.f16(2, at * 2) * code(nibble() | bit() << 4) + self.f16(2, at * 2 + 1),
                Format::Q8_0 => self.f16(2, at) * code((self.word(0, at * 8 + j) >> (8 * byte)) as i8 as i32),
                format @ (Format::Q4_K | Format::Q5_K) => {
                    let packed: [u8; 16] = self.planes[2][block * 16..][..16].try_into().unwrap();
                    let bits = u128::from_le_bytes(packed) >> 32 >> (24 * kc + 12 * (step % 2));
                    let (scale, minimum) = (code((bits & 63) as i32), code((bits >> 6 & 63) as i32));
                    let q = if format == Format::Q4_K { nibble() } else { nibble() | bit() << 4 };
                    self.f16(2, block * 8) * scale * code(q) - self.f16(2, block * 8 + 1) * minimum
                }
                Format::Q6_K => {
                    let high = (self.word(1, at * 2 + j / 4) >> (8 * byte + 2 * (j % 4)) & 3) as i32;
                    let scale = self.planes[2][at * 2 + e / 16] as i8;
                    self.f16(3, block) * code(scale as i32) * code((nibble() | high << 4) - 32)
                }
                _ => {
                    let q = (self.word(0, at * 2 + j / 4) >> (8 * byte + 2 * (j % 4)) & 3) as i32;
                    if self.tiling.one_scale { code(q - 1) } else { self.f16(2, block) * code(q - 1) }
                }
            }
        }
    }

    fn random(state: &mut u64) -> u8 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 56) as u8
    }

    /// Blocks of a format with random codes and finite scales; ternary ones with codes 0 to 2.
    fn blocks(format: Format, count: usize) -> Vec<u8> {
        let mut state = format as u64;
        let mut bytes: Vec<u8> = (0..count * format.block_bytes()).map(|_| random(&mut state)).collect();
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            let len = block.len();
            let halves: &[usize] = match format {
                Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => &[0],
                Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
                Format::I2_S => &[],
                _ => &[len - 2],
            };
            for &at in halves {
                block[at + 1] &= 0xBB; // No infinity, no NaN.
            }
            if matches!(format, Format::TQ2_0 | Format::I2_S) {
                let codes = if format == Format::I2_S { 32 } else { 64 };
                block[..codes].iter_mut().for_each(|byte| *byte &= !((*byte & *byte >> 1 & 0x55) << 1));
            }
        }
        bytes
    }

    const FORMATS: [Format; 12] = [
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q3_K,
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
        Format::TQ1_0,
        Format::TQ2_0,
        Format::I2_S,
    ];

    #[test]
    fn tiles_hold_the_values_that_the_blocks_have() {
        for format in FORMATS {
            for (rows, blocks_of_row) in [(1, 1), (8, 2), (19, 3), (5, 7)] {
                let columns = blocks_of_row * format.block_len();
                let bytes = blocks(format, rows * blocks_of_row);
                let mut expected = vec![f32::NAN; rows * columns];
                format.dequantize(&bytes, &mut expected);
                let reader = Reader::new(Tiling::new(format, columns, false).unwrap(), &bytes, rows);
                for (i, expected) in expected.iter().enumerate() {
                    let found = reader.value(i / columns, i % columns);
                    // The signs of zeros do not matter: a sum has them all.
                    assert!(found == *expected, "{} {rows} x {columns}, {i}: {found} {expected}", format.name());
                }
                for i in rows * columns..rows.next_multiple_of(64) * columns {
                    assert_eq!(reader.value(i / columns, i % columns), 0.0, "{} {i}", format.name());
                }
            }
        }
    }

    #[test]
    fn one_scale_leaves_out_the_blocks_scales() {
        for format in [Format::TQ1_0, Format::TQ2_0] {
            let mut bytes = blocks(format, 4 * 3);
            for (i, block) in bytes.chunks_exact_mut(format.block_bytes()).enumerate() {
                let at = block.len() - 2;
                let scale = if i % 3 == 1 { f16::NEG_ZERO } else { f16::from_f32(0.75) };
                block[at..].copy_from_slice(&scale.to_le_bytes());
            }
            let mut expected = vec![f32::NAN; 4 * 768];
            format.dequantize(&bytes, &mut expected);
            let tiling = Tiling::new(format, 768, true).unwrap();
            assert_eq!(tiling.tile(), Layout { codes: 768 / 4 * 8, ..Layout::default() });
            let reader = Reader::new(tiling, &bytes, 4);
            for (i, expected) in expected.iter().enumerate() {
                assert!(0.75 * reader.value(i / 768, i % 768) == *expected, "{} {i}", format.name());
            }
            assert_eq!(reader.value(7, 100), 0.0, "a row that is not there");
        }
    }

    #[test]
    fn parts_of_a_matrix_are_parts_of_its_planes() {
        for format in FORMATS {
            let columns = 3 * format.block_len();
            let bytes = blocks(format, 20 * 3);
            let tiling = Tiling::new(format, columns, false).unwrap();
            let whole = Reader::new(tiling, &bytes, 20).planes;
            let (first, second) = bytes.split_at(bytes.len() / 20 * 8);
            let part = |rows, tiles| Reader::of(tiling, rows, tiling.tile().times(tiles).unwrap()).planes;
            let (first, second) = (part(first, 1), part(second, 7));
            for plane in 0..4 {
                assert_eq!([first[plane].clone(), second[plane].clone()].concat(), whole[plane], "{}", format.name());
            }
            let layout = tiling.layout(20).unwrap();
            assert_eq!(layout.bytes(), whole.iter().map(Vec::len).sum::<usize>());
        }
    }

    #[test]
    fn no_format_takes_more_than_its_blocks_do() {
        for format in FORMATS.into_iter().filter(|format| !matches!(format, Format::Q3_K | Format::TQ1_0)) {
            let tiling = Tiling::new(format, 1536, false).unwrap();
            assert_eq!(
                tiling.tile().bytes(),
                8 * 1536 / format.block_len() * format.block_bytes(),
                "{}",
                format.name()
            );
        }
    }

    #[test]
    fn what_does_not_run_is_refused_by_name() {
        for format in [Format::F32, Format::F16, Format::BF16, Format::Q2_K] {
            let error = Tiling::new(format, 256, false).unwrap_err();
            assert_eq!(error.to_string(), format!("{} weights do not run on CUDA", format.name()));
        }
        let error = Tiling::new(Format::Q4_K, 576, false).unwrap_err();
        assert_eq!(error.to_string(), "576 columns of Q4_K: not blocks of 256");
        assert!(Tiling::new(Format::Q4_0, 0, false).is_err());
        let error = Tiling::new(Format::Q4_0, 256, false).unwrap().layout(usize::MAX).unwrap_err();
        assert!(error.to_string().contains("too many"));
    }

    #[test]
    #[should_panic(expected = "planes of other tiles")]
    fn planes_of_another_size_panic() {
        let tiling = Tiling::new(Format::Q4_0, 32, false).unwrap();
        let planes = &mut Planes { codes: &mut [0; 129], high: &mut [], scales: &mut [0; 16], supers: &mut [] };
        tiling.repack(&blocks(Format::Q4_0, 8), planes);
    }
}
