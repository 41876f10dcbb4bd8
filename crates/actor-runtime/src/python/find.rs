//! Which interpreter runs agents.

use std::{path::PathBuf, process::Stdio};

use tokio::process::Command;

use super::Python;

/// Looks for an interpreter: `wanted`, `$COVEY_PYTHON`, `$VIRTUAL_ENV`, `python3`. `None` when it lacks the package.
pub async fn find(wanted: Option<PathBuf>) -> Option<Python> {
    let env = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let path = wanted
        .or_else(|| env("COVEY_PYTHON"))
        .or_else(|| env("VIRTUAL_ENV").map(|v| v.join("bin/python")))
        .unwrap_or_else(|| PathBuf::from("python3"));
    let code = "import os, site, sys, covey._bridge\n\
                print(f'{sys.version_info[0]}.{sys.version_info[1]}')\n\
                print(os.path.dirname(os.path.dirname(covey.__file__)))\n\
                print(*site.getsitepackages(), sep='\\n')";
    let out = Command::new(&path).args(["-c", code]).stdin(Stdio::null()).output().await.ok()?;
    if !out.status.success() {
        tracing::warn!(
            python = %path.display(),
            "this Python lacks the covey package; Python agents are not served here"
        );
        return None;
    }
    let out = String::from_utf8_lossy(&out.stdout);
    let mut lines = out.lines().map(str::to_owned);
    Some(Python { path, version: lines.next()?, paths: lines.collect() })
}
