//! Writes GGUF files: good ones, and ones that lie where a test says so.

use edgellm::file::{Array, kind};
use edgellm::quant::Format;

/// An integer of a written file, for tests that change it.
#[derive(Clone, Debug)]
pub struct Field {
    pub what: String,
    pub at: usize,
    /// Bytes: 1, 2, 4 or 8.
    pub width: usize,
}

/// Bytes of a value, and where its integers are.
#[derive(Clone, Default)]
struct Bytes {
    bytes: Vec<u8>,
    fields: Vec<Field>,
}

impl Bytes {
    fn field(&mut self, what: impl Into<String>, bytes: &[u8]) {
        self.fields.push(Field { what: what.into(), at: self.bytes.len(), width: bytes.len() });
        self.bytes.extend(bytes);
    }

    fn string(&mut self, what: &str, string: &[u8]) {
        self.field(format!("{what} length"), &(string.len() as u64).to_le_bytes());
        self.bytes.extend(string);
    }

    fn append(&mut self, other: &Bytes) {
        let start = self.bytes.len();
        self.fields.extend(other.fields.iter().cloned().map(|field| Field { at: field.at + start, ..field }));
        self.bytes.extend(&other.bytes);
    }
}

#[derive(Clone)]
struct Pair {
    key: Vec<u8>,
    kind: u32,
    value: Bytes,
}

#[derive(Clone)]
struct TensorSpec {
    name: Vec<u8>,
    shape: Vec<u64>,
    kind: u32,
    /// None: behind the tensor before it.
    offset: Option<u64>,
    bytes: Vec<u8>,
}

/// Collects pairs and tensors, then writes them. It checks nothing: a test may want it wrong.
#[derive(Clone)]
pub struct GgufWriter {
    pairs: Vec<Pair>,
    tensors: Vec<TensorSpec>,
    alignment: usize,
}

impl Default for GgufWriter {
    fn default() -> Self {
        GgufWriter::new()
    }
}

impl GgufWriter {
    pub fn new() -> GgufWriter {
        GgufWriter { pairs: Vec::new(), tensors: Vec::new(), alignment: 32 }
    }

    /// Writes `general.alignment` and keeps to it.
    pub fn alignment(&mut self, alignment: u32) -> &mut Self {
        self.alignment = alignment as usize;
        self.kv_u32("general.alignment", alignment)
    }

    pub fn kv_u8(&mut self, key: &str, value: u8) -> &mut Self {
        self.scalar(key, kind::U8, &value.to_le_bytes())
    }

    pub fn kv_i8(&mut self, key: &str, value: i8) -> &mut Self {
        self.scalar(key, kind::I8, &value.to_le_bytes())
    }

    pub fn kv_u16(&mut self, key: &str, value: u16) -> &mut Self {
        self.scalar(key, kind::U16, &value.to_le_bytes())
    }

    pub fn kv_i16(&mut self, key: &str, value: i16) -> &mut Self {
        self.scalar(key, kind::I16, &value.to_le_bytes())
    }

    pub fn kv_u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.scalar(key, kind::U32, &value.to_le_bytes())
    }

    pub fn kv_i32(&mut self, key: &str, value: i32) -> &mut Self {
        self.scalar(key, kind::I32, &value.to_le_bytes())
    }

    pub fn kv_u64(&mut self, key: &str, value: u64) -> &mut Self {
        self.scalar(key, kind::U64, &value.to_le_bytes())
    }

    pub fn kv_i64(&mut self, key: &str, value: i64) -> &mut Self {
        self.scalar(key, kind::I64, &value.to_le_bytes())
    }

    pub fn kv_f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.kv_raw(key.as_bytes(), kind::F32, &value.to_le_bytes())
    }

    pub fn kv_f64(&mut self, key: &str, value: f64) -> &mut Self {
        self.kv_raw(key.as_bytes(), kind::F64, &value.to_le_bytes())
    }

    pub fn kv_bool(&mut self, key: &str, value: bool) -> &mut Self {
        self.kv_raw(key.as_bytes(), kind::BOOL, &[u8::from(value)])
    }

    pub fn kv_str(&mut self, key: &str, value: &str) -> &mut Self {
        let mut bytes = Bytes::default();
        bytes.string(&format!("value of {key}"), value.as_bytes());
        self.pair(key.as_bytes(), kind::STRING, bytes)
    }

    pub fn kv_strings<S: AsRef<[u8]>>(&mut self, key: &str, values: &[S]) -> &mut Self {
        self.kv_array(key, &Array::of_strings(values.iter().map(AsRef::as_ref)))
    }

    pub fn kv_i32s(&mut self, key: &str, values: &[i32]) -> &mut Self {
        self.kv_array(key, &Array::of_i32(values))
    }

    pub fn kv_f32s(&mut self, key: &str, values: &[f32]) -> &mut Self {
        self.kv_array(key, &Array::of_f32(values))
    }

    /// An array with the type, count and bytes that it claims.
    pub fn kv_array(&mut self, key: &str, array: &Array) -> &mut Self {
        let mut bytes = Bytes::default();
        bytes.field(format!("element type of {key}"), &array.element.to_le_bytes());
        bytes.field(format!("count of {key}"), &(array.count as u64).to_le_bytes());
        if array.element == kind::STRING && !array.bytes.is_empty() {
            bytes.fields.push(Field { what: format!("first length of {key}"), at: bytes.bytes.len(), width: 8 });
        }
        bytes.bytes.extend(&array.bytes);
        self.pair(key.as_bytes(), kind::ARRAY, bytes)
    }

    /// Any key, type id and bytes of a value.
    pub fn kv_raw(&mut self, key: &[u8], kind: u32, value: &[u8]) -> &mut Self {
        self.pair(key, kind, Bytes { bytes: value.to_vec(), fields: Vec::new() })
    }

    fn scalar(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
        let mut bytes = Bytes::default();
        bytes.field(format!("value of {key}"), value);
        self.pair(key.as_bytes(), kind, bytes)
    }

    fn pair(&mut self, key: &[u8], kind: u32, value: Bytes) -> &mut Self {
        self.pairs.push(Pair { key: key.to_vec(), kind, value });
        self
    }

    /// Takes a key out, to put in another value or none.
    pub fn remove(&mut self, key: &str) -> &mut Self {
        self.pairs.retain(|pair| pair.key != key.as_bytes());
        self
    }

    /// A tensor; `shape` is in GGUF's order, columns first.
    pub fn tensor(&mut self, name: &str, shape: &[u64], format: Format, bytes: Vec<u8>) -> &mut Self {
        self.tensor_raw(name.as_bytes(), shape, format as u32, None, bytes)
    }

    /// A tensor of any type id, at an offset of the test's choice.
    pub fn tensor_raw(
        &mut self,
        name: &[u8],
        shape: &[u64],
        kind: u32,
        offset: Option<u64>,
        bytes: Vec<u8>,
    ) -> &mut Self {
        self.tensors.push(TensorSpec { name: name.to_vec(), shape: shape.to_vec(), kind, offset, bytes });
        self
    }

    /// Takes a tensor out.
    pub fn remove_tensor(&mut self, name: &str) -> &mut Self {
        self.tensors.retain(|tensor| tensor.name != name.as_bytes());
        self
    }

    /// Names of the tensors, in order.
    pub fn tensor_names(&self) -> Vec<String> {
        self.tensors.iter().map(|tensor| String::from_utf8_lossy(&tensor.name).into_owned()).collect()
    }

    /// The file. Nothing follows the last tensor's last byte.
    pub fn write(&self, version: u32) -> Vec<u8> {
        self.write_with_fields(version).0
    }

    /// The file, and where each integer of its header is.
    pub fn write_with_fields(&self, version: u32) -> (Vec<u8>, Vec<Field>) {
        let mut out = Bytes::default();
        out.bytes.extend(b"GGUF");
        out.field("version", &version.to_le_bytes());
        out.field("tensor count", &(self.tensors.len() as u64).to_le_bytes());
        out.field("key count", &(self.pairs.len() as u64).to_le_bytes());
        for pair in &self.pairs {
            let name = String::from_utf8_lossy(&pair.key);
            out.string(&format!("key {name}"), &pair.key);
            out.field(format!("type of {name}"), &pair.kind.to_le_bytes());
            out.append(&pair.value);
        }
        let mut next = 0;
        let mut data = Vec::new();
        for tensor in &self.tensors {
            let name = String::from_utf8_lossy(&tensor.name);
            out.string(&format!("tensor {name}"), &tensor.name);
            out.field(format!("dimensions of {name}"), &(tensor.shape.len() as u32).to_le_bytes());
            for (i, dimension) in tensor.shape.iter().enumerate() {
                out.field(format!("dimension {i} of {name}"), &dimension.to_le_bytes());
            }
            out.field(format!("type of {name}"), &tensor.kind.to_le_bytes());
            out.field(format!("offset of {name}"), &tensor.offset.unwrap_or(next as u64).to_le_bytes());
            data.resize(next, 0);
            data.extend(&tensor.bytes);
            next = data.len().next_multiple_of(self.alignment);
        }
        if !data.is_empty() {
            out.bytes.resize(out.bytes.len().next_multiple_of(self.alignment), 0);
            out.bytes.extend(data);
        }
        (out.bytes, out.fields)
    }
}
