//! Models of other formats to GGUF: Hugging Face folders of BitNet models so far.
//!
//! Weights are streamed from mapped files, one row at a time, so that memory is a few rows and the vocabulary, and the
//! same folder gives the same bytes on every machine.

mod config;
mod folder;
mod output;
mod pretokenizer;
mod ternary;
mod tokenizer;
mod values;
mod verify;
mod weights;

pub use config::Direction;
pub use verify::Comparison;

use crate::file::Value;
use crate::file::safetensors::Stored;
use crate::file::writer::{GgufWriter, TensorSpec};
use crate::quant::{Format, pack, quantizer};
use crate::{Error, Result};
use config::Config;
use folder::Folder;
use output::Output;
use std::io::{BufWriter, Write};
use std::path::Path;
use ternary::Linear;
use weights::{Content, Planned};

/// What to make, and how.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The format of the linear layers: TQ1_0, TQ2_0 or I2_S.
    pub linear: Format,
    /// The format of the embedding, and of the head where it has its own: Q8_0, Q6_K or F16.
    pub embedding: Format,
    /// Replace a file that is there.
    pub force: bool,
    /// Compare logits with those of the folder's own numbers before the file gets its name.
    pub verify: bool,
}

/// What [`convert`] is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Writing the file.
    Write,
    /// Writing the folder's own numbers, to compare with.
    WriteUnrounded,
    /// Running both.
    Compare,
}

/// Called with what is done of a stage, and of how much; false stops with [`Error::Cancelled`].
pub type Progress<'a> = &'a mut dyn FnMut(Stage, u64, u64) -> bool;

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// Bytes of the file.
    pub bytes: u64,
    /// `general.architecture`.
    pub architecture: &'static str,
    /// Of packed weights, what their scales say.
    pub scales: Option<Scales>,
    /// When it was asked for.
    pub comparison: Option<Comparison>,
}

impl Report {
    /// Whether the file is there: not when a comparison failed.
    pub fn written(&self) -> bool {
        self.comparison.as_ref().is_none_or(Comparison::passed)
    }
}

/// The scales beside packed weights. Read in the right direction they are the magnitudes of weights: 0.01 to 3 or so.
#[derive(Clone, Copy, Debug)]
pub struct Scales {
    /// The direction that the configuration says.
    pub direction: Direction,
    /// The least and the largest scale as it is stored.
    pub range: (f32, f32),
}

impl Scales {
    /// The least and the largest magnitude of weights, read in this direction.
    pub fn magnitudes(&self, direction: Direction) -> (f32, f32) {
        let (a, b) = (direction.magnitude(self.range.0), direction.magnitude(self.range.1));
        (a.min(b), a.max(b))
    }
}

/// Converts a folder to a file. When it fails, or is stopped, no file is left.
pub fn convert(folder: &Path, out: &Path, options: &Options, progress: Progress<'_>) -> Result<Report> {
    run(folder, out, options, progress).map_err(|error| match error {
        Error::Format(text) => Error::Format(shown(&text)),
        Error::Unsupported(text) => Error::Unsupported(shown(&text)),
        error => error,
    })
}

/// A message as it can be shown: it may quote names and values of the folder, which may be anything.
fn shown(text: &str) -> String {
    const SHOWN: usize = 1500;
    let plain = text.chars().map(|char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char });
    let shown: String = plain.clone().take(SHOWN).collect();
    if plain.count() > SHOWN { shown + "…" } else { shown }
}

fn run(folder: &Path, out: &Path, options: &Options, progress: Progress<'_>) -> Result<Report> {
    let import = Import::open(folder)?;
    let formats = Formats { linear: options.linear, embedding: Some(options.embedding) };
    import.check(&formats)?;
    let mut output = Output::new(out, options.force)?;
    let written = import.write(&mut output, &formats, &mut |done, total| progress(Stage::Write, done, total))?;
    let scales = import.scales()?;
    let mut report = Report { bytes: written, architecture: import.config.architecture, scales, comparison: None };
    if options.verify {
        // The same without rounding: I2_S keeps the scale as f32.
        let formats = Formats { linear: Format::I2_S, embedding: None };
        import.check(&formats)?;
        let mut unrounded = Output::new(out, true)?;
        import.write(&mut unrounded, &formats, &mut |done, total| progress(Stage::WriteUnrounded, done, total))?;
        let comparison = verify::compare(unrounded.temporary(), output.temporary(), &mut |done, total| {
            progress(Stage::Compare, done, total)
        })?;
        report.comparison = Some(comparison);
    }
    if report.written() {
        output.commit()?;
    }
    Ok(report)
}

/// Which format each kind of matrix gets.
struct Formats {
    linear: Format,
    /// None: as it is stored.
    embedding: Option<Format>,
}

/// A folder that can be converted.
struct Import {
    folder: Folder,
    config: Config,
    /// The pairs that do not depend on formats.
    metadata: Vec<(String, Value)>,
}

impl Import {
    /// Opens the folder and checks everything but the weights themselves.
    fn open(path: &Path) -> Result<Import> {
        let folder = Folder::open(path)?;
        let json = folder.settings("config.json")?;
        let json = json.ok_or_else(|| Error::Format(format!("{}: no config.json", path.display())))?;
        let config = Config::read(&json)?;
        weights::plan(&folder, &config)?;
        let string = |key: &str, text: &str| (key.to_owned(), Value::String(text.into()));
        let mut metadata = vec![
            string("general.architecture", config.architecture),
            string("general.type", "model"),
            string("general.name", &folder.name()),
        ];
        let card = folder.text("README.md")?.unwrap_or_default();
        metadata.extend(license(&card).map(|license| string("general.license", license)));
        metadata.extend(config.metadata());
        metadata.extend(tokenizer::metadata(&folder, &json, config.vocab)?);
        Ok(Import { folder, config, metadata })
    }

    /// Refuses formats that these shapes or scales do not fit, before anything is written.
    fn check(&self, formats: &Formats) -> Result<()> {
        for planned in weights::plan(&self.folder, &self.config)? {
            planned.spec(formats)?.bytes()?;
            if let Content::Linear(linear) = &planned.content
                && let Some(magnitude) = linear.packed_magnitude()
            {
                check_scale(&linear.name, formats.linear, magnitude)?;
            }
        }
        Ok(())
    }

    /// Writes the whole file; returns its length.
    fn write(&self, out: &mut Output, formats: &Formats, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<u64> {
        let planned = weights::plan(&self.folder, &self.config)?;
        let specs = planned.iter().map(|planned| planned.spec(formats)).collect::<Result<Vec<_>>>()?;
        let mut metadata = self.metadata.clone();
        metadata.push(("general.file_type".into(), Value::U32(file_type(formats.linear))));
        metadata.push(("general.quantization_version".into(), Value::U32(2)));
        let total = specs.iter().map(|spec| spec.shape.iter().product::<usize>() as u64).sum();
        let mut progress = Counter { done: 0, total, reported: 0, inner: progress };
        let mut writer = GgufWriter::start(BufWriter::with_capacity(1 << 20, out.file()), &metadata, &specs)?;
        for (planned, spec) in planned.iter().zip(&specs) {
            match &planned.content {
                Content::Vector(values) => {
                    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                    writer.write(&bytes)?;
                    progress.add(values.len())?;
                }
                Content::Table { source, stored } => {
                    write_table(&mut writer, source, stored, spec, &mut |values, read| {
                        self.folder.release(read);
                        progress.add(values)
                    })?;
                }
                Content::Linear(linear) => {
                    write_linear(&mut writer, linear, spec.format, &mut progress)?;
                    linear.release(&self.folder);
                }
            }
        }
        writer.finish()?;
        out.sync()
    }

    /// What the scales of packed weights say.
    fn scales(&self) -> Result<Option<Scales>> {
        let mut scales: Option<Scales> = None;
        for planned in weights::plan(&self.folder, &self.config)? {
            let Content::Linear(Linear { weight: ternary::Weight::Packed { weight_scale, direction, .. }, .. }) =
                planned.content
            else {
                continue;
            };
            let (low, high) = scales.map_or((weight_scale, weight_scale), |scales| scales.range);
            scales = Some(Scales { direction, range: (low.min(weight_scale), high.max(weight_scale)) });
        }
        Ok(scales)
    }
}

impl Planned<'_> {
    /// What it will be in the file.
    fn spec(&self, formats: &Formats) -> Result<TensorSpec> {
        let (format, shape) = match &self.content {
            Content::Vector(values) => (Format::F32, vec![values.len()]),
            Content::Table { source, stored } => {
                let own = values::check_dtype(source, stored.dtype)?;
                let format = formats.embedding.unwrap_or(own);
                let shape: Vec<usize> = stored.shape.iter().rev().copied().collect();
                refuse_ragged(source, shape[0], format, "--embedding q8_0 takes multiples of 32, f16 takes all")?;
                (format, shape)
            }
            Content::Linear(linear) => {
                let instead = match linear.columns % pack::I2_S_LEN {
                    0 => "--type i2_s takes multiples of 128",
                    _ => "no ternary format has rows of this length",
                };
                refuse_ragged(&linear.name, linear.columns, formats.linear, instead)?;
                (formats.linear, vec![linear.columns, linear.rows])
            }
        };
        Ok(TensorSpec { name: self.name.clone(), format, shape })
    }
}

fn refuse_ragged(name: &str, columns: usize, format: Format, instead: &str) -> Result<()> {
    if columns % format.block_len() == 0 {
        return Ok(());
    }
    let text = format!("{} takes multiples of {}; {instead}", format.name(), format.block_len());
    Err(Error::Unsupported(format!("tensor `{name}` has rows of {columns} values: {text}")))
}

/// The licence that a model's card names in its head, which lies between two lines of dashes.
fn license(card: &str) -> Option<&str> {
    let (head, _) = card.strip_prefix("---\n")?.split_once("\n---")?;
    let license = head.lines().find_map(|line| line.strip_prefix("license:"))?.trim();
    (!license.is_empty()).then_some(license)
}

/// What llama.cpp and bitnet.cpp call a file with most weights in this format.
fn file_type(linear: Format) -> u32 {
    match linear {
        Format::TQ1_0 => 36,
        Format::TQ2_0 => 37,
        _ => 40, // bitnet.cpp's I2_S.
    }
}

/// A scale that this format can hold as a normal number.
fn check_scale(name: &str, format: Format, scale: f32) -> Result<half::f16> {
    let half = half::f16::from_f32(scale);
    if format != Format::I2_S && !half.is_normal() {
        let text = format!("{} holds scales as f16; --type i2_s has f32", format.name());
        return Err(Error::Unsupported(format!("tensor `{name}` has the scale {scale:e}: {text}")));
    }
    Ok(half)
}

/// Rows of a table between two calls of `each`.
const TABLE_ROWS: usize = 1024;

/// Writes a table of floats, row by row. `each` is told how many values have been written, and which part of the table that
/// was; a table may be most of a model.
fn write_table<W: Write>(
    writer: &mut GgufWriter<W>,
    name: &str,
    stored: &Stored<'_>,
    spec: &TensorSpec,
    each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
) -> Result<()> {
    let (columns, rows) = (spec.shape[0], spec.shape[1]);
    let Some(quantize) = quantizer(spec.format) else {
        return Err(Error::argument(format!("nothing can be converted to {}", spec.format.name())));
    };
    let mut values = vec![0.0; columns];
    let mut bytes = vec![0; columns / spec.format.block_len() * spec.format.block_bytes()];
    let limit = match spec.format {
        Format::F32 | Format::BF16 => f32::MAX,
        _ => half::f16::MAX.to_f32(),
    };
    for row in 0..rows {
        values::read(name, stored, row * columns, &mut values)?;
        if let Some(column) = values.iter().position(|value| value.abs() > limit) {
            let text = format!("{} at row {row}, column {column}", values[column]);
            let text = format!("tensor `{name}` holds {text}: {} has numbers up to {limit}", spec.format.name());
            return Err(Error::Unsupported(text));
        }
        quantize(&values, &mut bytes);
        writer.write(&bytes)?;
        if row % TABLE_ROWS == TABLE_ROWS - 1 || row == rows - 1 {
            let (first, row_bytes) = (row / TABLE_ROWS * TABLE_ROWS, stored.bytes.len() / rows);
            each((row + 1 - first) * columns, &stored.bytes[first * row_bytes..(row + 1) * row_bytes])?;
        }
    }
    Ok(())
}

/// Writes a layer of ternary weights, row by row.
fn write_linear<W: Write>(
    writer: &mut GgufWriter<W>,
    linear: &Linear<'_>,
    format: Format,
    progress: &mut Counter<'_>,
) -> Result<()> {
    let mut reader = linear.read()?;
    let scale = check_scale(&linear.name, format, reader.scale)?;
    let mut codes = vec![0; linear.columns];
    let mut bytes = vec![0; linear.columns / format.block_len() * format.block_bytes()];
    for row in 0..linear.rows {
        reader.codes(row, &mut codes)?;
        match format {
            Format::TQ1_0 => each_block(&codes, &mut bytes, |codes, out| pack::tq1_0(codes, scale, out)),
            Format::TQ2_0 => each_block(&codes, &mut bytes, |codes, out| pack::tq2_0(codes, scale, out)),
            Format::I2_S => each_block(&codes, &mut bytes, pack::i2_s),
            _ => return Err(Error::argument(format!("{} is not a ternary format", format.name()))),
        }
        writer.write(&bytes)?;
        progress.add(linear.columns)?;
    }
    if format == Format::I2_S {
        writer.write(&pack::i2_s_tail(reader.scale))?;
    }
    Ok(())
}

fn each_block<const LEN: usize, const BYTES: usize>(
    codes: &[u8],
    out: &mut [u8],
    pack: impl Fn(&[u8; LEN], &mut [u8; BYTES]),
) {
    let (blocks, _) = codes.as_chunks::<LEN>();
    let (out, _) = out.as_chunks_mut::<BYTES>();
    blocks.iter().zip(out).for_each(|(codes, out)| pack(codes, out));
}

/// Values written so far.
struct Counter<'a> {
    done: u64,
    total: u64,
    /// `done` when it was last told.
    reported: u64,
    inner: &'a mut dyn FnMut(u64, u64) -> bool,
}

impl Counter<'_> {
    /// How many values are written between two calls.
    const STEP: u64 = 1 << 20;

    fn add(&mut self, values: usize) -> Result<()> {
        self.done += values as u64;
        if self.done - self.reported < Self::STEP && self.done < self.total {
            return Ok(());
        }
        self.reported = self.done;
        if (self.inner)(self.done, self.total) { Ok(()) } else { Err(Error::Cancelled) }
    }
}
