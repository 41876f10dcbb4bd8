//! Arrows between crates point down only, and each outside technology has one door. `docs/architecture.md` draws this.

use std::{collections::BTreeMap, fs, path::PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Each crate of ours and which of ours it may use.
const MAY_USE: &[(&str, &str, &[&str])] = &[
    ("domain", "crates/domain", &[]),
    ("cluster-core", "crates/cluster-core", &["domain"]),
    ("call-core", "crates/call-core", &["domain"]),
    ("proto", "proto", &["domain"]),
    ("pages", "crates/pages", &[]),
    ("store", "crates/store", &["domain", "pages"]),
    ("kernels", "crates/kernels", &[]),
    ("inference", "crates/inference", &["domain", "kernels"]),
    ("node", "crates/node", &["domain"]),
    ("trace", "crates/trace", &["domain"]),
    ("sandbox", "crates/sandbox", &["domain"]),
    ("mesh", "crates/mesh", &["domain", "node"]),
    ("a2a", "crates/a2a", &["domain"]),
    ("a2a-client", "crates/a2a-client", &["a2a", "domain"]),
    ("gateway", "crates/gateway", &["a2a", "domain", "proto"]),
    (
        "actor-runtime",
        "crates/actor-runtime",
        &["a2a", "a2a-client", "domain", "inference", "proto", "sandbox", "trace"],
    ),
    ("client", "crates/client", &["domain", "call-core", "proto", "mesh", "node", "trace"]),
    ("artifacts", "crates/artifacts", &["domain"]),
    (
        "head-node",
        "head-node",
        &["a2a-client", "artifacts", "domain", "cluster-core", "proto", "store", "gateway", "node"],
    ),
    (
        "worker-node",
        "worker-node",
        &["domain", "cluster-core", "proto", "actor-runtime", "inference", "client", "mesh", "node", "trace"],
    ),
    ("python", "python-bindings", &["client", "domain", "proto", "trace"]),
    (
        "cli",
        "crates/cli",
        &[
            "head-node",
            "worker-node",
            "client",
            "mesh",
            "node",
            "domain",
            "inference",
            "actor-runtime",
            "sandbox",
            "proto",
            "trace",
        ],
    ),
    ("testbed", "crates/testbed", &["domain", "cluster-core"]),
    ("benches", "benches", &["client", "cluster-core", "domain", "inference", "kernels", "proto"]),
];

/// An outside crate and the crates of ours that may name it.
const DOORS: &[(&str, &[&str])] = &[
    ("candle-core", &["inference"]),
    ("candle-nn", &["inference"]),
    ("candle-transformers", &["inference"]),
    ("candle-flash-attn", &["inference"]),
    ("llguidance", &["inference"]),
    ("kameo", &["actor-runtime"]),
    ("async-openai", &["actor-runtime"]),
    ("rmcp", &["actor-runtime"]),
    ("sqlx", &["pages", "store"]),
    ("libsqlite3-sys", &["pages"]),
    ("pyo3", &["python"]),
    ("bincode", &["proto"]),
    ("libp2p-identity", &["node"]),
    ("libp2p", &["mesh"]),
    ("libp2p-stream", &["mesh"]),
    ("axum", &["gateway", "head-node"]),
    ("opentelemetry", &["trace"]),
    ("rustls", &["node"]),
    ("object_store", &["artifacts"]),
    ("landlock", &["sandbox"]),
    ("seccompiler", &["sandbox"]),
    ("reqwest", &["a2a-client", "gateway"]),
    ("aws-lc-rs", &["a2a-client"]),
];

/// Crates that must stay pure: no clock, no sockets, no threads.
const PURE: &[&str] = &["domain", "cluster-core"];

fn dependencies(folder: &str) -> BTreeMap<String, bool> {
    let text = fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("every crate has a manifest");
    let mut found = BTreeMap::new();
    let mut section = String::new();
    for line in text.lines() {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_owned();
        } else if let Some((name, _)) = line.split_once('=')
            && section == "dependencies"
        {
            found.insert(name.trim().to_owned(), true);
        }
    }
    found
}

#[test]
fn arrows_point_down_only() {
    for (name, folder, may) in MAY_USE {
        for used in dependencies(folder).keys().filter_map(|d| d.strip_prefix("covey-")) {
            assert!(may.contains(&used), "`{name}` must not use `{used}`");
        }
    }
}

#[test]
fn each_technology_has_one_door() {
    for (name, folder, _) in MAY_USE {
        let used = dependencies(folder);
        for (technology, doors) in DOORS {
            assert!(!used.contains_key(*technology) || doors.contains(name), "`{name}` must not use `{technology}`");
        }
        if PURE.contains(name) {
            for outside in ["tokio", "rand", "tonic", "parking_lot", "libc"] {
                assert!(!used.contains_key(outside), "`{name}` is pure and must not use `{outside}`");
            }
        }
    }
}

#[test]
fn every_member_of_the_workspace_is_in_the_table() {
    let text = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace has a manifest");
    let members =
        text.split_once("members = [").and_then(|(_, rest)| rest.split_once(']')).expect("members are listed").0;
    for member in members.split(',').map(|m| m.trim().trim_matches('"')).filter(|m| !m.is_empty()) {
        assert!(MAY_USE.iter().any(|(_, folder, _)| *folder == member), "`{member}` is not in the table of arrows");
    }
}
