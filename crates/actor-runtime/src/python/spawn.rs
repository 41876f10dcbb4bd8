//! Starts a process and watches over it until it has ended.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use covey_domain::{Error, ErrorKind, Isolation, agent::PythonEnv};
use covey_proto::v1::{HostBatch, HostFrame, host_frame::Body};
use prost::Message as _;
use tokio::{
    io::AsyncWriteExt as _,
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::{Child, Command},
    sync::mpsc,
};

use super::{
    HostNumber, News,
    begun::Begun,
    find,
    host::{Host, HostParts},
    hosts::Hosts,
    stack::Stacks,
};
use crate::{
    envs::{Prepared, home_of},
    launch::Launch,
    output::Output,
};

/// A process that does not dial back within this time is broken.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// What a process wrote before it ended is read for so long; a child of its own may hold the socket open for ever.
const AFTER_EXIT: Duration = Duration::from_millis(200);
/// Frames put into one batch.
const BATCH_MAX: usize = 256;

impl Hosts {
    /// A new process, up and connected.
    pub(super) async fn spawn(
        &self,
        number: HostNumber,
        env: &PythonEnv,
        level: Isolation,
        prepared: Option<Prepared>,
    ) -> Result<Arc<Host>, Error> {
        let socket = self.folder.join(format!("host-{number}.sock"));
        let failed = |what: &str, e: &dyn std::fmt::Display| Error::unavailable(format!("failed to {what}: {e}"));
        private_dir(&self.folder).map_err(|e| failed("make the socket folder", &e))?;
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).map_err(|e| failed("bind a Unix socket", &e))?;
        let table = Temporary(self.folder.join(format!("host-{number}.begun")));
        let begun = Begun::create(&table.0).map_err(|e| failed("make its table of calls", &e))?;
        let told = Temporary(self.folder.join(format!("host-{number}.stacks")));
        let stacks = Stacks::create(&told.0).map_err(|e| failed("make the file for its stacks", &e))?;
        let files = [&table.0, &told.0];
        let mut command = self.command(prepared.clone(), level, files);
        command.args(["-m", "covey._host"]).args([&socket, &table.0, &told.0]);
        let mut child = command.spawn().map_err(|e| failed("start Python", &e))?;
        let pid = child.id().unwrap_or(0);
        let log = self.logs.join(format!("python-{pid}.log"));
        let output = Output::create(log, pid, self.printed.clone());
        let output = Arc::new(output.map_err(|e| failed("make its log", &e))?);
        self.prints(number, &output);
        if let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) {
            let (first, second) = (output.clone(), output.clone());
            tokio::spawn(async move { first.copy(out).await });
            tokio::spawn(async move { second.copy(err).await });
        }
        let both = async { Ok((accept(&listener).await?, accept(&listener).await?)) };
        let accepted = tokio::select! {
            accepted = tokio::time::timeout(START_TIMEOUT, both) => accepted,
            status = child.wait() => {
                let status = status.map_or_else(|e| e.to_string(), |s| s.to_string());
                let _ = std::fs::remove_file(&socket);
                // Another try would end as this one did.
                if let Some(misfit) = find::misfit_of(self.command(prepared, level, files)).await {
                    return Err(Error::new(ErrorKind::FailedPrecondition, misfit).hint(
                        "install the worker's version, or start the worker again where the package was changed",
                    ));
                }
                return Err(failed("start Python", &format!("it ended at once ({status}); {}", last_words(output.path()))));
            }
        };
        let _ = std::fs::remove_file(&socket);
        let (stream, standby) = accepted
            .map_err(|_| failed("start Python", &"it did not answer within 20 s"))?
            .map_err(|e: std::io::Error| failed("start Python", &e))?;
        let (read, write) = stream.into_split();
        #[expect(
            clippy::disallowed_methods,
            reason = "calls that the mailboxes of its actors have room for, and windows; the process ends with what it does not read"
        )]
        let (frames, rx) = mpsc::unbounded_channel();
        #[expect(clippy::disallowed_methods, reason = "answers to the calls that this process has open, a window each")]
        let (answers, mut answered) = mpsc::unbounded_channel();
        let to_host = frames.clone();
        tokio::spawn(async move {
            while let Some(frame) = answered.recv().await {
                let _ = to_host.send(HostFrame { body: Some(Body::Back(frame)) });
            }
        });
        let host = Host::new(HostParts {
            number,
            env: env.clone(),
            level,
            output: output.clone(),
            pid,
            begun,
            stacks,
            standby,
            frames,
            lane: self.outward.lane(answers),
            outward: self.outward.clone(),
            news: self.news.clone(),
        });
        tokio::spawn(write_frames(write, rx));
        let reading = tokio::spawn(host.clone().read(read, self.models.clone()));
        tokio::spawn(watch(host.clone(), child, reading));
        tracing::info!(pid = host.pid, "python process started");
        Ok(host)
    }

    /// With the files that it writes to.
    fn command(&self, prepared: Option<Prepared>, level: Isolation, files: [&PathBuf; 2]) -> Command {
        let python = prepared.as_ref().map_or(&self.python.path, |prepared| &prepared.python);
        let folder = prepared.iter().filter_map(|prepared| prepared.folder.clone());
        let own: Vec<PathBuf> = folder.chain(files.into_iter().cloned()).collect();
        let read: Vec<PathBuf> = home_of(python).into_iter().collect();
        let launch = Launch { read: &read, write: &own, isolation: Some(level), ..Launch::default() };
        let mut command = self.launcher.command(python, &launch);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.envs(self.environment.iter().cloned());
        if let Some(Prepared { folder, variables, .. }) = prepared {
            command.envs(variables);
            if let Some(folder) = folder {
                command.current_dir(folder);
            }
        }
        command
    }
}

/// A connection of a process of this user.
async fn accept(listener: &UnixListener) -> std::io::Result<UnixStream> {
    let (stream, _) = listener.accept().await?;
    let peer = stream.peer_cred()?;
    if peer.uid() == rustix::process::getuid().as_raw() {
        return Ok(stream);
    }
    Err(std::io::Error::other(format!("user {} answered in its place", peer.uid())))
}

/// A file that is needed until the process has opened it.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn private_dir(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The last line that a process printed, for the reason why it did not start.
fn last_words(log: &Path) -> String {
    let text = crate::output::plain(&std::fs::read(log).unwrap_or_default());
    let text = String::from_utf8_lossy(&text);
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it printed nothing").trim().to_owned()
}

async fn write_frames(mut socket: OwnedWriteHalf, mut frames: mpsc::UnboundedReceiver<HostFrame>) {
    let (mut batch, mut buffer) = (Vec::new(), Vec::new());
    while frames.recv_many(&mut batch, BATCH_MAX).await > 0 {
        buffer.clear();
        buffer.extend_from_slice(&[0; 4]);
        let message = HostBatch { frames: std::mem::take(&mut batch) };
        // Encoding into a Vec grows it; it cannot run out of room.
        let _ = message.encode(&mut buffer);
        let length = (buffer.len() - 4) as u32;
        buffer[..4].copy_from_slice(&length.to_be_bytes());
        if socket.write_all(&buffer).await.is_err() {
            return;
        }
    }
}

/// Waits for the end of a process, or ends it, and tells what went with it. Its socket alone does not say that it ended:
/// a child of its own may hold the other end open.
async fn watch(host: Arc<Host>, mut child: Child, mut reading: tokio::task::JoinHandle<()>) {
    let (mut all_read, mut ended) = (false, None);
    tokio::select! {
        _ = &mut reading => all_read = true,
        () = host.unwanted.cancelled() => {}
        status = child.wait() => ended = Some(status),
    }
    host.close();
    let status = match ended {
        Some(status) => status,
        None => {
            let _ = child.start_kill();
            child.wait().await
        }
    };
    if !all_read && tokio::time::timeout(AFTER_EXIT, &mut reading).await.is_err() {
        reading.abort();
    }
    let ran_out = status.as_ref().ok().and_then(|status| host.memory.ran_out(status));
    let status = status.map_or_else(|e| e.to_string(), |s| s.to_string());
    let why = match (host.retired.get(), ran_out) {
        (Some(why), _) => format!("its Python process {} was replaced: {why}", host.pid),
        (None, Some(why)) => format!("its Python process {} {why}", host.pid),
        (None, None) => format!("its Python process {} ended ({status})", host.pid),
    };
    tracing::warn!(pid = host.pid, why, "python process ended");
    let (actors, agents) = host.bury(&why);
    let beside = actors.len() > 1 || host.agent.get().is_some();
    let _ = host.news.send(News::Died {
        host: host.number,
        actors,
        suspects: if beside { agents } else { HashSet::new() },
        why,
    });
}

/// The read half, named here so that [`Host::read`] says what it takes.
pub(super) type Socket = OwnedReadHalf;
