//! `include/edgellm.h` is what `src/capi` says.

use std::path::Path;

/// In the order in which the header tells them.
const SOURCES: [&str; 14] = [
    "status", "version", "log", "types", "device", "handle", "model", "tokens", "chat", "grammar", "session", "plan",
    "generate", "saved",
];

fn generate() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(root.join("src/capi").join(source).with_extension("rs"));
    }
    let mut header = Vec::new();
    builder.generate().expect("the header").write(&mut header);
    String::from_utf8(header).expect("the header is UTF-8")
}

#[test]
fn the_committed_header_is_the_generated_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/edgellm.h");
    let wanted = generate();
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(&path, &wanted).expect("include/edgellm.h cannot be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    if found != wanted {
        let line = found.lines().zip(wanted.lines()).take_while(|(found, wanted)| found == wanted).count();
        panic!(
            "include/edgellm.h is not what src/capi says, from line {} on:\n  has  {:?}\n  want {:?}\n\
             UPDATE_HEADER=1 cargo test --test header",
            line + 1,
            found.lines().nth(line).unwrap_or_default(),
            wanted.lines().nth(line).unwrap_or_default(),
        );
    }
}

#[test]
fn the_header_has_the_version_of_the_package() {
    let header = generate();
    for (name, wanted) in
        [("EDGELLM_ABI_MAJOR", env!("CARGO_PKG_VERSION_MAJOR")), ("EDGELLM_ABI_MINOR", env!("CARGO_PKG_VERSION_MINOR"))]
    {
        let start = format!("#define {name} ");
        let found: Vec<_> = header.lines().filter_map(|line| line.strip_prefix(&start)).collect();
        assert_eq!(found, [wanted], "{name}");
    }
}
