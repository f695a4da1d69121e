//! The key-value pairs of a model file.

use super::cursor::{Cursor, Named};
use crate::{Error, Result};

/// GGUF's ids for types of values.
#[allow(missing_docs)] // Each is the id of what it is called.
pub mod kind {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;

    /// The name of a type, for messages.
    pub fn name(id: u32) -> &'static str {
        const NAMES: [&str; 13] =
            ["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"];
        NAMES.get(id as usize).copied().unwrap_or("an unknown type")
    }

    /// Bytes of a value of this type; None when they vary or there is no such type.
    pub fn width(id: u32) -> Option<usize> {
        Some(match id {
            U8 | I8 | BOOL => 1,
            U16 | I16 => 2,
            U32 | I32 | F32 => 4,
            U64 | I64 | F64 => 8,
            _ => return None,
        })
    }
}

/// A scalar or array of GGUF metadata, checked and owned.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // Each holds what it is called.
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

impl Value {
    /// GGUF's id of its type, one of [`kind`].
    pub fn kind(&self) -> u32 {
        match self {
            Value::U8(_) => kind::U8,
            Value::I8(_) => kind::I8,
            Value::U16(_) => kind::U16,
            Value::I16(_) => kind::I16,
            Value::U32(_) => kind::U32,
            Value::I32(_) => kind::I32,
            Value::U64(_) => kind::U64,
            Value::I64(_) => kind::I64,
            Value::F32(_) => kind::F32,
            Value::F64(_) => kind::F64,
            Value::Bool(_) => kind::BOOL,
            Value::String(_) => kind::STRING,
            Value::Array(_) => kind::ARRAY,
        }
    }

    /// Any integer.
    fn integer(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }
}

/// An array: its elements' type id, their count, and raw little-endian bytes (each string with its u64 length before it).
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// One of [`kind`], never an array.
    pub element: u32,
    /// How many elements.
    pub count: usize,
    /// The elements, little-endian, one after the other; each string behind its length (u64).
    pub bytes: Vec<u8>,
}

impl Array {
    /// An array of strings.
    pub fn of_strings<'a>(strings: impl IntoIterator<Item = &'a [u8]>) -> Array {
        let mut array = Array { element: kind::STRING, count: 0, bytes: Vec::new() };
        for string in strings {
            array.count += 1;
            array.bytes.extend((string.len() as u64).to_le_bytes());
            array.bytes.extend(string);
        }
        array
    }

    /// An array of i32.
    pub fn of_i32(values: &[i32]) -> Array {
        Array { element: kind::I32, count: values.len(), bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }

    /// An array of f32.
    pub fn of_f32(values: &[f32]) -> Array {
        Array { element: kind::F32, count: values.len(), bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }

    /// Each element as `read` makes it; None when `read` refuses one or the bytes are not `count` elements.
    fn collect<'a, T>(&'a self, read: impl Fn(&mut Cursor<'a>) -> Option<T>) -> Result<Option<Vec<T>>> {
        let mut out = Vec::new();
        // An element has at least one byte: a wrong `count` (the fields are public) asks for no more memory than that.
        let count = self.count.min(self.bytes.len());
        let bytes = count.saturating_mul(size_of::<T>());
        out.try_reserve_exact(count).map_err(|_| Error::NoMemory { what: "an array of the metadata", bytes })?;
        let mut cursor = Cursor { bytes: &self.bytes, at: 0 };
        for _ in 0..self.count {
            let Some(element) = read(&mut cursor) else { return Ok(None) };
            out.push(element);
        }
        Ok(if cursor.left() == 0 { Some(out) } else { None })
    }
}

/// The strings of an array, read where they lie.
#[derive(Clone, Debug)]
pub struct Strings<'a> {
    bytes: &'a [u8],
    starts: Vec<u32>, // Where in `bytes` each begins, with its length.
}

impl<'a> Strings<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The string at `index`, if there are so many.
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        Cursor { bytes: self.bytes, at: *self.starts.get(index)? as usize }.string().ok()
    }

    /// Every string, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone {
        self.starts.iter().map(|start| Cursor { bytes: self.bytes, at: *start as usize }.string().unwrap_or_default())
    }
}

/// The key-value pairs of a GGUF file, in its order.
///
/// Getters: `Ok(None)` when the key is absent, `Err(Error::Format)` that names the key when its type is wrong.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    by_key: Vec<u32>, // Indices of `entries`, keys ascending.
}

impl Metadata {
    /// Of these pairs; keys must differ.
    pub fn new(entries: Vec<(String, Value)>) -> Result<Metadata> {
        let count = entries.len();
        let no_memory = Error::NoMemory { what: "the index of the metadata", bytes: count.saturating_mul(4) };
        let mut by_key = Vec::new();
        if u32::try_from(count).is_err() || by_key.try_reserve_exact(count).is_err() {
            return Err(no_memory);
        }
        by_key.resize(count, 0);
        let mut metadata = Metadata { entries, by_key };
        metadata.index();
        let key = |i: u32| metadata.entries[i as usize].0.as_str();
        if let Some([twice, _]) = metadata.by_key.array_windows().find(|[a, b]| key(*a) == key(*b)) {
            return Err(Error::Format(format!("{} is there twice", Named("key", key(*twice).as_bytes()))));
        }
        Ok(metadata)
    }

    /// Every pair, in the order of the file.
    pub fn entries(&self) -> &[(String, Value)] {
        &self.entries
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let entry = |&i: &u32| &self.entries[i as usize];
        let found = self.by_key.binary_search_by(|i| entry(i).0.as_str().cmp(key)).ok()?;
        Some(&entry(&self.by_key[found]).1)
    }

    /// Any unsigned or non-negative integer.
    pub fn uint(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a non-negative integer", |value| value.integer().and_then(|v| u64::try_from(v).ok()))
    }

    /// An f32, or an f64 rounded to one.
    pub fn float(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a float", |value| match *value {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => None,
        })
    }

    /// A bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", |value| match *value {
            Value::Bool(v) => Some(v),
            _ => None,
        })
    }

    /// A string.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |value| match value {
            Value::String(v) => Some(v.as_str()),
            _ => None,
        })
    }

    /// An array of strings, as bytes (token arrays need not be UTF-8).
    pub fn strings(&self, key: &str) -> Result<Option<Strings<'_>>> {
        let expected = "an array of strings below 4 GiB";
        let starts = self.array(
            key,
            expected,
            |id| id == kind::STRING,
            |_, cursor| {
                let start = u32::try_from(cursor.at).ok();
                cursor.string().ok().and(start)
            },
        )?;
        let (Some(starts), Some(Value::Array(array))) = (starts, self.get(key)) else { return Ok(None) };
        Ok(Some(Strings { bytes: &array.bytes, starts }))
    }

    /// An array of integers that fit an i64.
    pub fn ints(&self, key: &str) -> Result<Option<Vec<i64>>> {
        let is_integer = |id| kind::width(id).is_some() && !matches!(id, kind::F32 | kind::F64 | kind::BOOL);
        self.array(key, "an array of integers up to 2^63", is_integer, |id, cursor| match id {
            kind::I32 => Some(i64::from(cursor.u32().ok()? as i32)), // The usual ones, fast.
            _ => i64::try_from(cursor.scalar(id).ok()??.integer()?).ok(),
        })
    }

    /// An array of f32.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.array(key, "an array of f32", |id| id == kind::F32, |_, cursor| cursor.u32().ok().map(f32::from_bits))
    }

    /// Forgets arrays of more than `longer_than` elements: a vocabulary is megabytes, and read once.
    pub fn drop_arrays(&mut self, longer_than: usize) {
        self.entries.retain(|(_, value)| !matches!(value, Value::Array(array) if array.count > longer_than));
        self.by_key.truncate(self.entries.len());
        self.index();
    }

    /// Makes `by_key` anew; it has the length of `entries`, so this asks for no memory.
    fn index(&mut self) {
        self.by_key.iter_mut().zip(0..).for_each(|(place, i)| *place = i);
        let key = |&i: &u32| self.entries[i as usize].0.as_str();
        self.by_key.sort_unstable_by(|a, b| key(a).cmp(key(b)));
    }

    /// The value of `key` as `read` takes it.
    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| wrong(key, expected, value))
    }

    /// The array of `key`, if `is_element` takes its type id and `read` each of its elements.
    fn array<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        is_element: impl FnOnce(u32) -> bool,
        read: impl Fn(u32, &mut Cursor<'a>) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let array = match value {
            Value::Array(array) if is_element(array.element) => array,
            _ => return Err(wrong(key, expected, value)),
        };
        array.collect(|cursor| read(array.element, cursor))?.map(Some).ok_or_else(|| wrong(key, expected, value))
    }
}

/// The value of `key` is not what it has to be.
fn wrong(key: &str, expected: &str, value: &Value) -> Error {
    let found = match value {
        Value::Array(array) => format!("an array of {} {}", array.count, kind::name(array.element)),
        Value::String(_) => "a string".into(),
        Value::Bool(v) => format!("bool {v}"),
        Value::F32(v) => format!("f32 {v}"),
        Value::F64(v) => format!("f64 {v}"),
        _ => format!("{} {}", kind::name(value.kind()), value.integer().unwrap_or_default()),
    };
    Error::Format(format!("{}: expected {expected}, found {found}", Named("key", key.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(entries: Vec<(&str, Value)>) -> Metadata {
        Metadata::new(entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect()).unwrap()
    }

    #[track_caller]
    fn refused<T: std::fmt::Debug>(result: Result<T>, words: &[&str]) {
        let Err(Error::Format(text)) = result else { panic!("{result:?}") };
        for word in words {
            assert!(text.contains(word), "{text:?} does not say {word:?}");
        }
    }

    #[test]
    fn integers_of_every_width_read_as_uint_unless_negative() {
        let m = metadata(vec![
            ("a", Value::U8(200)),
            ("b", Value::I16(7)),
            ("c", Value::U64(u64::MAX)),
            ("d", Value::I32(-5)),
            ("e", Value::F32(1.0)),
            ("f", Value::Bool(true)),
        ]);
        assert_eq!(m.uint("a").unwrap(), Some(200));
        assert_eq!(m.uint("b").unwrap(), Some(7));
        assert_eq!(m.uint("c").unwrap(), Some(u64::MAX));
        assert_eq!(m.uint("absent").unwrap(), None);
        refused(m.uint("d"), &["\"d\"", "-5", "non-negative"]);
        refused(m.uint("e"), &["\"e\"", "f32"]);
        refused(m.uint("f"), &["\"f\"", "bool"]);
    }

    #[test]
    fn getters_of_the_wrong_type_name_the_key() {
        let m = metadata(vec![
            ("s", Value::String("text".into())),
            ("n", Value::U32(1)),
            ("names", Value::Array(Array::of_strings([b"x".as_slice(), b"\xff"]))),
        ]);
        assert_eq!(m.string("s").unwrap(), Some("text"));
        let names = m.strings("names").unwrap().unwrap();
        assert!(names.iter().eq([b"x".as_slice(), b"\xff"]));
        assert_eq!((names.len(), names.get(1), names.get(2)), (2, Some(b"\xff".as_slice()), None));
        refused(m.string("n"), &["\"n\"", "u32 1"]);
        refused(m.float("n"), &["\"n\""]);
        refused(m.bool("n"), &["\"n\""]);
        refused(m.ints("names"), &["\"names\"", "an array of 2 string"]);
        refused(m.floats("s"), &["\"s\""]);
    }

    #[test]
    fn an_array_is_read_by_its_declared_type_only() {
        // llama.cpp #26690: declared u8, read as f32.
        let bytes = Array { element: kind::U8, count: 4, bytes: vec![1, 2, 3, 255] };
        let big = Array { element: kind::U64, count: 1, bytes: vec![255; 8] };
        let m = metadata(vec![("bytes", Value::Array(bytes)), ("big", Value::Array(big))]);
        assert_eq!(m.ints("bytes").unwrap().unwrap(), [1, 2, 3, 255]);
        refused(m.floats("bytes"), &["4 u8"]);
        refused(m.strings("bytes"), &["4 u8"]);
        refused(m.ints("big"), &["\"big\""]);
    }

    #[test]
    fn an_array_whose_count_and_bytes_disagree_is_refused() {
        for count in [0, 1, 3, usize::MAX] {
            let array = Array { element: kind::I32, count, bytes: vec![0; 8] };
            refused(metadata(vec![("a", Value::Array(array))]).ints("a"), &["\"a\""]);
        }
        let array = Array { element: kind::STRING, count: 1, bytes: vec![255; 9] };
        refused(metadata(vec![("a", Value::Array(array))]).strings("a"), &["\"a\""]);
    }

    #[test]
    fn keys_are_found_whatever_their_order() {
        let keys: Vec<String> = (0..1000u64).map(|i| (i * 7919 % 1009).to_string()).collect();
        let m = Metadata::new(keys.iter().map(|key| (key.clone(), Value::String(key.clone()))).collect()).unwrap();
        for key in &keys {
            assert_eq!(m.string(key).unwrap(), Some(key.as_str()));
        }
        assert!(m.get("1010").is_none() && m.get("").is_none());
    }

    #[test]
    fn a_key_twice_is_refused() {
        let entries = ["b", "a", "b"].map(|key| (key.to_string(), Value::U8(0)));
        refused(Metadata::new(entries.into()), &["\"b\"", "twice"]);
    }

    #[test]
    fn dropping_long_arrays_keeps_everything_else() {
        let array = |count| Value::Array(Array { element: kind::U8, count, bytes: vec![0; count] });
        let mut m =
            metadata(vec![("z", array(9)), ("y", array(8)), ("b", Value::U8(3)), ("a", array(10)), ("c", array(0))]);
        m.drop_arrays(8);
        let keys: Vec<&str> = m.entries().iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["y", "b", "c"]);
        assert_eq!(m.uint("b").unwrap(), Some(3));
        assert_eq!(m.ints("y").unwrap().unwrap().len(), 8);
        assert!(m.get("z").is_none() && m.get("a").is_none());
        assert!(m.ints("c").unwrap().unwrap().is_empty());
    }
}
