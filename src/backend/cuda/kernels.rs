//! The kernels of `kernels/*.cu` by name, and their parameters: the twins of the structures in `kernels/common.cuh` and
//! `kernels/prefill.cu`, which say what each field means.

use super::Shape;
use crate::cuda::{Context, Function, Module, Stream};
use crate::{Error, Result};
use std::ffi::{CStr, CString, c_void};
use std::sync::Arc;

/// An address on the device.
pub type DevicePointer = u64;

/// Weights in tiles on the device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Matrix {
    pub codes: DevicePointer,
    pub high: DevicePointer,
    pub scales: DevicePointer,
    pub supers: DevicePointer,
    pub bias: DevicePointer,
    pub rows: u32,
    pub columns: u32,
    pub format: u32,
    pub scale: f32,
    pub unused: [u32; 2],
}

impl Matrix {
    /// Which of [`FORMATS`] it has.
    fn kernel(&self) -> usize {
        let ternary = FORMATS.len() - 1;
        let with_scales = FORMATS[..ternary].iter().position(|(format, _)| *format == self.format);
        if self.scales == 0 { ternary } else { with_scales.unwrap_or(ternary) }
    }

    /// Whether kernels can take both at once: their tiles have the same planes.
    pub fn is_like(&self, other: &Matrix) -> bool {
        self.format == other.format && (self.scales == 0) == (other.scales == 0)
    }
}

/// A sequence's place: what the next decode pass takes, and what the last one found.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct State {
    pub token: u32,
    pub position: u32,
    pub best: u32,
    pub best_logit: f32,
    pub log_sum_exp: f32,
    pub done: u32,
}

/// A vector in int8 groups.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantized {
    pub codes: DevicePointer,
    pub groups: DevicePointer,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Project {
    pub x: DevicePointer,
    pub quantized: Quantized,
    pub norm: DevicePointer,
    pub y: DevicePointer,
    pub matrix: [Matrix; 3],
    pub matrices: u32,
    pub add: u32,
    pub epsilon: f32,
    pub unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct GateUp {
    pub x: DevicePointer,
    pub norm: DevicePointer,
    pub gate: Matrix,
    pub up: Matrix,
    pub activated: DevicePointer,
    pub quantized: Quantized,
    pub epsilon: f32,
    pub activation: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Attention {
    pub state: DevicePointer,
    pub q: DevicePointer,
    pub k: DevicePointer,
    pub v: DevicePointer,
    pub q_norm: DevicePointer,
    pub k_norm: DevicePointer,
    pub rope: DevicePointer,
    pub keys: DevicePointer,
    pub values: DevicePointer,
    pub partials: DevicePointer,
    pub counters: DevicePointer,
    pub attended: DevicePointer,
    pub query_heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub context: u32,
    pub pairs: u32,
    pub adjacent: u32,
    pub epsilon: f32,
    pub unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Head {
    pub x: DevicePointer,
    pub norm: DevicePointer,
    pub matrix: Matrix,
    pub logits: DevicePointer,
    pub partials: DevicePointer,
    pub epsilon: f32,
    pub unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PrefillEmbed {
    pub embedding: Matrix,
    pub tokens: DevicePointer,
    pub residual: DevicePointer,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PrefillRows {
    pub x: DevicePointer,
    pub up: DevicePointer,
    pub norm: DevicePointer,
    pub out: DevicePointer,
    pub row_scale: DevicePointer,
    pub columns: u32,
    pub x_stride: u32,
    pub out_stride: u32,
    pub epsilon: f32,
    pub activation: u32,
    pub ternary: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PrefillGemm {
    pub matrices: [Matrix; 3],
    pub x: DevicePointer,
    pub row_scale: DevicePointer,
    pub y: DevicePointer,
    pub y_half: DevicePointer,
    pub turns: DevicePointer,
    pub count: u32,
    pub tokens: u32,
    pub x_stride: u32,
    pub y_stride: u32,
    pub mode: u32,
    pub activation: u32,
    pub x_scale: f32,
    pub y_scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PrefillRope {
    pub qkv: DevicePointer,
    pub q_norm: DevicePointer,
    pub k_norm: DevicePointer,
    pub table: DevicePointer,
    pub q: DevicePointer,
    pub keys: DevicePointer,
    pub values: DevicePointer,
    pub tokens: u32,
    pub position: u32,
    pub stride: u32,
    pub query_heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub pairs: u32,
    pub capacity: u32,
    pub epsilon: f32,
    pub q_scale: f32,
    pub adjacent: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PrefillAttention {
    pub q: DevicePointer,
    pub keys: DevicePointer,
    pub values: DevicePointer,
    pub out_half: DevicePointer,
    pub out: DevicePointer,
    pub tokens: u32,
    pub position: u32,
    pub query_heads: u32,
    pub kv_heads: u32,
    pub capacity: u32,
    pub out_stride: u32,
}

const _: () = {
    assert!(size_of::<Matrix>() == 64 && size_of::<State>() == 24 && size_of::<Project>() == 248);
    assert!(size_of::<GateUp>() == 176 && size_of::<Attention>() == 128 && size_of::<Head>() == 104);
};

/// The heads that prefill's attention has kernels for.
pub const HEAD_DIMS: [usize; 5] = [64, 80, 96, 128, 256];
/// Inputs of a matrix: their int8 form must fit the shared memory of a thread block.
pub const COLUMNS_MAX: usize = 32768;
/// Query heads that a thread block of decode attention takes.
const ATTENTION_HEADS: usize = 8;
/// Logits of a partial result of the head.
pub const HEAD_ROWS: usize = 64;
/// The most warps that share the columns of a matrix.
const PROJECT_WARPS: usize = 12;
/// Outputs of a unit of decode_project.
const PROJECT_ROWS: u32 = 16;
/// Columns of rows of half precision are filled up to a multiple of this.
pub const ROW_COLUMNS: usize = 128;

/// Every kernel, for one device and shape.
pub struct Kernels {
    multiprocessors: u32,
    /// Dynamic shared memory that a thread block may have.
    shared_max: usize,
    /// Turing: copies are not asynchronous.
    narrow: bool,
    pub embed: Function,
    project: OfFormats,
    project_mixed: Function,
    gate_up: OfFormats,
    gate_up_mixed: Function,
    attention: Function,
    head: OfFormats,
    pub finish: Function,
    pub prefill_embed: Function,
    pub prefill_rows: Function,
    gemm: [Gemm; 4], // from the largest thread blocks to the smallest
    pub prefill_rope: Function,
    pub prefill_attention: Function,
}

/// A kernel's entries by format, in the order of [`FORMATS`].
struct OfFormats([Function; FORMATS.len()]);

/// The formats of tiles by GGUF's numbers and the kernels' names; the last one has no scales.
const FORMATS: [(u32, &str); 10] = [
    (2, "q4_0"),
    (3, "q4_1"),
    (6, "q5_0"),
    (7, "q5_1"),
    (8, "q8_0"),
    (12, "q4_k"),
    (13, "q5_k"),
    (14, "q6_k"),
    (35, "tq2_0"),
    (35, "ternary"),
];
/// Shared memory that kernels of a vector have beside the dynamic one, at the most.
const STATIC_BYTES: usize = 8192;
/// Bytes of a tile's step, on its way.
const SLOT_BYTES: [usize; FORMATS.len()] = [576, 640, 704, 768, 1088, 640, 768, 848, 272, 256];

impl OfFormats {
    fn load(module: &Arc<Module>, name: &str) -> Result<Self> {
        let mut functions = Vec::with_capacity(FORMATS.len());
        for (_, format) in FORMATS {
            let name = CString::new(format!("decode_{name}_{format}")).map_err(|_| Error::device("a kernel's name"))?;
            functions.push(module.function(&name)?);
        }
        functions.try_into().map(OfFormats).map_err(|_| Error::device("kernels are missing"))
    }

    fn of(&self, matrix: &Matrix) -> &Function {
        &self.0[matrix.kernel()]
    }
}

/// A shape of prefill_gemm.
struct Gemm {
    /// Weight rows of a thread block (of gate and up: of both together).
    rows: u32,
    /// Tokens of a thread block.
    tokens: u32,
    threads: u32,
    stages: usize,
    function: Function,
}

impl Gemm {
    /// Dynamic shared memory for weights of this format.
    fn shared_bytes(&self, format: u32) -> usize {
        let (rows, tokens) = (self.rows as usize, self.tokens as usize);
        let pipeline = self.stages * (tokens * 272 + rows / 8 * gemm_tile_bytes(format));
        pipeline.max(tokens * (rows + 4) * 4)
    }
}

/// What a kernel of a vector multiplies, and how.
struct Products {
    /// What a thread block computes at a time: how many there are.
    units: u32,
    columns: u32,
    /// Tiles of a unit.
    tiles: usize,
    /// Batches of pieces (a tile's step) in the ring of a warp, if they fit.
    batches: usize,
    /// Bytes of a piece.
    slot: usize,
}

/// How a kernel is launched.
pub struct Launch<'a> {
    pub function: &'a Function,
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared_bytes: usize,
    /// It may start before the kernel before it has ended. Large ones are better off without: their blocks would only take
    /// the room of those that work.
    pub overlap: bool,
}

impl Launch<'_> {
    /// Launches it with one parameter.
    ///
    /// # Safety
    /// `P` is what the kernel takes; what it points to is alive until the kernel has ended (captured: until the graph is
    /// gone), as large as the kernel's contract says, and used by this stream only.
    pub unsafe fn run<P: Copy>(&self, stream: &Stream, parameter: P) -> Result<()> {
        let mut parameter = parameter;
        // SAFETY: the caller's contract.
        unsafe { self.run_all(stream, &mut [(&raw mut parameter).cast()]) }
    }

    /// The same with several parameters, by their addresses.
    ///
    /// # Safety
    /// As for [`Launch::run`].
    pub unsafe fn run_all(&self, stream: &Stream, parameters: &mut [*mut c_void]) -> Result<()> {
        let (block, shared) = ([self.threads, 1, 1], self.shared_bytes as u32);
        // SAFETY: the caller's contract; every kernel waits for the one before it by itself.
        unsafe { stream.launch(self.function, self.grid, block, shared, self.overlap, parameters) }
    }
}

impl Kernels {
    /// Loads the modules and finds what this shape needs.
    pub fn load(context: &Arc<Context>, shape: &Shape) -> Result<Self> {
        let (decode, prefill) = (Module::load(context, "decode")?, Module::load(context, "prefill")?);
        let (attention, prefill_attention) = match shape.head_dim {
            64 => (c"decode_attention_64", c"prefill_attention_64"),
            80 => (c"decode_attention_80", c"prefill_attention_80"),
            96 => (c"decode_attention_96", c"prefill_attention_96"),
            128 => (c"decode_attention_128", c"prefill_attention_128"),
            _ => (c"decode_attention_256", c"prefill_attention_256"),
        };
        let gemm = |rows, tokens, threads, stages, name: &CStr| {
            Ok::<_, Error>(Gemm { rows, tokens, threads, stages, function: prefill.function(name)? })
        };
        // Devices with 100 KiB of shared memory or less have fewer stages.
        let small = matches!(context.info().capability, (7, 5) | (8, 6) | (8, 9) | (12.., _));
        let stages_64 = if small { 2 } else { 3 };
        let shared_max = context.info().shared_bytes_max;
        let kernels = Kernels {
            multiprocessors: context.info().multiprocessors,
            shared_max,
            narrow: context.info().capability < (8, 0),
            embed: decode.function(c"decode_embed")?,
            project: OfFormats::load(&decode, "project")?,
            project_mixed: decode.function(c"decode_project_mixed")?,
            gate_up: OfFormats::load(&decode, "gate_up")?,
            gate_up_mixed: decode.function(c"decode_gate_up_mixed")?,
            attention: decode.function(attention)?,
            head: OfFormats::load(&decode, "head")?,
            finish: decode.function(c"decode_finish")?,
            prefill_embed: prefill.function(c"prefill_embed")?,
            prefill_rows: prefill.function(c"prefill_rows")?,
            gemm: [
                gemm(128, 64, 128, 2, c"prefill_gemm_128x64")?,
                gemm(64, 64, 128, stages_64, c"prefill_gemm_64x64")?,
                gemm(64, 16, 128, 4, c"prefill_gemm_64x16")?,
                gemm(32, 16, 64, 6, c"prefill_gemm_32x16")?,
            ],
            prefill_rope: prefill.function(c"prefill_rope_append")?,
            prefill_attention: prefill.function(prefill_attention)?,
        };
        kernels.allow_shared(shape)?;
        Ok(kernels)
    }

    /// What a kernel is not allowed now it could not be launched with later.
    fn allow_shared(&self, shape: &Shape) -> Result<()> {
        let allow = |function: &Function, wanted: &mut dyn Iterator<Item = usize>| {
            // More than there is is not launched: another shape is, or the load fails.
            function.allow_shared(wanted.filter(|bytes| self.fits(*bytes)).max().unwrap_or(0))
        };
        let widths = [shape.hidden, shape.intermediate, shape.query_heads * shape.head_dim];
        let most = SLOT_BYTES.into_iter().max().unwrap_or(0);
        let Kernels { project, gate_up, head, .. } = self;
        let of_formats = [(project, 2), (gate_up, 8), (head, 8)];
        let each = of_formats.iter().flat_map(|(functions, tiles)| {
            functions.0.iter().zip(SLOT_BYTES).map(move |(function, slot)| (function, *tiles, slot))
        });
        for (function, tiles, slot) in each.chain([(&self.project_mixed, 2, most), (&self.gate_up_mixed, 1, most)]) {
            let products =
                |batches, &columns: &usize| Products { units: 0, columns: columns as u32, tiles, batches, slot };
            let depths: &[usize] = if tiles < 8 { &[1, 2, 6] } else { &[2, 4] };
            let bytes =
                |columns| depths.iter().map(move |&batches| self.vector_bytes(&products(batches, columns), false));
            allow(function, &mut widths.iter().flat_map(bytes))?;
            // A multiprocessor whose memory is divided otherwise has to run empty before it takes the next kernel.
            function.prefer_shared(100)?;
        }
        allow(&self.attention, &mut [self.attention_bytes(shape)].into_iter())?;
        for function in [&self.embed, &self.attention, &self.finish] {
            function.prefer_shared(100)?;
        }
        for gemm in &self.gemm {
            allow(&gemm.function, &mut GEMM_FORMATS.iter().map(|&format| gemm.shared_bytes(format)))?;
        }
        self.prefill_attention.allow_shared(self.prefill_attention(shape, 1).shared_bytes)
    }

    /// decode_project.
    pub fn project(&self, parameters: &Project) -> Result<Launch<'_>> {
        let matrices = &parameters.matrix[..parameters.matrices as usize];
        let alike = matrices.iter().all(|matrix| matrix.is_like(&matrices[0]));
        let function = if alike { self.project.of(&matrices[0]) } else { &self.project_mixed };
        let slot = matrices.iter().map(|matrix| SLOT_BYTES[matrix.kernel()]).max().unwrap_or(0);
        let units = matrices.iter().map(|matrix| matrix.rows.div_ceil(PROJECT_ROWS)).sum();
        self.of_vector(function, Products { units, columns: matrices[0].columns, tiles: 2, batches: 6, slot })
    }

    /// decode_gate_up.
    pub fn gate_up(&self, parameters: &GateUp) -> Result<Launch<'_>> {
        let GateUp { gate, up, .. } = parameters;
        let slot = SLOT_BYTES[gate.kernel()].max(SLOT_BYTES[up.kernel()]);
        let (units, columns) = (gate.rows.div_ceil(32), gate.columns);
        if gate.is_like(up) {
            self.of_vector(self.gate_up.of(gate), Products { units, columns, tiles: 8, batches: 2, slot })
        } else {
            self.of_vector(&self.gate_up_mixed, Products { units, columns, tiles: 1, batches: 6, slot })
        }
    }

    /// decode_head.
    pub fn head(&self, parameters: &Head) -> Result<Launch<'_>> {
        let Matrix { rows, columns, .. } = parameters.matrix;
        let (kernel, units) = (parameters.matrix.kernel(), rows.div_ceil(HEAD_ROWS as u32));
        let products = Products { units, columns, tiles: 8, batches: 4, slot: SLOT_BYTES[kernel] };
        let launch = self.of_vector(&self.head.0[kernel], products)?;
        // One block a multiprocessor is the fastest.
        Ok(Launch { grid: [launch.grid[0].min(self.multiprocessors.max(3)), 1, 1], ..launch })
    }

    /// decode_attention.
    pub fn attention(&self, shape: &Shape) -> Launch<'_> {
        let (threads, shared_bytes) = (attention_threads(shape), self.attention_bytes(shape));
        Launch { function: &self.attention, grid: attention_grid(shape), threads, shared_bytes, overlap: true }
    }

    /// Keys and values on their way: of 16 positions a warp, twice where copies are asynchronous.
    fn attention_bytes(&self, shape: &Shape) -> usize {
        let stages = if self.narrow { 1 } else { 2 };
        attention_threads(shape) as usize / 32 * stages * 2 * 16 * (shape.head_dim + 8) * 2
    }

    /// A kernel whose thread blocks each hold the input vector in int8, at most as many as are resident at once.
    fn of_vector<'a>(&self, function: &'a Function, mut products: Products) -> Result<Launch<'a>> {
        for batches in [2, products.tiles.div_ceil(4)] {
            if !self.fits(self.vector_bytes(&products, false)) {
                products.batches = batches;
            }
        }
        let (threads, units) = (project_threads(products.columns as usize), products.units);
        let resident = |bytes| {
            let blocks = function.blocks_per_multiprocessor(threads, bytes)?;
            Ok::<_, Error>(self.multiprocessors * blocks)
        };
        let (mut shared_bytes, mut blocks) = (self.vector_bytes(&products, true), units);
        if resident(shared_bytes)? < units {
            shared_bytes = self.vector_bytes(&products, false);
            blocks = resident(shared_bytes)?.min(units);
        }
        if blocks == 0 {
            let columns = products.columns;
            return Err(Error::Unsupported(format!("{columns} inputs do not fit the shared memory of this device")));
        }
        Ok(Launch { function, grid: [blocks.max(3), 1, 1], threads, shared_bytes, overlap: true })
    }

    /// Whether a kernel of a vector can have so much dynamic shared memory.
    fn fits(&self, bytes: usize) -> bool {
        bytes + STATIC_BYTES <= self.shared_max
    }

    /// Codes and two floats a group, in whole steps; and weights on their way, where copies are asynchronous.
    /// `alone`: no block has more than one unit.
    fn vector_bytes(&self, products: &Products, alone: bool) -> usize {
        let (columns, pieces) = (products.columns as usize, products.tiles.min(4));
        let warps = project_threads(columns) as usize / 32;
        let of_unit = columns.div_ceil(128).div_ceil(warps) * (products.tiles / pieces);
        let batches = if alone { products.batches.min(of_unit) } else { products.batches };
        columns.div_ceil(128) * 160 + if self.narrow { 0 } else { warps * batches * pieces * products.slot }
    }

    /// prefill_gemm in the shape that is fastest for so many tokens and outputs. Every shape gives the same bits.
    pub fn gemm(&self, parameters: &PrefillGemm) -> Launch<'_> {
        let matrices = &parameters.matrices[..parameters.count as usize];
        let gate_up = parameters.mode == PrefillGemm::GATE_UP;
        let grid = |gemm: &Gemm| {
            let outputs = match gate_up {
                true => matrices[0].rows.div_ceil(gemm.rows / 2),
                false => matrices.iter().map(|matrix| matrix.rows.div_ceil(gemm.rows)).sum(),
            };
            [parameters.tokens.div_ceil(gemm.tokens), outputs]
        };
        let blocks = |gemm: &Gemm| grid(gemm).into_iter().product::<u32>();
        let shared = |gemm: &Gemm| matrices.iter().map(|matrix| gemm.shared_bytes(matrix.format)).max().unwrap_or(0);
        let [wide, square, low, small] = &self.gemm;
        let enough = self.multiprocessors;
        // As measured on an H100.
        let gemm = match parameters.tokens {
            ..=32 if blocks(low) >= 2 * enough => low,
            33.. if blocks(wide) >= enough && shared(wide) <= self.shared_max => wide,
            33.. if 2 * blocks(square) >= enough => square,
            _ => small,
        };
        let parts = match parameters.mode {
            PrefillGemm::ADD if blocks(gemm) < 2 * enough => gemm_parts(matrices[0].columns),
            _ => 1,
        };
        let [x, y] = grid(gemm);
        let (function, threads) = (&gemm.function, gemm.threads);
        Launch { function, grid: [x, y, parts], threads, shared_bytes: shared(gemm), overlap: false }
    }
}

/// Parts into which prefill_gemm splits a long sum: a function of the shape. A few tokens' parts are summed side by side.
fn gemm_parts(columns: u32) -> u32 {
    (columns / 2048).clamp(1, 4)
}

/// Words that prefill_gemm counts turns in, for so many tokens and outputs.
pub fn gemm_turns(tokens: usize, outputs: usize) -> usize {
    tokens.div_ceil(16) * outputs.div_ceil(32)
}

impl PrefillGemm {
    /// y = sum + bias
    pub const STORE: u32 = 0;
    /// y += sum + bias
    pub const ADD: u32 = 1;
    /// y = activation(gate) * up
    pub const GATE_UP: u32 = 2;
}

/// Warps that share the columns: as few steps for each as [`PROJECT_WARPS`] can have, and no idle one; at least 4.
fn project_threads(columns: usize) -> u32 {
    let steps = columns.div_ceil(128);
    let each = steps.div_ceil(PROJECT_WARPS);
    32 * steps.div_ceil(each).max(4) as u32
}

/// Splits of a sequence in decode attention, at the most, and the thread blocks that take one: a function of the shape.
pub fn attention_grid(shape: &Shape) -> [u32; 3] {
    let parts = (shape.query_heads / shape.kv_heads).div_ceil(ATTENTION_HEADS);
    let lines = shape.kv_heads * parts;
    [(256 / lines / 8 * 8).clamp(8, 128) as u32, lines as u32, 1]
}

fn attention_threads(shape: &Shape) -> u32 {
    if shape.head_dim < 256 { 128 } else { 64 }
}

/// The formats of tiles, by GGUF's numbers.
const GEMM_FORMATS: [u32; 9] = [2, 3, 6, 7, 8, 12, 13, 14, 35];

/// Bytes of a tile's step in the shared memory of prefill_gemm.
fn gemm_tile_bytes(format: u32) -> usize {
    match format {
        2 => 576,
        3 => 640,
        6 => 704,
        7 => 768,
        8 => 1088,
        12 => 640,
        13 => 768,
        14 => 848,
        _ => 272,
    }
}

impl Kernels {
    /// prefill_attention for heads of this shape.
    pub fn prefill_attention(&self, shape: &Shape, tokens: u32) -> Launch<'_> {
        let group = (shape.query_heads / shape.kv_heads) as u32;
        // Keys and values of 64 positions (32 for the widest heads), twice where copies are asynchronous.
        let stages = if self.narrow { 1 } else { 2 };
        let positions = if shape.head_dim < 256 { 64 } else { 32 };
        let shared_bytes = 2 * stages * positions * (shape.head_dim + 8) * 2;
        let grid = [(tokens * group).div_ceil(64), shape.kv_heads as u32, 1];
        Launch { function: &self.prefill_attention, grid, threads: 128, shared_bytes, overlap: false }
    }
}
