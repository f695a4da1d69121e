//! What each GEMM kernel does alone, on one thread, beside what memory delivers.
//!
//!     cargo bench --bench kernels [-- TABLE...]         all tables of this machine, or some
//!     cargo bench --bench kernels -- --gemv FORMAT ROWSxCOLUMNS...     all tables
//!     cargo bench --bench kernels -- --once FORMAT ROWS COLUMNS
//!
//! Decode is one activation row, in GB/s of weights: `cached` takes one tile again and again, `memory` walks through
//! more than any cache holds. Prefill is many rows, in 10^9 multiplications and additions per second. The best of
//! several runs; nothing else should run on the machine.
//!
//! `--gemv` multiplies whole matrices with one activation row, in microseconds and GB/s of weights, best and median: `hot`
//! is the same matrix again and again, `cold` the next one of as many as make 512 MiB.
//!
//! `--once` makes one call of the best table between two marks, which benches/arm/cost.py traces.

use edgellm::cpu::rows::{Quantization, RowsBuffer};
use edgellm::cpu::{self, Kernels, tile};
use edgellm::quant::Format;
use std::hint::black_box;
use std::time::Instant;

/// Columns of a matrix, as many as a small model's hidden size.
const COLUMNS: usize = 2048;
/// More than the caches hold.
const MEMORY_BYTES: usize = 128 << 20;
/// As many bytes of matrices as a cold GEMV walks through.
const COLD_BYTES: usize = 512 << 20;
/// What every byte of a weight is: as a scale of any float format it is finite and normal, and it has no ternary code 3.
const WEIGHT: u8 = 0x21;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [once, format, rows, columns] = &arguments[..]
        && once == "--once"
    {
        return run_once(format, rows.parse().expect("rows"), columns.parse().expect("columns"));
    }
    if let [gemv, format, shapes @ ..] = &arguments[..]
        && gemv == "--gemv"
    {
        return gemvs(format_of(format), shapes);
    }
    let tables: Vec<_> = match &arguments[..] {
        [] => cpu::available().collect(),
        names => names.iter().map(|name| cpu::select(Some(name)).unwrap_or_else(|error| panic!("{error}"))).collect(),
    };
    let memory = weights(MEMORY_BYTES);
    println!("memory: {:.1} GB/s read by one thread", best(5, || sum(&memory)) * MEMORY_BYTES as f64 / 1e9);
    for kernels in tables {
        println!("\n{:<20} decode, GB/s of weights        prefill, GMAC/s", kernels.name());
        println!("{:<20} {:>8} {:>8} {:>16} {:>8}", "", "cached", "memory", "16 rows", "64 rows");
        for &format in Format::ALL.iter().filter(|&&format| tile::fields(format).is_some()) {
            let [cached, from_memory, few, many] = speeds(kernels, format, &memory);
            println!("  {:<18} {cached:>8.1} {from_memory:>8.1} {few:>16.1} {many:>8.1}", format.name());
        }
    }
}

/// Decode from cache and from memory in GB/s, prefill of 16 and 64 rows in GMAC/s.
fn speeds(kernels: &Kernels, format: Format, memory: &[u8]) -> [f64; 4] {
    let tile = &memory[..tile::tile_bytes(format, COLUMNS)];
    let mut out = [0.0; cpu::GEMM_ROWS_MAX * tile::ROWS];
    let [one, few, many] = [1, 16, 64].map(|rows| activations(kernels, format, rows, COLUMNS));
    // As often as makes some milliseconds even for a fast table.
    let mut repeated = |x: &RowsBuffer, rows: usize| {
        let count = 1024 / rows;
        let out = &mut out[..rows * tile::ROWS];
        let calls =
            || (0..count).for_each(|_| kernels.gemm(format, black_box(tile), x.rows(rows), black_box(&mut *out)));
        best(7, calls) * count as f64
    };
    let macs = (tile::ROWS * COLUMNS) as f64;
    let cached = repeated(&one, 1) * tile.len() as f64;
    let (few, many) = (repeated(&few, 16) * 16.0 * macs, repeated(&many, 64) * 64.0 * macs);
    let walk = || {
        for tile in memory.chunks_exact(tile.len()) {
            kernels.gemm(format, tile, one.rows(1), black_box(&mut out[..tile::ROWS]));
        }
    };
    let from_memory = best(3, walk) * (memory.len() / tile.len() * tile.len()) as f64;
    [cached, from_memory, few, many].map(|per_second| per_second / 1e9)
}

/// GEMVs of matrices of these shapes, `ROWSxCOLUMNS`.
fn gemvs(format: Format, shapes: &[String]) {
    println!("{} on one thread         hot, us (GB/s)              cold, us (GB/s)", format.name());
    println!("{:<22} {:<12} {:>8} {:>16} {:>10} {:>16}", "", "", "best", "median", "best", "median");
    let memory = weights(COLD_BYTES);
    for shape in shapes {
        let (rows, columns) = shape.split_once('x').expect("ROWSxCOLUMNS");
        let (rows, columns): (usize, usize) = (rows.parse().expect("rows"), columns.parse().expect("columns"));
        let tile_bytes = tile::tile_bytes(format, columns);
        let bytes = rows.div_ceil(tile::ROWS) * tile_bytes;
        for kernels in cpu::available() {
            let x = activations(kernels, format, 1, columns);
            let mut out = [0.0; tile::ROWS];
            let mut time = |matrix: &[u8]| {
                let start = Instant::now();
                for tile in matrix.chunks_exact(tile_bytes) {
                    kernels.gemm(format, tile, x.rows(1), black_box(&mut out));
                }
                start.elapsed().as_secs_f64()
            };
            let hot = (0..201).map(|_| time(&memory[..bytes]));
            let mut hot: Vec<f64> = hot.collect();
            let mut cold: Vec<f64> = memory.chunks_exact(bytes).map(time).collect();
            print!("{:<22} {shape:<12}", kernels.name());
            for times in [&mut hot, &mut cold] {
                times.sort_by(f64::total_cmp);
                for seconds in [times[0], times[times.len() / 2]] {
                    print!(" {:>8.1} ({:>5.1})", seconds * 1e6, bytes as f64 / seconds / 1e9);
                }
            }
            println!();
        }
    }
}

/// Weights in huge pages, as the library has them where the system gives them.
fn weights(bytes: usize) -> memmap2::MmapMut {
    let mut memory = memmap2::MmapMut::map_anon(bytes).expect("memory");
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage); // Advice: it may be refused.
    memory.fill(WEIGHT);
    memory
}

/// The format of this name.
fn format_of(name: &str) -> Format {
    *Format::ALL.iter().find(|known| known.name() == name).expect("a format's name")
}

/// Quantized rows of some values.
fn activations(kernels: &Kernels, format: Format, rows: usize, columns: usize) -> RowsBuffer {
    let how = if format.is_ternary() { Quantization::Row } else { Quantization::Blocks };
    let mut buffer = RowsBuffer::new(rows, columns).expect("memory");
    let shards = buffer.shards(rows);
    for index in 0..shards.panels() {
        // SAFETY: each panel is taken once.
        let mut panel = unsafe { shards.panel(index) };
        panel.fill(kernels, how, |row, values| {
            for (i, value) in values.iter_mut().enumerate() {
                *value = ((i * 7 + row * 13) % 101) as f32 - 50.0;
            }
        });
    }
    buffer
}

/// How often per second `run` could run: the best of `count` times.
fn best(count: usize, mut run: impl FnMut()) -> f64 {
    let seconds = (0..count).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    1.0 / seconds.fold(f64::INFINITY, f64::min)
}

/// Reads all bytes as fast as one stream allows.
fn sum(bytes: &[u8]) {
    let mut lanes = [0u64; 32];
    for chunk in bytes.as_chunks::<256>().0 {
        for (lane, word) in lanes.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *lane ^= u64::from_le_bytes(*word);
        }
    }
    black_box(lanes);
}

/// One call of the best table for one tile, marked.
fn run_once(format: &str, rows: usize, columns: usize) {
    let kernels = cpu::select(None).expect("one table runs everywhere");
    let format = format_of(format);
    let tile = vec![WEIGHT; tile::tile_bytes(format, columns)];
    let x = activations(kernels, format, rows, columns);
    let mut out = vec![0.0; rows * tile::ROWS];
    println!("{} {}", kernels.name(), tile.len());
    mark::<98>();
    kernels.gemm(format, &tile, x.rows(rows), &mut out);
    mark::<99>();
    black_box(out);
}

/// An instruction that does nothing, for the trace to see.
fn mark<const HINT: u8>() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a CPU takes a hint that it does not know as no operation.
    unsafe {
        std::arch::asm!("hint #{}", const HINT)
    }
}
