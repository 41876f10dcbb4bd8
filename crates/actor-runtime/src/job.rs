//! Jobs: a command of the user's, run on some worker as a durable task, what it prints kept as the task's events.

use std::{
    collections::{BTreeMap, HashSet},
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use covey_domain::{Digest, Error, ErrorKind, Isolation, agent::PythonEnv, caps};
use covey_proto::{
    payload_json,
    v1::{GetBlobReply, GetBlobRequest, Payload},
};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prost::Message as _;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt as _, net::unix::pipe::Receiver};

use crate::{
    Behavior, Invocation, Outward, Python, Sink,
    envs::{Environments, home_of},
    launch::{Launch, Launcher},
};

/// A job that is asked to end has this long before it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// Bytes put into one event.
const CHUNK: usize = 32 << 10;
/// What was printed is kept after this pause although the chunk is not full.
const LATE: Duration = Duration::from_millis(100);

/// What is to be run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct JobSpec {
    /// Program and arguments. `python` is the worker's interpreter, with `pip`'s packages if there are any.
    pub command: Vec<String>,
    /// Variables beside the worker's own. A value may refer to a secret: `secret://NAME`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Zip of the working folder, a blob at the head.
    #[serde(default)]
    pub dir: Option<Digest>,
    /// Packages.
    #[serde(default)]
    pub pip: Vec<String>,
    /// Times it is run again when its worker is lost.
    #[serde(default)]
    pub retries: u32,
}

/// Runs jobs.
pub(crate) struct Jobs {
    pub outward: Arc<dyn Outward>,
    pub environments: Option<Arc<Environments>>,
    pub python: Option<Python>,
    /// How a job finds its cluster.
    pub environment: Vec<(String, String)>,
    pub launcher: Arc<Launcher>,
    /// Where jobs without a folder of their own run.
    pub folder: PathBuf,
    /// Process groups of those that run.
    pub groups: Arc<Mutex<HashSet<u32>>>,
}

/// Runs those of one level of isolation.
pub(crate) struct JobsOf {
    pub jobs: Arc<Jobs>,
    pub isolation: Option<Isolation>,
}

impl Behavior for JobsOf {
    fn turn<'a>(&'a self, invocation: Invocation, sink: &'a Sink) -> BoxFuture<'a, Result<Option<Payload>, Error>> {
        Box::pin(async move {
            let mut job: JobSpec = invocation.arg()?;
            let attempt = invocation.task.as_ref().map_or(1, |task| task.attempt);
            if attempt > job.retries + 1 {
                let text = format!("the worker that ran it was lost, {} times", attempt - 1);
                return Err(Error::new(ErrorKind::Application, text).hint("`covey job submit --retries` runs it again"));
            }
            let task = invocation.task.map(|task| (task.task.to_string(), task.token, task.secrets));
            let (id, token, secrets) = task.unwrap_or_default();
            let env = PythonEnv {
                vars: std::mem::take(&mut job.env),
                dir: job.dir.take(),
                pip: std::mem::take(&mut job.pip),
            };
            let env = env.resolved(|name| secrets.get(name).cloned())?;
            self.jobs.run(job, env, self.isolation, (&id, &token), sink).await
        })
    }
}

impl Jobs {
    async fn run(
        &self,
        job: JobSpec,
        env: PythonEnv,
        isolation: Option<Isolation>,
        (id, token): (&str, &str),
        sink: &Sink,
    ) -> Result<Option<Payload>, Error> {
        let (program, arguments) =
            job.command.split_first().ok_or_else(|| Error::invalid("a job without a command"))?;
        let mut variables: Vec<_> = env.vars.clone().into_iter().collect();
        let (mut folder, mut python) = (None, self.python.as_ref().map(|p| p.path.clone()));
        if env.dir.is_some() || !env.pip.is_empty() {
            let environments = self.environments.as_ref().ok_or_else(|| {
                Error::new(ErrorKind::FailedPrecondition, "this worker has no Python, which unpacks and installs")
            })?;
            let archive = match &env.dir {
                Some(digest) => self.blob(digest).await?,
                None => Bytes::new(),
            };
            let prepared = environments.prepare(&env, &archive, &(Arc::new(|_| {}) as _)).await?;
            (variables, folder, python) = (prepared.variables, prepared.folder, Some(prepared.python));
        }
        let program = match (program.as_str(), &python) {
            ("python" | "python3", Some(python)) => python.clone(),
            _ => PathBuf::from(program),
        };
        let folder = folder.as_ref().unwrap_or(&self.folder);
        let read: Vec<PathBuf> = python.as_ref().and_then(|python| home_of(python)).into_iter().collect();
        let own = [folder.clone()];
        let launch = Launch { read: &read, write: &own, with_parent: true, isolation };
        let mut command = self.launcher.command(&program, &launch);
        std::fs::create_dir_all(&self.folder).map_err(|e| Error::internal(e.to_string()))?;
        // One pipe for both, as a terminal is: what it printed keeps its order.
        let no_pipe = |e: std::io::Error| Error::internal(format!("failed to make a pipe: {e}"));
        let (printed, end) = std::io::pipe().map_err(no_pipe)?;
        let printed = Receiver::from_owned_fd(printed.into()).map_err(no_pipe)?;
        let mut child = command
            .args(arguments)
            .envs(self.environment.iter().cloned())
            .env("COVEY_JOB", id)
            .env("COVEY_TOKEN", token)
            .env("PYTHONUNBUFFERED", "1")
            .envs(variables)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(end.try_clone().map_err(no_pipe)?)
            .stderr(end)
            .process_group(0)
            .spawn()
            .map_err(|e| Error::invalid(format!("failed to run `{}`: {e}", program.display())))?;
        // Whatever ends this turn, a cancel or a timeout, ends the job.
        let running = Running::new(child.id(), &self.groups);
        // With it go the ends of the pipe that are not the job's.
        drop(command);
        print(printed, sink).await;
        let status = child.wait().await.map_err(|e| Error::internal(e.to_string()))?;
        drop(running);
        match (status.code(), status.signal()) {
            (Some(0), _) => Ok(Some(payload_json(&serde_json::json!({"exit_code": 0})))),
            (Some(code), _) => Err(Error::new(ErrorKind::Application, format!("the job ended with exit code {code}"))),
            (None, signal) => {
                let text = format!("the job was ended by signal {}", signal.unwrap_or_default());
                Err(Error::new(ErrorKind::Application, text))
            }
        }
    }

    /// Ends all jobs at once.
    pub fn kill_all(&self) {
        for group in self.groups.lock().iter().filter_map(|pid| Pid::from_raw(*pid as i32)) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    async fn blob(&self, digest: &Digest) -> Result<Bytes, Error> {
        let ask = GetBlobRequest { digest: digest.to_string() };
        let reply = self.outward.verb("GetBlob".to_owned(), ask.encode_to_vec().into()).await?;
        Ok(GetBlobReply::decode(reply).map_err(|e| Error::internal(e.to_string()))?.body)
    }
}

/// What a job prints becomes text of its task, as it comes, up to a bound.
async fn print(mut printed: Receiver, sink: &Sink) {
    let (mut piece, mut over) = (vec![0; CHUNK], false);
    let (mut kept, mut total) = (Vec::new(), 0);
    loop {
        let late = tokio::time::sleep(LATE);
        let read = tokio::select! {
            read = printed.read(&mut piece) => {
                let count = read.unwrap_or(0);
                over = count == 0;
                kept.extend_from_slice(&piece[..count]);
                true
            }
            () = late, if !kept.is_empty() => false,
        };
        if kept.len() < CHUNK && read && !over {
            continue;
        }
        // A character that is not whole yet waits for the rest of it.
        let whole = if over { kept.len() } else { whole(&kept) };
        let text = String::from_utf8_lossy(&kept[..whole]).into_owned();
        kept.drain(..whole);
        let before = total;
        total += text.len();
        if total <= caps::JOB_LOG_BYTES_MAX {
            if !text.is_empty() {
                sink.text(&text).await;
            }
        } else if before <= caps::JOB_LOG_BYTES_MAX {
            let most = caps::JOB_LOG_BYTES_MAX >> 20;
            sink.text(&format!("\n[the job printed more than {most} MiB; the rest is not kept]\n")).await;
        }
        if over {
            return;
        }
    }
}

/// How much of it ends with a whole character.
fn whole(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(e) if e.error_len().is_none() => e.valid_up_to(),
        _ => bytes.len(),
    }
}

/// A process group that is ended when this is dropped.
struct Running {
    group: Option<u32>,
    groups: Arc<Mutex<HashSet<u32>>>,
}

impl Running {
    fn new(group: Option<u32>, groups: &Arc<Mutex<HashSet<u32>>>) -> Self {
        groups.lock().extend(group);
        Self { group, groups: groups.clone() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(id) = self.group else { return };
        let Some(group) = Pid::from_raw(id as i32) else { return };
        // Of a job that is over, only what it left behind is still in the group.
        if kill_process_group(group, Signal::TERM).is_err() {
            self.groups.lock().remove(&id);
            return;
        }
        let groups = self.groups.clone();
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            let _ = kill_process_group(group, Signal::KILL);
            groups.lock().remove(&id);
        });
    }
}
