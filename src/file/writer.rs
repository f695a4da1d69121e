//! Writing GGUF files, version 3: the header at once, then one tensor after the other.

use super::gguf::{ALIGNMENT_DEFAULT, tensor_bytes};
use super::metadata::Value;
use crate::quant::Format;
use crate::{Error, Result};
use std::io::{self, Write};

/// A tensor that will be written.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    /// Unique in the file.
    pub name: String,
    /// What its bytes will mean.
    pub format: Format,
    /// Fastest first: columns, then rows when it is a matrix.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// How many bytes it has.
    pub fn bytes(&self) -> Result<u64> {
        let mut shape = [1; 4];
        let Some(used) = shape.get_mut(..self.shape.len()) else {
            return Err(Error::Internal(format!("tensor `{}` has more than 4 dimensions", self.name).into()));
        };
        used.iter_mut().zip(&self.shape).for_each(|(to, from)| *to = *from as u64);
        tensor_bytes(self.format, shape).map_err(|why| Error::Format(format!("tensor `{}`: {why}", self.name)))
    }
}

/// A file that is being written: each tensor's bytes are to come in the order of the header.
pub struct GgufWriter<W> {
    out: W,
    /// Bytes of each tensor, in order.
    sizes: Vec<u64>,
    /// The tensor that is being written, and how many of its bytes are there.
    current: (usize, u64),
}

impl<W: Write> GgufWriter<W> {
    /// Writes the header.
    pub fn start(mut out: W, metadata: &[(String, Value)], tensors: &[TensorSpec]) -> Result<GgufWriter<W>> {
        let mut header = Vec::new();
        header.extend(b"GGUF");
        header.extend(3u32.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            put_string(&mut header, key.as_bytes());
            header.extend(value.kind().to_le_bytes());
            put_value(&mut header, value);
        }
        let (mut sizes, mut offset) = (Vec::new(), 0u64);
        for tensor in tensors {
            put_string(&mut header, tensor.name.as_bytes());
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().for_each(|&dimension| header.extend((dimension as u64).to_le_bytes()));
            header.extend((tensor.format as u32).to_le_bytes());
            header.extend(offset.to_le_bytes());
            let bytes = tensor.bytes()?;
            let end = offset.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(ALIGNMENT_DEFAULT));
            offset = end.ok_or_else(|| Error::Format(format!("tensor `{}` is too large", tensor.name)))?;
            sizes.push(bytes);
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT_DEFAULT as usize), 0);
        out.write_all(&header).map_err(failed)?;
        Ok(GgufWriter { out, sizes, current: (0, 0) })
    }

    /// The next bytes of the tensor that is being written; its last ones are followed by what aligns the next tensor.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let (index, done) = self.current;
        let size = self.sizes.get(index).copied().unwrap_or(0);
        let done = done + bytes.len() as u64;
        if done > size {
            return Err(Error::Internal(format!("tensor {index} of a new file has more than its {size} bytes").into()));
        }
        self.out.write_all(bytes).map_err(failed)?;
        self.current = (index, done);
        if done == size {
            let padding = size.next_multiple_of(ALIGNMENT_DEFAULT) - size;
            self.out.write_all(&[0; ALIGNMENT_DEFAULT as usize][..padding as usize]).map_err(failed)?;
            self.current = (index + 1, 0);
        }
        Ok(())
    }

    /// The file, when all tensors have been written.
    pub fn finish(mut self) -> Result<W> {
        if self.current != (self.sizes.len(), 0) {
            let text = format!("tensor {} of a new file is not complete", self.current.0);
            return Err(Error::Internal(text.into()));
        }
        self.out.flush().map_err(failed)?;
        Ok(self.out)
    }
}

fn failed(error: io::Error) -> Error {
    Error::io("writing the new file", &error)
}

fn put_string(out: &mut Vec<u8>, string: &[u8]) {
    out.extend((string.len() as u64).to_le_bytes());
    out.extend(string);
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(v) => put_string(out, v.as_bytes()),
        Value::Array(array) => {
            out.extend(array.element.to_le_bytes());
            out.extend((array.count as u64).to_le_bytes());
            out.extend(&array.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::gguf;
    use super::super::metadata::Array;
    use super::*;

    fn specs() -> Vec<TensorSpec> {
        let spec = |name: &str, format, shape: &[usize]| TensorSpec { name: name.into(), format, shape: shape.into() };
        vec![spec("a", Format::F32, &[3]), spec("b", Format::Q8_0, &[64, 2]), spec("c", Format::F16, &[1])]
    }

    #[test]
    fn what_is_written_is_read_again() {
        let strings = [b"x".as_slice(), b"\xFF"];
        let values = [
            Value::U8(1),
            Value::I8(-1),
            Value::U16(2),
            Value::I16(-2),
            Value::U32(3),
            Value::I32(-3),
            Value::U64(4),
            Value::I64(-4),
            Value::F32(0.5),
            Value::F64(0.25),
            Value::Bool(true),
            Value::String("é".into()),
            Value::Array(Array::of_i32(&[5, -6])),
            Value::Array(Array::of_f32(&[])),
        ];
        let mut metadata: Vec<_> = values.into_iter().enumerate().map(|(i, value)| (format!("k{i}"), value)).collect();
        metadata.push(("tokenizer.ggml.tokens".into(), Value::Array(Array::of_strings(strings))));
        let mut writer = GgufWriter::start(Vec::new(), &metadata, &specs()).unwrap();
        for (fill, bytes) in [(1, 12), (2, 136), (3, 2)] {
            writer.write(&vec![fill; bytes - 1]).unwrap();
            writer.write(&[fill]).unwrap();
        }
        let bytes = writer.finish().unwrap();
        assert_eq!(bytes.len() % 32, 0);
        let parsed = gguf::parse(&bytes).unwrap();
        assert_eq!(parsed.metadata.entries(), metadata);
        assert_eq!(parsed.tensors.len(), 3);
        for ((found, spec), fill) in parsed.tensors.iter().zip(specs()).zip(1..) {
            assert_eq!((&found.name, found.format), (&spec.name, spec.format));
            assert_eq!(found.shape[..spec.shape.len()], spec.shape);
            assert!(bytes[found.at..][..found.bytes].iter().all(|byte| *byte == fill), "{}", spec.name);
        }
    }

    #[test]
    fn too_few_and_too_many_bytes_are_errors() {
        let mut writer = GgufWriter::start(Vec::new(), &[], &specs()).unwrap();
        assert!(writer.write(&[0; 13]).is_err());
        writer.write(&[0; 12]).unwrap();
        assert!(writer.finish().is_err());
    }

    #[test]
    fn a_shape_that_is_not_whole_blocks_is_refused() {
        let spec = TensorSpec { name: "odd".into(), format: Format::Q8_0, shape: vec![33] };
        let error = GgufWriter::start(Vec::new(), &[], &[spec]).err().unwrap();
        assert!(error.to_string().contains("`odd`"), "{error}");
    }
}
