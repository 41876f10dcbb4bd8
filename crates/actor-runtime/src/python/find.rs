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
                print(*site.getsitepackages(), sep='\\n')\n\
                print('--')\n\
                own = [sys.prefix, sys.exec_prefix, sys.base_prefix, os.path.dirname(os.path.realpath(sys.executable))]\n\
                print(*own, *[os.path.abspath(p) for p in sys.path if p], sep='\\n')";
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
    let version = lines.next()?;
    let paths = lines.by_ref().take_while(|line| line != "--").collect();
    // An interpreter of the system is in a folder that has all: the sandbox names the folders of a system itself.
    let roots = lines.map(PathBuf::from).filter(|root| root.parent().is_some()).collect();
    Some(Python { path, version, paths, roots })
}
