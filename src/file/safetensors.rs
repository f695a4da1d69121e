//! Files of safetensors, mapped: the header's parser is the format's own crate, which checks that the header is bounded
//! and that the tensors fill the rest of the file without overlaps and gaps.

use super::mapping::FileBytes;
use crate::tensor::{Ledger, Residence};
use crate::{Error, Result};
pub use ::safetensors::Dtype;
use ::safetensors::SafeTensors;
use ::safetensors::tensor::Metadata;
use std::path::Path;

/// An opened, checked file.
pub struct SafetensorsFile {
    bytes: FileBytes,
    /// Where the data begins.
    data_at: usize,
    metadata: Metadata,
}

/// One tensor of a file.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    /// What its bytes mean.
    pub dtype: Dtype,
    /// Slowest first: rows, then columns.
    pub shape: &'a [usize],
    /// Its bytes, at any alignment.
    pub bytes: &'a [u8],
}

impl SafetensorsFile {
    /// Maps the file and checks its header.
    pub fn open(path: &Path) -> Result<SafetensorsFile> {
        let in_file = |text: String| Error::Format(format!("{}: {text}", path.display()));
        let bytes = FileBytes::open(path, true, &Ledger::new(None, Residence::Lazy)).map_err(|error| match error {
            Error::Format(text) => in_file(text),
            error => error,
        })?;
        if bytes.starts_with(b"version https://git-lfs") {
            return Err(in_file("this is a Git LFS pointer, not the weights themselves: run `git lfs pull`".into()));
        }
        let (header_bytes, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| {
            // It may quote names from the file, which may be anything.
            let said: String = error.to_string().escape_debug().take(300).collect();
            in_file(format!("not a sound safetensors file: {said}"))
        })?;
        Ok(SafetensorsFile { bytes, data_at: 8 + header_bytes, metadata })
    }

    /// The names of all tensors, in the order of their data.
    pub fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<Stored<'_>> {
        let info = self.metadata.info(name)?;
        let (start, end) = info.data_offsets;
        // The crate has checked that all offsets lie inside the file.
        let bytes = self.bytes.get(self.data_at..)?.get(start..end)?;
        Some(Stored { dtype: info.dtype, shape: &info.shape, bytes })
    }

    /// Tells the system that these bytes of a tensor are not needed again soon (they stay valid).
    pub fn release(&self, bytes: &[u8]) {
        self.bytes.release(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// What opening a file of these bytes says.
    fn open(bytes: &[u8]) -> Result<SafetensorsFile> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("edgellm-safetensors-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, bytes).unwrap();
        let result = SafetensorsFile::open(&path);
        std::fs::remove_file(&path).unwrap();
        result
    }

    fn file(header: &str, data: usize) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![7; data]].concat()
    }

    fn entry(name: &str, dtype: &str, shape: &str, start: usize, end: usize) -> String {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    }

    #[test]
    fn a_sound_file_is_read() {
        let header = format!("{{{},{}}}", entry("b", "BF16", "[2]", 6, 10), entry("a", "U8", "[2,3]", 0, 6));
        let file = open(&file(&header, 10)).unwrap();
        assert_eq!(file.names(), ["a", "b"]);
        let a = file.tensor("a").unwrap();
        assert_eq!((a.dtype, a.shape, a.bytes), (Dtype::U8, [2, 3].as_slice(), [7; 6].as_slice()));
        assert!(file.tensor("c").is_none());
        file.release(a.bytes);
    }

    #[test]
    fn damaged_and_hostile_headers_are_refused() {
        let huge = usize::MAX.to_string();
        let cases = [
            vec![1],
            vec![0xFF; 8],
            file("", 0),
            file("{", 0),
            file("[]", 0),
            file("{\"a\":1}", 0),
            file(&"[".repeat(100_000), 0),
            file(&format!("{{{}}}", entry("a", "U8", "[4]", 0, 4)), 3),
            file(&format!("{{{}}}", entry("a", "U8", "[4]", 0, 4)), 5),
            file(&format!("{{{}}}", entry("a", "U8", "[4]", 4, 0)), 4),
            file(&format!("{{{}}}", entry("a", "U8", "[3]", 0, 4)), 4),
            file(&format!("{{{}}}", entry("a", "F99", "[4]", 0, 4)), 4),
            file(&format!("{{{}}}", entry("a", "U8", &format!("[{huge},{huge}]"), 0, 4)), 4),
            file(&format!("{{{},{}}}", entry("a", "U8", "[4]", 0, 4), entry("b", "U8", "[4]", 0, 4)), 4),
            file(&format!("{{{},{}}}", entry("a", "U8", "[4]", 0, 4), entry("a", "U8", "[4]", 4, 8)), 8),
            file(&format!("{{{}}}", entry("a", "U8", "[4]", 0, 18_446_744_073_709_551_615usize)), 4),
            b"version https://git-lfs.github.com/spec/v1\n".to_vec(),
        ];
        for (i, bytes) in cases.iter().enumerate() {
            let error = open(bytes).err().unwrap_or_else(|| panic!("case {i} is accepted"));
            assert!(matches!(error, Error::Format(_)) && error.to_string().len() < 700, "{i}: {error}");
        }
    }

    #[test]
    fn any_cut_of_a_file_is_refused() {
        let whole = file(&format!("{{{}}}", entry("a", "F32", "[2]", 0, 8)), 8);
        assert!(open(&whole).is_ok());
        for len in 0..whole.len() {
            assert!(open(&whole[..len]).is_err(), "{len}");
        }
    }
}
