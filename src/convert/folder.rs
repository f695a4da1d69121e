//! A Hugging Face folder: its JSON files, and its weights, whole or in shards.

use crate::file::safetensors::{SafetensorsFile, Stored};
use crate::{Error, Result};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// No file of settings has more bytes.
const SETTINGS_BYTES_MAX: u64 = 16 << 20;
/// Nor has a tokenizer, or the index of a model's shards.
const TOKENIZER_BYTES_MAX: u64 = 256 << 20;
/// No model has more files of weights.
const SHARDS_MAX: usize = 4096;
const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// An opened folder.
pub(super) struct Folder {
    path: PathBuf,
    shards: Vec<SafetensorsFile>,
    /// Every tensor and the shard that it is in.
    tensors: BTreeMap<String, usize>,
}

impl Folder {
    /// Opens the weights and checks their headers.
    pub(super) fn open(path: &Path) -> Result<Folder> {
        let about = std::fs::metadata(path).map_err(|error| Error::io(path.display(), &error))?;
        if !about.is_dir() {
            return Err(Error::argument(format!("{}: not a folder", path.display())));
        }
        let mut folder = Folder { path: path.to_owned(), shards: Vec::new(), tensors: BTreeMap::new() };
        if path.join(WHOLE).exists() {
            folder.add(WHOLE)?;
            return Ok(folder);
        }
        let Some(index) = folder.json(INDEX, TOKENIZER_BYTES_MAX)? else { return Err(folder.no_weights()) };
        folder.add_shards(&index)?;
        Ok(folder)
    }

    /// Adds every shard of an index, and checks that both say the same.
    fn add_shards(&mut self, index: &Json) -> Result<()> {
        let wrong = |text: String| Error::Format(format!("{INDEX}: {text}"));
        let Some(map) = index.get("weight_map").and_then(Json::as_object) else {
            return Err(wrong("no `weight_map`".into()));
        };
        let mut files = BTreeMap::new();
        for (tensor, file) in map {
            let Some(file) = file.as_str().filter(|file| is_plain(file)) else {
                return Err(wrong(format!("tensor {tensor:?} is in {file}, which is not a file of this folder")));
            };
            let next = files.len();
            files.entry(file).or_insert(next);
        }
        if files.len() > SHARDS_MAX {
            return Err(wrong(format!("{} files of weights, at most {SHARDS_MAX}", files.len())));
        }
        let mut names: Vec<&str> = files.keys().copied().collect();
        names.sort_unstable();
        for name in &names {
            self.add(name)?;
        }
        for (tensor, file) in map {
            let found = self.tensors.get(tensor).and_then(|&shard| names.get(shard));
            if found.copied() != file.as_str() {
                return Err(wrong(format!("tensor {tensor:?} is not in {file}")));
            }
        }
        match self.tensors.keys().find(|name| !map.contains_key(*name)) {
            Some(name) => Err(wrong(format!("tensor {name:?} of the weights is missing"))),
            None => Ok(()),
        }
    }

    /// Opens one file of weights.
    fn add(&mut self, name: &str) -> Result<()> {
        let file = SafetensorsFile::open(&self.path.join(name))?;
        for tensor in file.names() {
            if self.tensors.insert(tensor.clone(), self.shards.len()).is_some() {
                return Err(Error::Format(format!("{name}: tensor {tensor:?} is in another file as well")));
            }
        }
        self.shards.push(file);
        Ok(())
    }

    /// Says what the folder has in place of weights that can be read.
    fn no_weights(&self) -> Error {
        let has = |name: &str| self.path.join(name).exists();
        let why = if has("model_state_int2.pt") || has("model_state_fp16.pt") {
            "it holds a checkpoint for BitNet's GPU kernels: convert the safetensors that it was made from"
        } else if has("pytorch_model.bin") || has("pytorch_model.bin.index.json") {
            "it holds `pytorch_model.bin`: save the model with `safe_serialization=True` first"
        } else {
            "give a folder as Hugging Face publishes it"
        };
        let path = self.path.display();
        Error::Unsupported(format!("{path}: neither {WHOLE} nor {INDEX} is there; {why}"))
    }

    /// The name of the folder itself.
    pub(super) fn name(&self) -> String {
        let path = self.path.canonicalize();
        let name = path.as_deref().unwrap_or(&self.path).file_name();
        name.map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
    }

    /// A file of settings; None when it is not there.
    pub(super) fn settings(&self, name: &str) -> Result<Option<Json>> {
        self.json(name, SETTINGS_BYTES_MAX)
    }

    /// `tokenizer.json`; None when it is not there.
    pub(super) fn tokenizer(&self) -> Result<Option<Json>> {
        self.json("tokenizer.json", TOKENIZER_BYTES_MAX)
    }

    fn json(&self, name: &str, bytes_max: u64) -> Result<Option<Json>> {
        let Some(text) = self.read(name, bytes_max)? else { return Ok(None) };
        let wrong = |error: serde_json::Error| Error::Format(format!("{}: {error}", self.path.join(name).display()));
        serde_json::from_str(&text).map(Some).map_err(wrong)
    }

    /// A file of text, such as a chat template; None when it is not there.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>> {
        self.read(name, SETTINGS_BYTES_MAX)
    }

    fn read(&self, name: &str, bytes_max: u64) -> Result<Option<String>> {
        let path = self.path.join(name);
        let failed = |error: &std::io::Error| Error::io(path.display(), error);
        match std::fs::metadata(&path) {
            // A pipe would wait for its writer.
            Ok(about) if about.is_file() => {}
            Ok(_) => return Err(Error::Format(format!("{}: not a regular file", path.display()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&error)),
        }
        let file = std::fs::File::open(&path).map_err(|error| failed(&error))?;
        let mut bytes = Vec::new();
        file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
        if bytes.len() as u64 > bytes_max {
            return Err(Error::Format(format!("{}: more than {bytes_max} bytes", path.display())));
        }
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(Error::Format(format!("{}: not UTF-8", path.display()))),
        }
    }

    /// The tensor of this name.
    pub(super) fn tensor(&self, name: &str) -> Option<Stored<'_>> {
        self.shards.get(*self.tensors.get(name)?)?.tensor(name)
    }

    /// The names of all tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Tells the system that these bytes of a tensor are not needed again soon.
    pub(super) fn release(&self, bytes: &[u8]) {
        self.shards.iter().for_each(|shard| shard.release(bytes));
    }
}

/// Whether a name is that of a file in the same folder.
fn is_plain(name: &str) -> bool {
    name.len() <= 255
        && name.ends_with(".safetensors")
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// The members of a JSON object, by their types; a wrong one is an error that names the file and the key.
pub(super) struct Fields<'a> {
    pub(super) file: &'static str,
    pub(super) object: &'a Json,
}

impl<'a> Fields<'a> {
    /// The value of a key; None when it is absent or null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Json> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// The error that this key's value is not what it has to be.
    pub(super) fn wrong(&self, key: &str, expected: &str) -> Error {
        let value = self.get(key).unwrap_or(&Json::Null);
        Error::Format(format!("{}: `{key}` is {value}, not {expected}", self.file))
    }

    fn typed<T>(&self, key: &str, expected: &str, read: impl FnOnce(&'a Json) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.wrong(key, expected))
    }

    /// A count from 1 to `max`.
    pub(super) fn count(&self, key: &str, max: u64) -> Result<Option<usize>> {
        let expected = format!("a whole number from 1 to {max}");
        self.typed(key, &expected, |value| {
            value.as_u64().filter(|value| (1..=max).contains(value)).map(|value| value as usize)
        })
    }

    /// A finite number.
    pub(super) fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |value| value.as_f64().filter(|value| value.is_finite()))
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Json::as_bool)
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Json::as_str)
    }

    /// One token id, or a list of them.
    pub(super) fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let id = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = self.typed(key, "a token or a list of them", |value| match value {
            Json::Array(ids) => ids.iter().map(id).collect(),
            value => id(value).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_files_in_the_folder_are_taken() {
        for name in ["model-00001-of-00002.safetensors", "a.safetensors"] {
            assert!(is_plain(name), "{name}");
        }
        let long = format!("{}.safetensors", "a".repeat(300));
        for name in [
            "",
            "/a.safetensors",
            "../a.safetensors",
            "b/a.safetensors",
            ".safetensors",
            "a.bin",
            "a\0.safetensors",
            &long,
        ] {
            assert!(!is_plain(name), "{name:?}");
        }
    }

    #[test]
    fn fields_of_the_wrong_type_are_named() {
        let object = serde_json::json!({"n": 0, "f": "x", "ids": [1, -1], "null": null, "one": 7});
        let fields = Fields { file: "config.json", object: &object };
        for error in [fields.count("n", 9).err(), fields.float("f").err(), fields.ids("ids").err()] {
            assert!(error.unwrap().to_string().starts_with("config.json: `"));
        }
        assert!(fields.get("null").is_none() && fields.bool("absent").unwrap().is_none());
        assert_eq!(fields.ids("one").unwrap(), [7]);
    }
}
