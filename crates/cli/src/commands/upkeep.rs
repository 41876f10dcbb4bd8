//! `covey doctor`, `covey backup`, `covey restore`: on the machine of the head, with or without it running.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use covey_domain::{Digest, Error, ErrorKind, error::with_causes};
use covey_head_node::upkeep;
use serde::{Deserialize, Serialize};

/// The store, in the head's folder.
const STORE: &str = "covey.db";
/// Who did what, beside it.
const AUDIT: &str = "audit.log";
/// What is in a backup, and of what digest.
const MANIFEST: &str = "manifest.json";

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  covey doctor\n  covey doctor --json\n\nExit code 70 when something is wrong that must not be."
)]
pub(crate) struct DoctorArgs {
    /// Folder of the head
    #[arg(long)]
    data: Option<PathBuf>,
    /// What is found of the store, as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(clap::Args)]
#[command(after_help = "Example:\n  covey backup /backups/2026-11-23")]
pub(crate) struct BackupArgs {
    /// A folder that is not there yet, or empty
    to: PathBuf,
    /// Folder of the head
    #[arg(long)]
    data: Option<PathBuf>,
}

#[derive(clap::Args)]
#[command(after_help = "Example:\n  covey restore /backups/2026-11-23 --data ~/.covey/head")]
pub(crate) struct RestoreArgs {
    /// A folder that `covey backup` made
    from: PathBuf,
    /// Folder of the head: not there yet, or without a store
    #[arg(long)]
    data: Option<PathBuf>,
}

/// What a backup holds.
#[derive(Serialize, Deserialize)]
struct Manifest {
    version: String,
    at_ms: u64,
    tasks: u64,
    /// SHA-256 by path within the folder.
    files: BTreeMap<PathBuf, Digest>,
}

fn data_or_default(data: Option<PathBuf>) -> PathBuf {
    data.unwrap_or_else(|| covey_node::home::root().join("head"))
}

fn failed(what: &str, error: &(dyn std::error::Error + 'static)) -> Error {
    Error::internal(with_causes(format!("failed to {what}: {error}"), error))
}

pub(crate) async fn doctor(args: DoctorArgs) -> Result<(), Error> {
    let path = data_or_default(args.data).join(STORE);
    if !args.json && !path.exists() {
        outln!("  note  there is none at `{}`", path.display());
        return Ok(());
    }
    let mut report = upkeep::examine(&path).await.map_err(|e| failed("look at the store", &e))?;
    let is_sound = report.errors.is_empty();
    audit(&path.with_file_name(AUDIT), &mut report)?;
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&report).map_err(|e| failed("write the report", &e))?);
    } else {
        report.about.iter().for_each(|text| outln!("       {text}"));
        report.warnings.iter().for_each(|text| outln!("warn   {text}"));
        report.errors.iter().for_each(|text| outln!("ERROR  {text}"));
    }
    if report.errors.is_empty() {
        return Ok(());
    }
    let found = Error::internal(format!("{} things are wrong with what the head keeps", report.errors.len()));
    Err(match upkeep::last_backup(&path).filter(|_| !is_sound) {
        Some(backup) => {
            found.hint(format!("`covey restore {}` brings back the newest backup", backup.folder().display()))
        }
        None => found,
    })
}

/// Whether the audit log is the chain that was written.
fn audit(path: &Path, report: &mut upkeep::Report) -> Result<(), Error> {
    match covey_head_node::verify_audit(path) {
        Ok(Ok(count)) => report.about.push(format!("audit log: {count} records in one chain")),
        Ok(Err(broken)) => report.errors.push(format!("{broken} (`{}`)", path.display())),
        // A head of an earlier version kept none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = "which a head begins when it starts: right after a restore, else it was removed";
            report.warnings.push(format!("there is no `{}`, {text}", path.display()));
        }
        Err(error) => return Err(failed("read the audit log", &error)),
    }
    Ok(())
}

pub(crate) async fn backup(args: BackupArgs) -> Result<(), Error> {
    let (data, to) = (data_or_default(args.data), args.to);
    let some = fs::read_dir(&to).is_ok_and(|mut found| found.next().is_some());
    if some {
        return Err(Error::new(ErrorKind::AlreadyExists, format!("`{}` is not empty", to.display())));
    }
    let io = |e: io::Error| failed("write the backup", &e);
    covey_node::home::private_dir(&to).map_err(io)?;
    let to = fs::canonicalize(&to).map_err(io)?;
    let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let made =
        upkeep::backup(&data.join(STORE), &to.join(STORE), at_ms).await.map_err(|e| failed("copy the store", &e))?;
    // Files that tasks name come after the tables: one that is there is named by nothing or by what is in them.
    copy_folder(&data, &to, Path::new("")).map_err(io)?;
    let mut files = BTreeMap::new();
    digests(&to, Path::new(""), &mut files).map_err(io)?;
    let count = files.len();
    let manifest = Manifest { version: env!("CARGO_PKG_VERSION").into(), at_ms, tasks: made.tasks, files };
    let body = serde_json::to_vec_pretty(&manifest).map_err(|e| failed("write the manifest", &e))?;
    covey_node::home::write_private(&to.join(MANIFEST), &body).map_err(io)?;
    outln!("{} tasks and {count} files are in {}", made.tasks, to.display());
    Ok(())
}

pub(crate) async fn restore(args: RestoreArgs) -> Result<(), Error> {
    let (from, data) = (args.from, data_or_default(args.data));
    let io = |e: io::Error| failed("read or write the backup", &e);
    if data.join(STORE).exists() {
        let text = format!("there is a store in `{}`", data.display());
        return Err(Error::new(ErrorKind::AlreadyExists, text).hint("move it away, or name another folder by --data"));
    }
    let manifest = fs::read(from.join(MANIFEST)).map_err(io)?;
    let manifest: Manifest = serde_json::from_slice(&manifest)
        .map_err(|e| Error::invalid(format!("`{MANIFEST}` is none of a backup: {e}")))?;
    let mut found = BTreeMap::new();
    digests(&from, Path::new(""), &mut found).map_err(io)?;
    found.remove(Path::new(MANIFEST));
    for (path, digest) in &manifest.files {
        if found.get(path) != Some(digest) {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("`{}` of the backup is missing, or not as it was written", path.display()),
            ));
        }
    }
    covey_node::home::private_dir(&data).map_err(io)?;
    for path in manifest.files.keys() {
        let to = data.join(path);
        if let Some(folder) = to.parent() {
            covey_node::home::private_dir(folder).map_err(io)?;
        }
        fs::copy(from.join(path), &to).map_err(io)?;
        fs::File::open(&to).and_then(|file| file.sync_all()).map_err(io)?;
    }
    fs::File::open(&data).and_then(|folder| folder.sync_all()).map_err(io)?;
    let tasks = upkeep::verify(&data.join(STORE)).await.map_err(|e| failed("check what was restored", &e))?;
    outln!("{tasks} tasks are in {}", data.display());
    Ok(())
}

/// Copies what lies beside the store: keys, callers, files of the artifact store.
fn copy_folder(from: &Path, to: &Path, below: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            covey_node::home::private_dir(&to.join(&path))?;
            copy_folder(from, to, &path)?;
        } else if entry.file_type()?.is_file() && !entry.file_name().to_string_lossy().starts_with(STORE) {
            match fs::copy(entry.path(), to.join(&path)) {
                // Forgotten at this moment; or one that is being written, under a name that will not stay.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                copied => drop(copied?),
            }
        }
    }
    Ok(())
}

fn digests(root: &Path, below: &Path, into: &mut BTreeMap<PathBuf, Digest>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            digests(root, &path, into)?;
        } else {
            into.insert(path, digest(&entry.path())?);
        }
    }
    Ok(())
}

fn digest(path: &Path) -> io::Result<Digest> {
    Ok(Digest::of(&fs::read(path)?))
}
