//! The generated code in `src/generated` is what the `.proto` files say. Run with `COVEY_WRITE_GENERATED=1` to write it;
//! no `protoc` is needed.

use std::{fs, path::Path};

use prost::Message as _;

/// ProtoJSON takes null for every field as its default; pbjson only for some.
fn with_nulls(code: &str) -> String {
    let mut out = String::new();
    for line in code.lines() {
        let taken = line.trim_start();
        let line = if taken.ends_with("__ = Some(map_.next_value()?);") {
            line.replace("map_.next_value()?", "map_.next_value::<Option<_>>()?.unwrap_or_default()")
        } else if let Some((before, kind)) =
            taken.strip_suffix(">()? as i32);").and_then(|t| t.split_once("__ = Some(map_.next_value::<"))
        {
            format!("{before}__ = Some(map_.next_value::<Option<{kind}>>()?.unwrap_or_default() as i32);")
        } else {
            line.to_owned()
        };
        out.push_str(&line);
        out.push('\n');
    }
    out.replace(
        "map_.next_value::<std::collections::HashMap<_, _>>()?",
        "map_.next_value::<Option<std::collections::HashMap<_, _>>>()?.unwrap_or_default()",
    )
}

#[test]
fn generated_code_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().expect("a temporary folder");
    let compile = |file: &str| protox::compile([file], [root.join("proto")]).expect("the .proto files compile");
    let generate = |file: &str| {
        tonic_prost_build::configure()
            .extern_path(".google.protobuf.Timestamp", "crate::Timestamp")
            .extern_path(".google.protobuf.Value", "crate::Json")
            .extern_path(".google.protobuf.Struct", "crate::Fields")
            .out_dir(out.path())
            .compile_fds(compile(file))
            .expect("code generation succeeds");
    };
    generate("a2a_v1.proto");
    generate("a2a_v03.proto");
    for (file, package) in [("a2a_v1.proto", ".lf.a2a.v1"), ("a2a_v03.proto", ".a2a.v1")] {
        let mut json = pbjson_build::Builder::new();
        json.register_descriptors(&compile(file).encode_to_vec()).expect("descriptors");
        json.out_dir(out.path()).ignore_unknown_fields();
        json.build(&[package]).expect("code generation succeeds");
    }
    for name in ["lf.a2a.v1.rs", "lf.a2a.v1.serde.rs", "a2a.v1.rs", "a2a.v1.serde.rs"] {
        let fresh = fs::read_to_string(out.path().join(name)).expect("one file for each package");
        let fresh = if name.contains("serde") { with_nulls(&fresh) } else { fresh };
        let kept = root.join("src/generated").join(name);
        if std::env::var_os("COVEY_WRITE_GENERATED").is_some() {
            fs::write(&kept, &fresh).expect("src/generated is writable");
        }
        let kept = fs::read_to_string(&kept).unwrap_or_default();
        assert!(fresh == kept, "run `COVEY_WRITE_GENERATED=1 cargo test -p covey-a2a` after changing a .proto file");
    }
}
