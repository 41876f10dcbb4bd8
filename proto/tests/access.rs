//! The table of access names every method of the `.proto` files, and nothing else.

use std::{collections::BTreeSet, path::Path};

use covey_proto::access::{Kind, METHODS, Reach, actor_may};

#[test]
fn every_method_is_in_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files: Vec<_> = std::fs::read_dir(root.join("covey/v1"))
        .expect("the .proto files are there")
        .map(|entry| format!("covey/v1/{}", entry.expect("an entry").file_name().display()))
        .collect();
    let descriptors = protox::compile(&files, [root]).expect("the .proto files compile");
    let declared: BTreeSet<String> = descriptors
        .file
        .iter()
        .flat_map(|file| file.service.iter().map(move |service| (file.package(), service)))
        .flat_map(|(package, service)| {
            service.method.iter().map(move |method| format!("/{package}.{}/{}", service.name(), method.name()))
        })
        .collect();
    let known: BTreeSet<String> = METHODS.iter().map(|row| row.path.to_owned()).collect();
    assert_eq!(known, declared, "say in proto/src/access.rs who may call a method that is new");
    assert_eq!(known.len(), METHODS.len(), "a method has one row");
    assert!(METHODS.iter().all(|row| row.signs.len() == Kind::ALL.len()));
}

#[test]
fn join_tokens_enrol_and_nothing_else() {
    let opened: Vec<_> = METHODS.iter().filter(|row| row.reach(Kind::Join) != Reach::None).collect();
    assert!(matches!(opened[..], [row] if row.path == "/covey.v1.Link/Enroll"));
    for method in ["AddKey", "ListTasks", "SaveState", "DrainNode", "GetBlob", "Nonsense", ""] {
        assert_eq!(actor_may(method), Reach::None, "{method}");
    }
}
