//! The generated code in `src/generated` is what the `.proto` files say. Run with `COVEY_WRITE_GENERATED=1` to write
//! it; no `protoc` is needed.

use std::{fs, path::Path};

#[test]
fn generated_code_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = ["calls", "link", "client", "host"].map(|name| format!("covey/v1/{name}.proto"));
    let descriptors = protox::compile(files, [root]).expect("the .proto files compile");
    let out = tempfile::tempdir().expect("a temporary folder");
    tonic_prost_build::configure()
        .bytes(".covey.v1")
        .out_dir(out.path())
        .compile_fds(descriptors)
        .expect("code generation succeeds");
    let fresh = fs::read_to_string(out.path().join("covey.v1.rs")).expect("one file for the package");
    let kept = root.join("src/generated/covey.v1.rs");
    if std::env::var_os("COVEY_WRITE_GENERATED").is_some() {
        fs::write(&kept, &fresh).expect("src/generated is writable");
    }
    let kept = fs::read_to_string(&kept).unwrap_or_default();
    assert!(fresh == kept, "run `COVEY_WRITE_GENERATED=1 cargo test -p covey-proto` after changing a .proto file");
}
