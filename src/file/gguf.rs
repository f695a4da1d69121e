//! The GGUF container, versions 2 and 3: a bounded parser over bytes that nobody has checked.
//!
//! It reads the file twice. The first pass checks everything and remembers only places (16 bytes for a pair, 32 for a
//! tensor, never more than about twice what they take in the file), so that a bad file costs little. The second one, over
//! a file known to be good, copies names and values out.

use super::cursor::{Cursor, Named, damaged};
use super::metadata::{Array, Metadata, Value, kind};
use crate::quant::{self, Format};
use crate::{Error, Result};
use std::fmt;

/// The most pairs, and the most tensors, that a file may have.
pub const COUNT_MAX: u64 = 65_536;
/// The longest key or name of a tensor, in bytes.
pub const NAME_BYTES_MAX: usize = 65_535;
const ALIGNMENT_KEY: &str = "general.alignment";
pub(super) const ALIGNMENT_DEFAULT: u64 = 32;
/// Length of the key, type, a value of one byte.
const PAIR_BYTES_MIN: u64 = 8 + 4 + 1;
/// Length of the name, number of dimensions, one dimension, type, offset.
const TENSOR_BYTES_MIN: u64 = 8 + 4 + 8 + 4 + 8;
/// Arrays of strings that need not be UTF-8: a token can be half a character.
const BYTE_STRINGS: [&str; 2] = ["tokenizer.ggml.tokens", "tokenizer.ggml.merges"];

/// What a GGUF file says about itself; every place lies inside the file.
#[derive(Debug)]
pub struct Parsed {
    /// The key-value pairs.
    pub metadata: Metadata,
    /// In the order of the file.
    pub tensors: Vec<TensorInfo>,
}

/// Where a tensor is.
#[derive(Debug)]
pub struct TensorInfo {
    /// Unique in the file.
    pub name: String,
    /// What its bytes mean.
    pub format: Format,
    /// Fastest first; unused dimensions are 1.
    pub shape: [usize; 4],
    /// Its first byte in the file.
    pub at: usize,
    /// How many bytes it has.
    pub bytes: usize,
}

/// A pair that was checked: from its key to the end of its value.
struct PairPlace {
    at: usize,
    end: usize,
}

/// A tensor whose description was checked.
struct TensorPlace {
    /// Its description in the header.
    at: usize,
    /// Its first byte: from the start of the data at first, then in the file.
    start: u64,
    bytes: u64,
    format: Format,
}

/// Checks a whole file's header and every tensor's place, and copies out what it says.
///
/// Time is linear in the header, but for sorting names and places. Names of keys and tensors are not empty.
pub fn parse(bytes: &[u8]) -> Result<Parsed> {
    let mut cursor = Cursor { bytes, at: 0 };
    let (tensor_count, pair_count) = prelude(&mut cursor)?;
    let pairs = scan_pairs(&mut cursor, pair_count)?;
    let mut tensors = scan_tensors(&mut cursor, tensor_count)?;

    let keys = pairs.iter().map(|pair| pair.at);
    refuse_twice(bytes, "key", keys, pairs.len())?;
    refuse_twice(bytes, "tensor", tensors.iter().map(|tensor| tensor.at), tensors.len())?;

    let alignment = alignment(bytes, &pairs)?;
    place(bytes, &mut tensors, cursor.at as u64, alignment)?;
    refuse_overlaps(bytes, &mut tensors)?;

    Ok(Parsed { metadata: copy_metadata(bytes, &pairs)?, tensors: copy_tensors(bytes, &tensors)? })
}

/// Magic, version, and how many tensors and pairs follow.
fn prelude(cursor: &mut Cursor<'_>) -> Result<(u64, u64)> {
    let magic = cursor.take(4).map_err(|fault| fault.of("the GGUF magic"))?;
    if magic != b"GGUF" {
        return Err(not_gguf(cursor.bytes, magic));
    }
    let version = cursor.u32().map_err(|fault| fault.of("the GGUF version"))?;
    match version {
        2 | 3 => {}
        1 => return Err(Error::Unsupported("GGUF version 1 is not supported: convert the file again".into())),
        _ if (1..=255).contains(&version.swap_bytes()) => {
            return Err(Error::Unsupported("a big-endian GGUF file is not supported".into()));
        }
        _ => return Err(Error::Unsupported(format!("GGUF version {version} is not supported, 2 and 3 are"))),
    }
    let tensors = count(cursor, "the number of tensors")?;
    let pairs = count(cursor, "the number of keys")?;
    bounded(cursor, "the number of tensors", tensors, TENSOR_BYTES_MIN)?;
    bounded(cursor, "the number of keys", pairs, PAIR_BYTES_MIN)?;
    Ok((tensors, pairs))
}

/// Says what the file is instead, where that is likely to help.
fn not_gguf(bytes: &[u8], magic: &[u8]) -> Error {
    if bytes.starts_with(b"version https://git-lfs") {
        return Error::Format("this is a Git LFS pointer, not the model itself: run `git lfs pull`".into());
    }
    if matches!(magic, b"lmgg" | b"fmgg" | b"tjgg" | b"algg") {
        return Error::Unsupported("a GGML file from before GGUF is not supported: convert it again".into());
    }
    Error::Format(format!("not a GGUF file: it starts with \"{}\"", magic.escape_ascii()))
}

fn count(cursor: &mut Cursor<'_>, what: &str) -> Result<u64> {
    let at = cursor.at;
    let count = cursor.u64().map_err(|fault| fault.of(what))?;
    if count > COUNT_MAX {
        return Err(damaged(at, what, format_args!("{count}, at most {COUNT_MAX} are allowed")));
    }
    Ok(count)
}

/// `count` things of at least `bytes_min` each must fit in what is left.
fn bounded(cursor: &Cursor<'_>, what: impl fmt::Display, count: u64, bytes_min: u64) -> Result<()> {
    if count > cursor.left() as u64 / bytes_min {
        let why = format_args!("{count} of at least {bytes_min} bytes each, but the file has {} left", cursor.left());
        return Err(damaged(cursor.at, what, why));
    }
    Ok(())
}

/// An empty vector with room for exactly `count`.
fn room<T>(what: &'static str, count: usize) -> Result<Vec<T>> {
    let mut room = Vec::new();
    let bytes = count.saturating_mul(size_of::<T>());
    room.try_reserve_exact(count).map_err(|_| Error::NoMemory { what, bytes })?;
    Ok(room)
}

/// Checks every pair.
fn scan_pairs(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<PairPlace>> {
    let mut pairs = room("the places of the metadata", count as usize)?;
    for i in 0..count {
        let at = cursor.at;
        let key = name(cursor, || format!("key {i}"))?;
        check_value(cursor, key)?;
        pairs.push(PairPlace { at, end: cursor.at });
    }
    Ok(pairs)
}

/// The name of a key or a tensor.
fn name<'a>(cursor: &mut Cursor<'a>, what: impl Fn() -> String) -> Result<&'a str> {
    let at = cursor.at;
    let name = cursor.string().map_err(|fault| fault.of(what()))?;
    if name.is_empty() {
        return Err(damaged(at, what(), "its name is empty"));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(damaged(at, what(), format_args!("a name of {} bytes, at most {NAME_BYTES_MAX}", name.len())));
    }
    std::str::from_utf8(name).map_err(|_| damaged(at, Named("the name", name), "it is not UTF-8"))
}

/// Checks the type and value of `key`.
fn check_value(cursor: &mut Cursor<'_>, key: &str) -> Result<()> {
    let named = || Named("key", key.as_bytes());
    let type_at = cursor.at;
    let id = cursor.u32().map_err(|fault| fault.of(named()))?;
    match id {
        kind::STRING => {
            let at = cursor.at;
            let string = cursor.string().map_err(|fault| fault.of(named()))?;
            std::str::from_utf8(string).map_err(|_| damaged(at, named(), "its string is not UTF-8"))?;
            Ok(())
        }
        kind::ARRAY => check_array(cursor, key),
        _ => match kind::width(id) {
            Some(width) => check_scalars(cursor, key, id, width as u64),
            None => Err(damaged(type_at, named(), format_args!("{id} is not a type of value"))),
        },
    }
}

/// Checks the array of `key`, which may not hold arrays.
fn check_array(cursor: &mut Cursor<'_>, key: &str) -> Result<()> {
    let named = || Named("key", key.as_bytes());
    let at = cursor.at;
    let element = cursor.u32().map_err(|fault| fault.of(named()))?;
    let count = cursor.u64().map_err(|fault| fault.of(named()))?;
    match element {
        kind::STRING => check_strings(cursor, key, count),
        kind::ARRAY => Err(Error::Unsupported(format!("{} at byte {at}: an array of arrays", named()))),
        _ => match kind::width(element) {
            Some(width) => {
                bounded(cursor, named(), count, width as u64)?;
                check_scalars(cursor, key, element, count * width as u64) // At most the bytes left.
            }
            None => Err(damaged(at, named(), format_args!("{element} is not a type of value"))),
        },
    }
}

/// Checks `count` strings, UTF-8 but where tokens are.
fn check_strings(cursor: &mut Cursor<'_>, key: &str, count: u64) -> Result<()> {
    let named = || Named("key", key.as_bytes());
    bounded(cursor, named(), count, 8)?;
    let is_text = !BYTE_STRINGS.contains(&key);
    for i in 0..count {
        let at = cursor.at;
        let string = cursor.string().map_err(|fault| fault.of(format_args!("element {i} of {}", named())))?;
        if is_text && std::str::from_utf8(string).is_err() {
            return Err(damaged(at, named(), format_args!("element {i} is not UTF-8")));
        }
    }
    Ok(())
}

/// Checks `bytes` bytes of scalars: a bool is 0 or 1, the others may be anything.
fn check_scalars(cursor: &mut Cursor<'_>, key: &str, id: u32, bytes: u64) -> Result<()> {
    let named = || Named("key", key.as_bytes());
    let at = cursor.at;
    let scalars = cursor.take(bytes).map_err(|fault| fault.of(named()))?;
    if id == kind::BOOL
        && let Some(i) = scalars.iter().position(|&b| b > 1)
    {
        return Err(damaged(at + i, named(), format_args!("a bool of {}, neither 0 nor 1", scalars[i])));
    }
    Ok(())
}

/// Checks every tensor's description; places follow when the alignment is known.
fn scan_tensors(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<TensorPlace>> {
    // Checked again: the pairs took bytes that this count may have been counting on.
    bounded(cursor, "the tensors", count, TENSOR_BYTES_MIN)?;
    let mut tensors = room("the places of the tensors", count as usize)?;
    for i in 0..count {
        let at = cursor.at;
        let name = name(cursor, || format!("tensor {i}"))?;
        let named = || Named("tensor", name.as_bytes());
        let shape_at = cursor.at;
        let shape = shape(cursor, name)?;
        let type_at = cursor.at;
        let id = cursor.u32().map_err(|fault| fault.of(named()))?;
        let start = cursor.u64().map_err(|fault| fault.of(named()))?;
        let Some(format) = Format::from_id(id) else {
            let what = quant::id_name(id).unwrap_or("unknown");
            let text = format!("{} at byte {type_at}: format {what} (type {id}) is not supported", named());
            return Err(Error::Unsupported(text));
        };
        let bytes = tensor_bytes(format, shape).map_err(|why| damaged(shape_at, named(), why))?;
        tensors.push(TensorPlace { at, start, bytes, format });
    }
    Ok(tensors)
}

/// The dimensions of the tensor `name`.
fn shape(cursor: &mut Cursor<'_>, name: &str) -> Result<[u64; 4]> {
    let named = || Named("tensor", name.as_bytes());
    let at = cursor.at;
    let dimensions = cursor.u32().map_err(|fault| fault.of(named()))?;
    let mut shape = [1; 4];
    let used = match dimensions {
        1..=4 => &mut shape[..dimensions as usize],
        _ => return Err(damaged(at, named(), format_args!("{dimensions} dimensions, 1 to 4 are allowed"))),
    };
    for (i, dimension) in used.iter_mut().enumerate() {
        let at = cursor.at;
        *dimension = cursor.u64().map_err(|fault| fault.of(named()))?;
        if *dimension == 0 {
            return Err(damaged(at, named(), format_args!("dimension {i} is 0")));
        }
    }
    Ok(shape)
}

/// How many bytes a tensor has, or why it cannot be.
pub(super) fn tensor_bytes(format: Format, shape: [u64; 4]) -> Result<u64, String> {
    let block_len = format.block_len() as u64;
    if !shape[0].is_multiple_of(block_len) {
        return Err(format!("rows of {} values are not whole {} blocks of {block_len}", shape[0], format.name()));
    }
    let values = shape.iter().try_fold(1u64, |product, &dimension| product.checked_mul(dimension));
    let bytes = values.and_then(|values| (values / block_len).checked_mul(format.block_bytes() as u64));
    let bytes = bytes.and_then(|bytes| bytes.checked_add(format.tail_bytes() as u64));
    // The number of values must be a usize as well: F16 has fewer bytes than its f32 copy.
    let in_memory = values.and_then(|values| values.checked_mul(4)).filter(|&bytes| isize::try_from(bytes).is_ok());
    bytes.filter(|_| in_memory.is_some()).ok_or_else(|| format!("its shape {shape:?} is too large"))
}

/// `general.alignment`, checked.
fn alignment(bytes: &[u8], pairs: &[PairPlace]) -> Result<u64> {
    let Some(pair) = pairs.iter().find(|pair| name_at(bytes, pair.at) == ALIGNMENT_KEY.as_bytes()) else {
        return Ok(ALIGNMENT_DEFAULT);
    };
    let what = Named("key", ALIGNMENT_KEY.as_bytes());
    let (_, value) = copy_pair(bytes, pair)?;
    let Value::U32(alignment) = value else {
        return Err(damaged(pair.at, what, format_args!("it is {}, not u32", kind::name(value.kind()))));
    };
    if !alignment.is_power_of_two() || !(8..=1 << 20).contains(&alignment) {
        return Err(damaged(pair.at, what, format_args!("{alignment} is not a power of two from 8 to 1048576")));
    }
    Ok(u64::from(alignment))
}

/// Turns offsets from the start of the data into places in the file, which lie inside it.
fn place(bytes: &[u8], tensors: &mut [TensorPlace], header_end: u64, alignment: u64) -> Result<()> {
    let file_bytes = bytes.len() as u64;
    let data_start = header_end.next_multiple_of(alignment); // Both are far from 2^64.
    for tensor in tensors {
        let offset = tensor.start;
        let problem =
            |why: fmt::Arguments<'_>| Err(damaged(tensor.at, Named("tensor", name_at(bytes, tensor.at)), why));
        if !offset.is_multiple_of(alignment) {
            return problem(format_args!("its offset {offset} is not a multiple of the alignment {alignment}"));
        }
        let start = data_start.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(tensor.bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_bytes => tensor.start = start,
            _ => {
                let size = tensor.bytes;
                return problem(format_args!(
                    "{size} bytes at offset {offset} of the data (byte {data_start}) do not fit a file of {file_bytes}"
                ));
            }
        }
    }
    Ok(())
}

/// Two names may not be equal. `places` are `count` places of names.
fn refuse_twice(bytes: &[u8], what: &'static str, places: impl Iterator<Item = usize>, count: usize) -> Result<()> {
    let mut sorted = room("the order of names", count)?;
    sorted.extend(places);
    sorted.sort_unstable_by(|&a, &b| name_at(bytes, a).cmp(name_at(bytes, b)));
    match sorted.array_windows().find(|[a, b]| name_at(bytes, *a) == name_at(bytes, *b)) {
        Some(&[a, b]) => {
            let why = format_args!("there is another of this name at byte {}", a.min(b));
            Err(damaged(a.max(b), Named(what, name_at(bytes, a)), why))
        }
        None => Ok(()),
    }
}

/// No byte may belong to two tensors. Leaves the order of `tensors` as it was.
fn refuse_overlaps(bytes: &[u8], tensors: &mut [TensorPlace]) -> Result<()> {
    tensors.sort_unstable_by_key(|tensor| tensor.start);
    if let Some([a, b]) = tensors.array_windows().find(|[a, b]| a.start + a.bytes > b.start) {
        let other = Named("tensor", name_at(bytes, a.at));
        let why = format_args!("its data at byte {} overlaps the data of {other} at byte {}", b.start, a.start);
        return Err(damaged(b.at, Named("tensor", name_at(bytes, b.at)), why));
    }
    tensors.sort_unstable_by_key(|tensor| tensor.at);
    Ok(())
}

/// The name at a place where one was found before.
fn name_at(bytes: &[u8], at: usize) -> &[u8] {
    // A file that changes under its mapping may have none now: then the answer is wrong, but safe.
    Cursor { bytes, at }.string().unwrap_or_default()
}

/// The second pass over the pairs.
fn copy_metadata(bytes: &[u8], pairs: &[PairPlace]) -> Result<Metadata> {
    let mut entries = room("the metadata", pairs.len())?;
    for pair in pairs {
        entries.push(copy_pair(bytes, pair)?);
    }
    Metadata::new(entries)
}

/// A pair that was checked, copied.
fn copy_pair(bytes: &[u8], pair: &PairPlace) -> Result<(String, Value)> {
    let mut cursor = Cursor { bytes: bytes.get(..pair.end).unwrap_or_default(), at: pair.at };
    let name = cursor.string().map_err(changed)?;
    let key = copy_string("a key of the metadata", name)?;
    let id = cursor.u32().map_err(changed)?;
    let value = match id {
        kind::STRING => Value::String(copy_string("a string of the metadata", cursor.string().map_err(changed)?)?),
        kind::ARRAY => {
            let element = cursor.u32().map_err(changed)?;
            let count = cursor.u64().map_err(changed)? as usize; // At most the bytes of the file.
            let elements = cursor.take(cursor.left() as u64).map_err(changed)?;
            Value::Array(Array { element, count, bytes: copy("an array of the metadata", elements)? })
        }
        _ => cursor.scalar(id).map_err(changed)?.ok_or_else(|| changed(()))?,
    };
    Ok((key, value))
}

/// The second pass over the tensors.
fn copy_tensors(bytes: &[u8], places: &[TensorPlace]) -> Result<Vec<TensorInfo>> {
    let mut tensors = room("the list of tensors", places.len())?;
    for place in places {
        let mut cursor = Cursor { bytes, at: place.at };
        let name = copy_string("the name of a tensor", cursor.string().map_err(changed)?)?;
        let shape = shape(&mut cursor, &name)?;
        tensors.push(TensorInfo {
            name,
            format: place.format,
            // Place and size are inside the file and the number of values was checked: all fit a usize.
            shape: shape.map(|dimension| dimension as usize),
            at: place.start as usize,
            bytes: place.bytes as usize,
        });
    }
    Ok(tensors)
}

/// What was checked is not there any more: somebody writes to the file.
fn changed<T>(_: T) -> Error {
    Error::Format("the file changed while it was read".into())
}

fn copy(what: &'static str, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut copy = room(what, bytes.len())?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}

fn copy_string(what: &'static str, bytes: &[u8]) -> Result<String> {
    String::from_utf8(copy(what, bytes)?).map_err(changed)
}
