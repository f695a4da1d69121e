//! What a kernel may touch, for every table: each number of rows, the shortest and odd widths, slices at any address and
//! between pages that nobody may read. After `checkasm` of x264 and dav1d.

use super::rows::{Block, Rows, RowsBuffer};
use super::tests::{FILLS, TILED, quantization, random, tile_of};
use super::*;

/// Memory between two pages that fault when they are touched.
struct Guarded {
    mapping: *mut libc::c_void,
    page: usize,
    inside: usize,
}

/// Where in guarded memory a slice lies.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Right after the first forbidden page.
    First,
    /// Right before the last one.
    Last,
    /// As far from alignment as its type allows: at an odd address for bytes.
    Odd,
}

impl Guarded {
    /// Room for `bytes`.
    fn new(bytes: usize) -> Guarded {
        // SAFETY: asks for a constant.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let inside = (bytes + page).next_multiple_of(page);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, of nothing else.
        let mapping = unsafe { libc::mmap(std::ptr::null_mut(), inside + 2 * page, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(mapping, libc::MAP_FAILED);
        // SAFETY: inside the mapping made above.
        let opened = unsafe { libc::mprotect(mapping.byte_add(page), inside, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(opened, 0);
        Guarded { mapping, page, inside }
    }

    /// A copy of `values` at a place.
    fn copy<T: Copy>(&mut self, place: Place, values: &[T]) -> &mut [T] {
        let bytes = size_of_val(values);
        assert!(bytes + align_of::<T>() <= self.inside);
        let offset = match place {
            Place::First => 0,
            Place::Last => self.inside - bytes,
            Place::Odd => align_of::<T>(),
        };
        assert_eq!(offset % align_of::<T>(), 0);
        // SAFETY: inside the open pages, aligned, written before it is lent; `&mut self` keeps it unaliased.
        unsafe {
            let start = self.mapping.byte_add(self.page + offset).cast::<T>();
            start.copy_from_nonoverlapping(values.as_ptr(), values.len());
            std::slice::from_raw_parts_mut(start, values.len())
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; whatever borrowed it is gone.
        unsafe { libc::munmap(self.mapping, self.inside + 2 * self.page) };
    }
}

/// The first `count` of these rows, as they are stored when they are all there are.
fn first_rows(format: Format, values: &[f32], columns: usize, count: usize) -> RowsBuffer {
    let mut buffer = RowsBuffer::new(count, columns).expect("memory");
    let shards = buffer.shards(count);
    for index in 0..shards.panels() {
        // SAFETY: each panel is taken once.
        let mut panel = unsafe { shards.panel(index) };
        let first = index * rows::PANEL;
        panel.fill(&scalar::SCALAR, quantization(format), |row, out| {
            out.copy_from_slice(&values[(first + row) * columns..][..columns])
        });
    }
    buffer
}

/// Every table but scalar, which is safe code.
fn tables() -> impl Iterator<Item = &'static Kernels> {
    available().filter(|kernels| kernels.name != "scalar")
}

#[test]
fn gemm_touches_its_slices_only_and_each_number_of_rows_has_the_same_bits() {
    let mut state = 11;
    for format in TILED {
        let widths = match format.block_len() {
            len @ (128 | 256) => [len, 3 * len],
            _ => [32, 288],
        };
        for columns in widths {
            let weights = tile_of(format, columns, FILLS[0], &mut state);
            let values: Vec<f32> =
                (0..GEMM_ROWS_MAX * columns).map(|_| (random(&mut state) >> 40) as f32 / 1e6 - 8.0).collect();
            let mut expected = vec![0.0; GEMM_ROWS_MAX * tile::ROWS];
            let all = first_rows(format, &values, columns, GEMM_ROWS_MAX);
            scalar::SCALAR.gemm(format, &weights, all.rows(GEMM_ROWS_MAX), &mut expected);
            let mut memory =
                [weights.len(), values.len() * 4, values.len() / 32 * size_of::<Block>(), expected.len() * 4]
                    .map(Guarded::new);
            for count in (1..=17).chain([31, 32, 33, 63, 64]) {
                let buffer = first_rows(format, &values, columns, count);
                let x = buffer.rows(count);
                for place in [Place::First, Place::Last, Place::Odd] {
                    let [tile, values, blocks, out] = &mut memory;
                    let tile = tile.copy(place, &weights);
                    let (values, blocks) = (values.copy(place, x.values), blocks.copy(place, x.blocks));
                    let x = Rows { columns, values, blocks, negated_sums: x.negated_sums };
                    for kernels in tables() {
                        // One sentinel on either side, where that is not a forbidden page.
                        let painted = out.copy(Place::First, &vec![-77.0; count * tile::ROWS + 2]);
                        kernels.gemm(format, tile, x, &mut painted[1..=count * tile::ROWS]);
                        let found = &painted[1..=count * tile::ROWS];
                        let same = found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                        let what = format!("{} {} {columns} {count} {place:?}", kernels.name, format.name());
                        assert!(same, "{what}");
                        assert!(painted[0] == -77.0 && painted[count * tile::ROWS + 1] == -77.0, "{what}");
                        let found = out.copy(place, &vec![-77.0; count * tile::ROWS]);
                        kernels.gemm(format, tile, x, found);
                        let same = found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn conversions_touch_their_slices_only() {
    let (mut halves, mut floats) = (Guarded::new(256), Guarded::new(256));
    for kernels in tables() {
        for len in 0..=40 {
            for place in [Place::First, Place::Last, Place::Odd] {
                let expected: Vec<u16> = (0..len).map(|i| half::f16::from_f32(i as f32 / 7.0).to_bits()).collect();
                let x = floats.copy(place, &(0..len).map(|i| i as f32 / 7.0).collect::<Vec<_>>());
                let out = halves.copy(place, &vec![0; len]);
                kernels.f16_from_f32(x, out);
                assert_eq!(out, expected, "{} {len} {place:?}", kernels.name);
                let out = floats.copy(place, &vec![0.0; len]);
                kernels.f32_from_f16(halves.copy(place, &expected), out);
                let exact = expected.iter().map(|&half| half::f16::from_bits(half).to_f32());
                assert!(out.iter().copied().eq(exact), "{} {len} {place:?}", kernels.name);
            }
        }
    }
}

#[test]
fn guard_pages_are_where_the_slices_end() {
    let mut memory = Guarded::new(64);
    let last = memory.copy(Place::Last, &[1u8; 64]).as_ptr_range().end;
    assert_eq!(last as usize % memory.page, 0);
    assert_eq!(memory.copy(Place::First, &[1u8; 64]).as_ptr() as usize % memory.page, 0);
    assert_eq!(memory.copy(Place::Odd, &[1u8; 64]).as_ptr() as usize % 2, 1);
    // A system call says what may be read without dying of it.
    let readable = |address: *const u8| {
        let mut pipe = [0; 2];
        // SAFETY: a pipe of our own; `write` checks the address and gives EFAULT instead of a fault.
        unsafe {
            assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
            let written = libc::write(pipe[1], address.cast(), 1);
            libc::close(pipe[0]);
            libc::close(pipe[1]);
            written == 1
        }
    };
    assert!(readable(last.wrapping_sub(1)) && !readable(last));
    let first = memory.copy(Place::First, &[1u8; 64]).as_ptr();
    assert!(readable(first) && !readable(first.wrapping_sub(1)));
}
