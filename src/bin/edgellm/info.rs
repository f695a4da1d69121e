//! `edgellm info`: what a model is and how this machine would run it.

use crate::args::InfoArgs;
use crate::failure::Failure;
use edgellm::Model;
use edgellm::file::{Metadata, Value};
use serde_json::{Map, json};
use std::io::Write;

/// Runs the command.
pub fn info(args: &InfoArgs) -> Result<(), Failure> {
    let model = args.load.load()?;
    let object = describe(args, &model);
    let mut stdout = std::io::stdout().lock();
    if args.json {
        writeln!(stdout, "{}", serde_json::Value::Object(object))?;
    } else {
        write!(stdout, "{}", lines(&object))?;
    }
    stdout.flush()?;
    Ok(())
}

/// Everything there is to say, by name, in the order people read it.
fn describe(args: &InfoArgs, model: &Model) -> Map<String, serde_json::Value> {
    let info = model.info();
    let metadata = model.metadata();
    let own = |key: &str| scalar(metadata, &format!("{}.{key}", info.architecture));
    let tokenizer = model.tokenizer().map(|tokenizer| {
        json!({
            "model": scalar(metadata, "tokenizer.ggml.model"),
            "pre": scalar(metadata, "tokenizer.ggml.pre"),
            "tokens": tokenizer.vocab_len(),
            "bos": tokenizer.bos(),
            "eos": tokenizer.eos(),
            "chat_template": tokenizer.has_chat_template(),
        })
    });
    let tensors = info.tensors.iter().map(|of_format| {
        (of_format.format.name().to_owned(), json!({ "tensors": of_format.count, "bytes": of_format.bytes }))
    });
    let object = json!({
        "model": args.load.model.to_string_lossy(),
        "architecture": info.architecture,
        "name": info.name,
        "quant": info.quant,
        "parameters": info.parameters,
        "weights_bytes": info.weights_bytes,
        "weights_bytes_per_token": info.weights_bytes_per_token,
        "context_len_max": info.context_len_max,
        "layers": info.layers,
        "hidden": info.hidden,
        "intermediate": info.intermediate,
        "query_heads": info.query_heads,
        "kv_heads": info.kv_heads,
        "head_dim": info.head_dim,
        "vocab_len": info.vocab_len,
        "rope": {
            "freq_base": own("rope.freq_base"),
            "dimensions": own("rope.dimension_count"),
            "scaling": own("rope.scaling.type"),
            "factor": own("rope.scaling.factor"),
        },
        "tokenizer": tokenizer,
        "tensors": Map::from_iter(tensors),
        "isa": info.isa,
        "threads": info.threads,
        "load_ms": info.load_ns as f64 / 1e6,
    });
    match object {
        serde_json::Value::Object(object) => object,
        _ => Map::new(),
    }
}

/// A number, bool or string of the metadata; null when it is absent or an array (the file leaves it to the default).
fn scalar(metadata: &Metadata, key: &str) -> serde_json::Value {
    match metadata.get(key) {
        Some(Value::U8(value)) => json!(value),
        Some(Value::I8(value)) => json!(value),
        Some(Value::U16(value)) => json!(value),
        Some(Value::I16(value)) => json!(value),
        Some(Value::U32(value)) => json!(value),
        Some(Value::I32(value)) => json!(value),
        Some(Value::U64(value)) => json!(value),
        Some(Value::I64(value)) => json!(value),
        Some(Value::F32(value)) => json!(value),
        Some(Value::F64(value)) => json!(value),
        Some(Value::Bool(value)) => json!(value),
        Some(Value::String(value)) => json!(value),
        Some(Value::Array(_)) | None => serde_json::Value::Null,
    }
}

/// The same for people: a line a name, nested names with a dot, nothing for null.
fn lines(object: &Map<String, serde_json::Value>) -> String {
    object.iter().map(|(name, value)| line(name, value)).collect()
}

/// As deep as `describe` nests.
fn line(name: &str, value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(value) => format!("{name:26} {}\n", printable(value)),
        serde_json::Value::Object(inner) => {
            inner.iter().map(|(key, value)| line(&format!("{name}.{key}"), value)).collect()
        }
        value => format!("{name:26} {value}\n"),
    }
}

/// A file's strings are not ours: no terminal control sequences out of them.
fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_nested_values_and_leave_out_null() {
        let serde_json::Value::Object(object) = json!({"a": null, "b": {"c": 1, "d": null}, "e": "x\u{1b}[2J"}) else {
            unreachable!()
        };
        assert_eq!(lines(&object), format!("{:26} 1\n{:26} x\u{fffd}[2J\n", "b.c", "e"));
    }
}
