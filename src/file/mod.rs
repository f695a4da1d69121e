//! Model files: GGUF parsing, limits and memory mapping. Past this layer sizes are trusted.

mod cursor;
mod fingerprint;
pub mod gguf;
mod mapping;
mod metadata;
#[cfg(feature = "cli")]
pub mod safetensors;
mod split;
#[cfg(feature = "cli")]
pub mod writer;

pub use metadata::{Array, Metadata, Strings, Value, kind};

use crate::quant::{Format, I2sLayout};
use crate::tensor::{Ledger, Residence, whole_pages};
use crate::{Error, Result};
use cursor::Named;
use gguf::TensorInfo;
use mapping::FileBytes;
use split::{Part, Paths};
use std::path::Path;
use std::sync::Arc;

/// One tensor of a file: a name, a shape, a format, and its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Unique in the model.
    pub name: &'a str,
    /// What its bytes mean.
    pub format: Format,
    /// GGUF order, fastest first: `shape[0]` = columns (inputs), `shape[1]` = rows (outputs). Unused ones are 1.
    pub shape: [usize; 4],
    /// All blocks. Aligned as in the file; of [`Source::Bytes`] at whatever address the caller's memory puts them.
    pub bytes: &'a [u8],
    /// What every value is multiplied with: 1, but for I2_S, whose blocks have no scale.
    pub scale: f32,
    /// The order of an I2_S tensor's codes; of other formats the default.
    pub i2s_layout: I2sLayout,
}

/// Where a model comes from.
pub enum Source<'a> {
    /// A file; the other parts of a split model are found beside it. When it is mapped, nobody may shorten or rewrite it
    /// as long as the model lives; replacing it by a rename, or deleting it, is fine.
    Path(&'a Path),
    /// Memory that outlives the model (the caller of the C API promises it).
    Bytes(&'static [u8]),
}

/// An opened, fully checked model file (all parts of a split one joined).
pub struct ModelFile {
    /// Of the first part.
    pub metadata: Metadata,
    parts: Vec<FileBytes>,
    tensors: Vec<Entry>, // In the order of the file.
    by_name: Vec<u32>,   // Indices of `tensors`, names ascending.
    i2s_layout: I2sLayout,
}

/// A tensor and the part it is in.
struct Entry {
    part: usize,
    info: TensorInfo,
}

impl ModelFile {
    /// Maps (or with `mmap: false` reads) and checks the whole header and every tensor's place.
    pub fn open(source: Source<'_>, mmap: bool) -> Result<ModelFile> {
        ModelFile::open_within(source, mmap, &Ledger::new(None, Residence::Lazy))
    }

    /// The same; what is read, and not mapped, is taken from the ledger until the file is closed.
    pub fn open_within(source: Source<'_>, mmap: bool, ledger: &Arc<Ledger>) -> Result<ModelFile> {
        let path = match source {
            Source::Path(path) => path,
            Source::Bytes(bytes) => {
                let mut file = ModelFile::empty();
                file.add(FileBytes::Static(bytes))?;
                if let Some(Part { count, .. }) = split::part(&file.metadata)? {
                    let text = format!("one of {count} parts of a split model: it can only be loaded from files");
                    return Err(Error::Unsupported(text));
                }
                return file.indexed();
            }
        };
        let mut file = ModelFile::empty();
        let first = add_part(&mut file, path, mmap, ledger)?;
        if let Some(first) = first {
            let paths = Paths::of(path, first)?;
            for index in 1..first.count {
                let path = paths.part(index);
                let found = add_part(&mut file, &path, mmap, ledger)?;
                split::check_part(found, first, index).map_err(|error| in_file(&path, error))?;
                if file.tensors.len() as u64 > first.tensor_count {
                    break;
                }
            }
            let (found, expected) = (file.tensors.len() as u64, first.tensor_count);
            if found != expected {
                let text = format!("split.tensors.count is {expected}, but the parts have {found} tensors");
                return Err(in_file(path, Error::Format(text)));
            }
        }
        file.indexed().map_err(|error| in_file(path, error))
    }

    fn empty() -> ModelFile {
        ModelFile {
            metadata: Metadata::default(),
            parts: Vec::new(),
            tensors: Vec::new(),
            by_name: Vec::new(),
            i2s_layout: I2sLayout::default(),
        }
    }

    /// Checks one part and takes its tensors; of the first one its metadata, of another one returns them.
    fn add(&mut self, bytes: FileBytes) -> Result<Option<Metadata>> {
        let parsed = gguf::parse(&bytes)?;
        let no_memory = |count: usize| Error::NoMemory {
            what: "the list of tensors",
            bytes: count.saturating_mul(size_of::<Entry>()),
        };
        self.tensors.try_reserve(parsed.tensors.len()).map_err(|_| no_memory(parsed.tensors.len()))?;
        self.parts.try_reserve(1).map_err(|_| no_memory(1))?;
        let part = self.parts.len();
        self.tensors.extend(parsed.tensors.into_iter().map(|info| Entry { part, info }));
        self.parts.push(bytes);
        if part == 0 {
            self.metadata = parsed.metadata;
            return Ok(None);
        }
        Ok(Some(parsed.metadata))
    }

    /// Sorts the names, which differ in all parts together.
    fn indexed(mut self) -> Result<ModelFile> {
        let count = self.tensors.len();
        let no_memory = Error::NoMemory { what: "the index of tensors", bytes: count.saturating_mul(4) };
        if u32::try_from(count).is_err() || self.by_name.try_reserve_exact(count).is_err() {
            return Err(no_memory);
        }
        self.by_name.extend(0..count as u32);
        let name = |&i: &u32| self.tensors[i as usize].info.name.as_str();
        self.by_name.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        if let Some([twice, _]) = self.by_name.array_windows().find(|[a, b]| name(a) == name(b)) {
            let text = format!("{} is in two parts", Named("tensor", name(twice).as_bytes()));
            return Err(Error::Format(text));
        }
        Ok(self)
    }

    /// Says in which order the codes of I2_S tensors are, which no file says of itself. Without such tensors it does nothing.
    pub fn set_i2s_layout(&mut self, layout: I2sLayout) -> Result<()> {
        for Tensor { name, shape: [_, rows, ..], .. } in self.tensors().filter(|tensor| tensor.format == Format::I2_S) {
            if layout == I2sLayout::Rows4 && !rows.is_multiple_of(4) {
                let text = format!("tensor `{name}` has {rows} rows, which I2_S in groups of 4 rows cannot hold");
                return Err(Error::Format(text));
            }
            if layout != I2sLayout::Block128 && rows == 1 {
                let text = format!("tensor `{name}`: a vector in I2_S is read in blocks of 128 only");
                return Err(Error::Unsupported(text));
            }
        }
        self.i2s_layout = layout;
        Ok(())
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let entry = |&i: &u32| &self.tensors[i as usize];
        let found = self.by_name.binary_search_by(|i| entry(i).info.name.as_str().cmp(name)).ok()?;
        Some(self.tensor_of(entry(&self.by_name[found])))
    }

    /// Every tensor, in the order of the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor<'_>> {
        self.tensors.iter().map(|entry| self.tensor_of(entry))
    }

    fn tensor_of<'a>(&'a self, entry: &'a Entry) -> Tensor<'a> {
        let TensorInfo { name, format, shape, at, bytes } = &entry.info;
        // `parse` has checked that the tensor lies inside its file, whose bytes do not change in number.
        let (bytes, tail) = self.parts[entry.part][*at..][..*bytes].split_at(*bytes - format.tail_bytes());
        let scale = tail.first_chunk().map_or(1.0, |scale| f32::from_le_bytes(*scale));
        let i2s_layout = if *format == Format::I2_S { self.i2s_layout } else { I2sLayout::default() };
        Tensor { name, format: *format, shape: *shape, bytes, scale, i2s_layout }
    }

    /// Tells the system that these bytes of a mapped tensor are not needed again soon (they stay valid).
    pub fn release(&self, bytes: &[u8]) {
        for part in &self.parts {
            part.release(bytes);
        }
    }

    /// Bytes of the file, of all its parts together.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.len() as u64).sum()
    }

    /// What the file takes of memory where it is read, and not mapped.
    pub fn held_when_read(&self) -> u64 {
        self.parts.iter().map(|part| whole_pages(part.len() as u64)).sum()
    }
}

/// Opens and adds the file at `path`; returns what it says of parts.
fn add_part(file: &mut ModelFile, path: &Path, mmap: bool, ledger: &Arc<Ledger>) -> Result<Option<Part>> {
    let part = || {
        let metadata = file.add(FileBytes::open(path, mmap, ledger)?)?;
        split::part(metadata.as_ref().unwrap_or(&file.metadata))
    };
    let mut part = part;
    part().map_err(|error| in_file(path, error))
}

/// Says in which file it was. Errors of the system already do.
fn in_file(path: &Path, error: Error) -> Error {
    match error {
        Error::Format(text) => Error::Format(format!("{}: {text}", path.display())),
        Error::Unsupported(text) => Error::Unsupported(format!("{}: {text}", path.display())),
        error => error,
    }
}
