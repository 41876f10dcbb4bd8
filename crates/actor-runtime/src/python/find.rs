//! Which interpreter runs agents.

use std::{path::PathBuf, process::Stdio};

use tokio::process::Command;

use super::Python;

/// Prints the versions of the package, of its own code and of its compiled part.
const VERSIONS: &str = "import covey, covey._bridge as bridge; print(covey.__version__, bridge.__version__)";
/// Prints what a worker must know of an interpreter; `--` stands between where it finds packages and what it reads.
const ABOUT: &str = "import os, site, sys, covey
print(f'{sys.version_info[0]}.{sys.version_info[1]}')
print(os.path.dirname(os.path.dirname(covey.__file__)))
print(*site.getsitepackages(), sep='\\n')
print('--')
own = [sys.prefix, sys.exec_prefix, sys.base_prefix, os.path.dirname(os.path.realpath(sys.executable))]
print(*own, *[os.path.abspath(p) for p in sys.path if p], sep='\\n')";

/// Looks for an interpreter: `wanted`, `$COVEY_PYTHON`, `$VIRTUAL_ENV`, the one beside this program, `python3`. Says why it cannot be
/// used where it lacks the package, or has another version of it than this worker.
pub async fn find(wanted: Option<PathBuf>) -> Result<Python, String> {
    let env = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let path = wanted
        .or_else(|| env("COVEY_PYTHON"))
        .or_else(|| env("VIRTUAL_ENV").map(|v| v.join("bin/python")))
        .or_else(beside)
        .unwrap_or_else(|| PathBuf::from("python3"));
    let lacks = || format!("`{}` lacks the package `covey`", path.display());
    let code = format!("{VERSIONS}\n{ABOUT}");
    let out = Command::new(&path).args(["-c", &code]).stdin(Stdio::null()).output().await;
    let out = out.map_err(|e| format!("failed to run `{}`: {e}", path.display()))?;
    let text = String::from_utf8_lossy(&out.stdout);
    let mut lines = text.lines().map(str::to_owned);
    let versions = lines.next().filter(|_| out.status.success()).ok_or_else(lacks)?;
    if let Some(misfit) = misfit(&versions) {
        return Err(misfit);
    }
    let version = lines.next().ok_or_else(lacks)?;
    let paths = lines.by_ref().take_while(|line| line != "--").collect();
    // An interpreter of the system is in a folder that has all: the sandbox names the folders of a system itself.
    let roots = lines.map(PathBuf::from).filter(|root| root.parent().is_some()).collect();
    Ok(Python { path, version, paths, roots })
}

/// The interpreter of the environment that this program was installed into.
fn beside() -> Option<PathBuf> {
    let folder = std::env::current_exe().ok()?.parent()?.to_owned();
    // What is in the system's folders beside it is no environment, and `python3` finds it.
    let is_environment = folder.parent()?.join("pyvenv.cfg").exists();
    Some(folder.join("python3")).filter(|python| is_environment && python.exists())
}

/// Why the package that processes of this command have is not this worker's; `None` where it is, or none is found. The command
/// is that of a process that did not come up: the package may have been changed since this worker looked at it.
pub(super) async fn misfit_of(mut python: Command) -> Option<String> {
    let out = python.args(["-c", VERSIONS]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let out = out.output().await.ok().filter(|out| out.status.success())?;
    misfit(String::from_utf8_lossy(&out.stdout).lines().next()?)
}

/// Why these versions are not this worker's.
fn misfit(versions: &str) -> Option<String> {
    const OWN: &str = env!("CARGO_PKG_VERSION");
    let other = versions.split_whitespace().find(|version| *version != OWN)?;
    Some(format!("the package `covey` is {other}, the worker is {OWN}"))
}
