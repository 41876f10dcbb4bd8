//! Environments of Python processes: variables, a working folder, packages. Each is prepared once on a node, under the
//! digest of what it is made of, and kept for the next.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use covey_domain::{Digest, Error, ErrorKind, agent::PythonEnv, caps};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

use crate::{
    Python,
    launch::{Launch, Launcher},
};

/// Packages that are not there after this time will not come.
const PIP_TIMEOUT: Duration = Duration::from_secs(600);
/// Lines of pip's last words put into an error.
const LAST_WORDS: usize = 12;

/// Told what is being done, for those who wait.
pub(crate) type Progress = Arc<dyn Fn(String) + Send + Sync>;

/// What a process is started with.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub python: PathBuf,
    pub folder: Option<PathBuf>,
    pub variables: Vec<(String, String)>,
}

/// The virtual environment of an interpreter.
pub(crate) fn home_of(python: &Path) -> Option<PathBuf> {
    let home = python.parent()?.parent()?;
    home.join("pyvenv.cfg").exists().then(|| home.to_owned())
}

/// The environments of one node.
pub(crate) struct Environments {
    cache: PathBuf,
    python: Python,
    launcher: Arc<Launcher>,
    /// One at a time of each.
    preparing: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Environments {
    pub fn new(cache: PathBuf, python: Python, launcher: Arc<Launcher>) -> Self {
        Self { cache, python, launcher, preparing: Mutex::default() }
    }

    /// Makes what is missing. `archive` is the working folder as a zip, when the head sent it along.
    pub async fn prepare(&self, env: &PythonEnv, archive: &[u8], progress: &Progress) -> Result<Prepared, Error> {
        let failed = |what: &str, e: &dyn std::fmt::Display| {
            Error::new(ErrorKind::FailedPrecondition, format!("failed to {what} for the agent: {e}"))
        };
        let mut variables: Vec<_> = env.vars.clone().into_iter().collect();
        let folder = match &env.dir {
            None => None,
            Some(digest) => {
                let folder = self.cache.join("folders").join(digest.as_str());
                let turn = self.turn(digest.as_str());
                let _turn = turn.lock().await;
                if !folder.exists() {
                    if archive.is_empty() {
                        return Err(failed("unpack the working folder", &format!("`{digest}` is not here")));
                    }
                    progress("unpacking the working folder".into());
                    self.unpack(archive, &folder).await.map_err(|e| failed("unpack the working folder", &e))?;
                }
                let known = variables.iter().position(|(name, _)| name == "PYTHONPATH");
                let own = known.map(|at| variables.remove(at).1).or_else(|| std::env::var("PYTHONPATH").ok());
                let rest = own.map(|rest| format!(":{rest}")).unwrap_or_default();
                variables.push(("PYTHONPATH".into(), format!("{}{rest}", folder.display())));
                Some(folder)
            }
        };
        let python =
            if env.pip.is_empty() { self.python.path.clone() } else { self.install(&env.pip, progress).await? };
        Ok(Prepared { python, folder, variables })
    }

    fn turn(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        self.preparing.lock().entry(key.to_owned()).or_default().clone()
    }

    /// Python unpacks: it is there, and its zip reader keeps to the folder.
    async fn unpack(&self, archive: &[u8], folder: &Path) -> io::Result<()> {
        let draft = folder.with_extension("draft");
        let _ = fs::remove_dir_all(&draft);
        fs::create_dir_all(&draft)?;
        let zip = folder.with_extension("zip");
        fs::write(&zip, archive)?;
        // What a zip says of the sizes of its files holds: the reader stops there.
        let code = "import sys, zipfile\n\
                    zip, files, size = zipfile.ZipFile(sys.argv[1]), int(sys.argv[3]), int(sys.argv[4])\n\
                    all = zip.infolist()\n\
                    if len(all) > files or sum(i.file_size for i in all) > size:\n\
                    \x20   sys.exit(f'it holds more than {files} files or {size} bytes')\n\
                    zip.extractall(sys.argv[2])";
        let own = [draft.clone(), zip.clone()];
        let launch = Launch { write: &own, ..Launch::default() };
        let mut unzip = self.launcher.command(&self.python.path, &launch);
        unzip.args(["-c", code]).arg(&zip).arg(&draft);
        let out =
            unzip.arg(caps::FOLDER_FILES_MAX.to_string()).arg(caps::FOLDER_BYTES_MAX.to_string()).output().await?;
        fs::remove_file(&zip)?;
        if !out.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&out.stderr).into_owned()));
        }
        fs::rename(draft, folder)
    }

    /// A virtual environment with these packages, above those of the worker's own interpreter.
    async fn install(&self, packages: &[String], progress: &Progress) -> Result<PathBuf, Error> {
        let mut sorted: Vec<_> = packages.to_vec();
        sorted.sort();
        let key = format!("{}\n{}\n{}", self.python.version, self.python.path.display(), sorted.join("\n"));
        let name = Digest::of(key.as_bytes()).to_string();
        let home = self.cache.join("packages").join(&name);
        let python = home.join("bin/python");
        let turn = self.turn(&name);
        let _turn = turn.lock().await;
        if home.join(".ready").exists() {
            return Ok(python);
        }
        let _ = fs::remove_dir_all(&home);
        let wanted = packages.join(" ");
        let work = async {
            progress(format!("making a Python environment for {wanted}"));
            fs::create_dir_all(&home).map_err(|e| e.to_string())?;
            // Whoever writes a package says what runs while it is installed.
            let own = [home.clone()];
            let launch = Launch { write: &own, ..Launch::default() };
            let mut venv = self.launcher.command(&self.python.path, &launch);
            self.run(venv.args(["-m", "venv"]).arg(&home), progress).await?;
            // What the worker's interpreter has stays importable, below what is installed here.
            let script = "import site, sys; print(site.getsitepackages()[0])";
            let mut ask = self.launcher.command(&python, &launch);
            let out = ask.args(["-c", script]).output().await.map_err(|e| e.to_string())?;
            let site = PathBuf::from(String::from_utf8_lossy(&out.stdout).trim());
            fs::write(site.join("covey-parent.pth"), self.python.paths.join("\n")).map_err(|e| e.to_string())?;
            let mut pip = self.launcher.installer(&python, &launch);
            pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input"]).args(packages);
            self.run(&mut pip, progress).await?;
            fs::write(home.join(".ready"), &key).map_err(|e| e.to_string())
        };
        let result = match tokio::time::timeout(PIP_TIMEOUT, work).await {
            Ok(result) => result,
            Err(_) => Err(format!("pip took longer than {} s", PIP_TIMEOUT.as_secs())),
        };
        result.map_err(|why| {
            let _ = fs::remove_dir_all(&home);
            let text = format!("failed to install {wanted} for the agent: {why}");
            Error::new(ErrorKind::FailedPrecondition, text)
                .hint("the worker installs with pip; can it reach the index?")
        })?;
        Ok(python)
    }

    /// Runs a command and passes its lines on.
    async fn run(&self, command: &mut Command, progress: &Progress) -> Result<(), String> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|e| e.to_string())?;
        let errors = child.stderr.take().map(BufReader::new);
        let collect = tokio::spawn(async move {
            let mut last = Vec::new();
            if let Some(errors) = errors {
                let mut lines = errors.lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    last.push(line);
                }
            }
            last
        });
        if let Some(out) = child.stdout.take() {
            let mut lines = BufReader::new(out).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                tracing::info!(target: "pip", "{line}");
                progress(line);
            }
        }
        let status = child.wait().await.map_err(|e| e.to_string())?;
        let last = collect.await.unwrap_or_default();
        if status.success() {
            return Ok(());
        }
        let tail = last.len().saturating_sub(LAST_WORDS);
        Err(format!("{status}\n{}", last[tail..].join("\n")))
    }
}
