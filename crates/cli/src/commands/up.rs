//! `covey up`, `covey head`, `covey worker`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use covey_actor_runtime::{Compute, Format, Isolation, LaunchConfig, ModelsConfig};
use covey_domain::Error;
use covey_head_node::{HeadNode, IpNet};
use covey_mesh::Relay;
use covey_node::{
    Identity, claimed, credentials, home,
    listen::Host,
    tls::{MeshEntry, PinnedAddress},
};
use covey_worker_node::Port;
use tokio_util::sync::CancellationToken;

use crate::agent_file;

#[derive(clap::Args)]
pub(crate) struct HeadArgs {
    /// Address to listen on, or a name of this machine; of a name's addresses the first IPv4 one is taken, else the first
    #[arg(long, default_value = "127.0.0.1")]
    host: Host,
    /// Port for gRPC and HTTP; 0 takes a free one
    #[arg(long, short, default_value_t = covey_node::DEFAULT_PORT)]
    port: u16,
    /// Folder of the store [default: <home>/head]
    #[arg(long)]
    data: Option<PathBuf>,
    /// Folder with agent files (*.toml)
    #[arg(long)]
    agents: Option<PathBuf>,
    /// The agent at the root A2A paths
    #[arg(long)]
    default_agent: Option<String>,
    /// Host name or address that others are told [default: the one it listens on]
    #[arg(long = "advertise-head", value_name = "HOST")]
    advertise: Option<String>,
    /// Where else clients reach it, https://agents.example: by a proxy, or by another name; cards are signed for these; may be
    /// given again
    #[arg(long = "origin", value_name = "URL", value_parser = origin)]
    origins: Vec<String>,
    /// Speak nothing but TLS, on loopback too; beyond loopback that is so without it
    #[arg(long, conflicts_with = "allow_plaintext")]
    tls: bool,
    /// Beyond loopback, take connections without TLS too
    #[arg(long)]
    allow_plaintext: bool,
    /// Have no mesh: nodes that cannot dial each other speak through the head's own relay alone
    #[arg(long)]
    no_mesh: bool,
    /// Do not answer `covey worker --discover` on the local network
    #[arg(long)]
    no_announce: bool,
    /// Tasks that have ended, and what jobs printed, are kept this many days
    #[arg(long, default_value_t = 30)]
    keep_days: u64,
    /// And while the store has no more than this many gigabytes; the oldest go first
    #[arg(long)]
    keep_gb: Option<f64>,
    /// The tasks of one caller's key take this many gigabytes of the store at most, with the files that they name; new ones are refused then
    #[arg(long, default_value_t = 50.0, value_name = "GB")]
    caller_gb: f64,
    /// A network that webhooks (A2A push notifications) may be in although it is not public, like 127.0.0.0/8; without TLS
    /// too; may be given again
    #[arg(long, value_name = "CIDR")]
    push_allow: Vec<IpNet>,
    /// Where files are kept that are too large for a message: a folder, or s3://bucket/prefix with keys, region and endpoint
    /// from the environment (AWS_ACCESS_KEY_ID, …) [default: a folder beside the store]
    #[arg(long, value_name = "PLACE")]
    artifacts: Option<String>,
    /// A link to such a file opens it for so many seconds
    #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
    artifact_links: u64,
    /// A driver whose connection broke has so many seconds to come back before its actors end
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    session_grace: u64,
    /// Certificates (PEM) for clients that trust public authorities
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Key (PEM) of --tls-cert
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct WorkerArgs {
    /// Name; also keeps the identity across restarts
    #[arg(long)]
    name: Option<String>,
    /// CPUs to offer [default: all]
    #[arg(long)]
    cpus: Option<f64>,
    /// Memory to offer, MiB [default: all]
    #[arg(long)]
    memory_mib: Option<u64>,
    /// GPUs to offer
    #[arg(long, default_value_t = 0.0)]
    gpus: f64,
    /// Something else to offer, name=amount, which actors ask for by `resources`; may be given again
    #[arg(long = "resource", value_parser = resource, value_name = "NAME=AMOUNT")]
    resources: Vec<(String, u64)>,
    /// A label, key=value; may be given again
    #[arg(long = "label", value_parser = label)]
    labels: Vec<(String, String)>,
    /// A folder with models; may be given again [default: $COVEY_MODELS, ./models, <home>/models, and the model
    /// `tiny` that comes with the command]
    #[arg(long = "models")]
    models: Vec<PathBuf>,
    /// What models that make text are computed on: auto, cpu, cuda, cuda:N, metal; builds for cards have the feature
    /// `cuda` or `metal`
    #[arg(long, default_value = "auto", value_parser = device)]
    device: Compute,
    /// Memory that loaded models may take, MiB [default: three quarters of what is offered; on an NVIDIA card nine tenths
    /// of what is free there]
    #[arg(long)]
    model_memory_mib: Option<u64>,
    /// Answers that a model makes at once [default: 256]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    model_running: Option<u32>,
    /// Requests that wait for a model before others are refused (429 with Retry-After) [default: 1024]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    model_queue: Option<u32>,
    /// A smaller model of the same vocabulary that guesses ahead for a model, MODEL=DRAFT; may be given again
    #[arg(long = "draft", value_parser = label, value_name = "MODEL=DRAFT")]
    drafts: Vec<(String, String)>,
    /// What a model's float weights become while they are read, MODEL=FORMAT (q8_0, q4_0, q4_k, q5_k, q6_k; bf16 for f32);
    /// may be given again
    #[arg(long = "quantize", value_parser = quantized, value_name = "MODEL=FORMAT")]
    quantize: Vec<(String, Format)>,
    /// TOML file with [[upstream]] tables: name, url, model, and api_key_env, api_key_file or api_key (`secret://NAME`)
    #[arg(long)]
    upstreams: Option<PathBuf>,
    /// Address (or name, as for a head's --host) and port for callers [default: a free port on loopback when the head is there, on this machine's address
    /// when the head speaks TLS]
    #[arg(long, value_name = "HOST:PORT", value_parser = covey_node::listen::address)]
    listen: Option<SocketAddr>,
    /// Have no port of its own: callers come through the head
    #[arg(long, conflicts_with = "listen")]
    no_listen: bool,
    /// Host name that callers are told
    #[arg(long)]
    advertise: Option<String>,
    /// What processes of agents, tools and jobs are kept from: none, default (files of others, other processes), strict (the
    /// network too); `covey doctor` says what this machine can do
    #[arg(long, env = "COVEY_ISOLATION", default_value = "default", value_parser = isolation)]
    isolation: Isolation,
    /// A file or folder that they may read, beside the system and the folder that this worker is started in; may be given again
    #[arg(long, value_name = "PATH")]
    allow_read: Vec<PathBuf>,
    /// A file or folder that they may change, beside folders for temporary files; may be given again
    #[arg(long, value_name = "PATH")]
    allow_write: Vec<PathBuf>,
    /// A variable of this process's environment that they have too, like OPENAI_API_KEY; may be given again
    #[arg(long, value_name = "NAME")]
    pass_env: Vec<String>,
    /// Python interpreter for Python agents [default: $COVEY_PYTHON, the active venv, the venv it is in, python3]
    #[arg(long)]
    python: Option<PathBuf>,
}

#[derive(clap::Args)]
#[command(after_help = "Example:\n  covey up --models models --agents examples/agents")]
pub(crate) struct Args {
    #[command(flatten)]
    head: HeadArgs,
    #[command(flatten)]
    worker: WorkerArgs,
    /// Stop when standard input closes: the cluster goes with the program that started it
    #[arg(long)]
    while_stdin: bool,
    /// Where that ends it, its home folder goes, too: it was made for this cluster
    #[arg(long, hide = true, requires = "while_stdin")]
    temporary_home: bool,
}

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  covey token | covey worker --join - --cpus 4 --models /models\n  COVEY_JOIN=\"$(ssh head covey token)\" covey worker"
)]
pub(crate) struct WorkerOnly {
    /// Join token: <secret>@<host:port>, <secret>@<host:port>#<fingerprint>; `-` reads it from standard input, `@FILE` from a
    /// file. Every user of this machine can read the command line
    #[arg(long, env = "COVEY_JOIN", hide_env_values = true)]
    join: String,
    /// Look for the head on the local network (mDNS) instead of at the token's address; the token's fingerprint tells it
    /// from others
    #[arg(long)]
    discover: bool,
    /// Stay out of the mesh, which gets callers through to workers that cannot be dialled
    #[arg(long)]
    no_mesh: bool,
    /// When asked to stop, hand actors to other workers first, for at most this many seconds; 0 = stop at once
    #[arg(long, default_value_t = 10)]
    hand_over_s: u64,
    #[command(flatten)]
    worker: WorkerArgs,
}

pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    text.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).ok_or_else(|| "use key=value".to_owned())
}

/// A name and an amount, in thousandths.
fn resource(text: &str) -> Result<(String, u64), String> {
    let (name, amount) = label(text)?;
    let amount: f64 = amount.parse().map_err(|_| format!("`{amount}` is not an amount"))?;
    if name.is_empty() || !(0.0..=1e12).contains(&amount) {
        return Err("use name=amount, like licence=2".to_owned());
    }
    Ok((name, (amount * 1000.0).round() as u64))
}

fn origin(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let good = rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['/', '?', '#', '@']));
    if good { Ok(text.to_owned()) } else { Err("use https://host, or with a port".to_owned()) }
}

fn isolation(text: &str) -> Result<Isolation, String> {
    text.parse()
}

fn device(text: &str) -> Result<Compute, String> {
    let compute: Compute = text.parse()?;
    compute.check().map(|()| compute)
}

fn quantized(text: &str) -> Result<(String, Format), String> {
    let (model, format) = label(text)?;
    Ok((model, format.parse()?))
}

/// Where models are looked for when no folder is named.
pub(crate) fn model_folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        std::env::var_os("COVEY_MODELS").map(|v| std::env::split_paths(&v).collect()).unwrap_or_default();
    folders.push(PathBuf::from("models"));
    folders.push(home::root().join("models"));
    folders.extend(crate::tiny_model::folder());
    folders
}

fn head_config(args: HeadArgs) -> Result<covey_head_node::Config, Error> {
    let mut config = covey_head_node::Config::new(SocketAddr::new(args.host.ip, args.port));
    config.name = args.host.name;
    if let Some(data) = args.data {
        config.data = data;
    }
    config.allow_plaintext = args.allow_plaintext;
    config.tls = args.tls;
    let bytes = args.keep_gb.map(|gb| (gb * 1e9) as u64);
    config.keep = covey_head_node::Retention { age: Duration::from_secs(args.keep_days * 24 * 3600), bytes };
    config.caller_bytes = (args.caller_gb * 1e9) as u64;
    config.push_allow = args.push_allow;
    config.artifacts = args.artifacts;
    config.times.session_grace_ms = args.session_grace * 1000;
    config.links_for = Duration::from_secs(args.artifact_links);
    config.advertise = args.advertise;
    config.origins = args.origins;
    config.site = args.tls_cert.zip(args.tls_key);
    config.agents = agent_file::builtin();
    config.default_agent = Some(args.default_agent.unwrap_or_else(|| "assistant".into()).into());
    if let Some(dir) = &args.agents {
        config.agents.extend(agent_file::read_dir(dir)?);
    }
    Ok(config)
}

fn worker_config(args: WorkerArgs, head: PinnedAddress, secret: String) -> Result<covey_worker_node::Config, Error> {
    let mut config = covey_worker_node::Config::new(head, secret);
    let usual = model_folders();
    let folders = if args.models.is_empty() { usual.clone() } else { args.models };
    if let Some(missing) = folders.iter().find(|f| !f.is_dir()).filter(|f| !usual.contains(f)) {
        return Err(Error::invalid(format!("there is no models folder `{}`", missing.display()))
            .hint("a models folder holds a folder with config.json for each model, or .gguf files"));
    }
    config.name = args.name;
    config.cpus = args.cpus;
    config.memory = args.memory_mib.map(|m| m << 20);
    config.gpus = args.gpus;
    config.custom = args.resources.into_iter().collect();
    config.labels = args.labels.into_iter().collect::<BTreeMap<_, _>>();
    config.python = args.python;
    config.port = match (args.listen, args.no_listen) {
        (Some(at), _) => Port::At(at),
        (None, true) => Port::None,
        (None, false) => Port::Near,
    };
    config.advertise = args.advertise;
    let absolute = |paths: Vec<PathBuf>| -> Vec<PathBuf> {
        paths.into_iter().map(|path| std::path::absolute(&path).unwrap_or(path)).collect()
    };
    config.launch = LaunchConfig {
        guard: std::env::current_exe().ok(),
        isolation: args.isolation,
        read: absolute(args.allow_read),
        write: absolute(args.allow_write),
        pass_env: args.pass_env,
        ..LaunchConfig::default()
    };
    config.models = ModelsConfig {
        folders,
        upstreams: Vec::new(),
        compute: args.device,
        memory: args.model_memory_mib.map_or(0, |mib| mib << 20),
        running_max: args.model_running.map(|n| n as usize),
        waiting_max: args.model_queue.map(|n| n as usize),
        drafts: args.drafts.into_iter().collect(),
        quantize: args.quantize.into_iter().collect(),
    };
    if let Some(path) = &args.upstreams {
        #[derive(serde::Deserialize)]
        struct File {
            #[serde(default)]
            upstream: Vec<covey_actor_runtime::Upstream>,
        }
        let wrong = |e: String| Error::invalid(format!("failed to read `{}`: {e}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        config.models.upstreams = toml::from_str::<File>(&text).map_err(|e| wrong(e.to_string()))?.upstream;
        config.models.upstreams.iter().try_for_each(covey_actor_runtime::Upstream::check)?;
    }
    Ok(config)
}

fn announce(head: &HeadNode) {
    let scheme = if head.credentials.pin.is_some() { "https" } else { "http" };
    let address = &head.credentials.address;
    outln!("covey head on {address}");
    outln!("  A2A card      {scheme}://{address}/.well-known/agent-card.json");
    outln!("  OpenAI API    {scheme}://{address}/v1");
    outln!("  credentials   {}", home::root().join("credentials.json").display());
    outln!("  add a worker  covey token | covey worker --join -");
    if !head.is_reachable {
        errln!("warning: this machine has no route to a network: others are told `{address}`, which is themselves");
        errln!("  hint: `--advertise-head HOST` says by which name or address they reach it");
    }
}

/// A head on loopback has nobody to bring together.
fn is_meshed(args: &HeadArgs) -> bool {
    !args.no_mesh && !args.host.ip.is_loopback()
}

/// A head, with the mesh on its port.
async fn start_head(args: HeadArgs, shutdown: &CancellationToken) -> Result<HeadNode, Error> {
    let (meshed, announced) = (is_meshed(&args), !args.no_announce);
    let mut config = head_config(args)?;
    if !meshed {
        return HeadNode::start(config, shutdown.clone()).await;
    }
    let file = config.data.join("identity.key");
    let identity = Identity::load_or_create(&file)
        .map_err(|e| Error::internal(format!("failed to read or write `{}`: {e}", file.display())))?;
    let (entry, source) = MeshEntry::new(identity.node());
    config.mesh = Some(entry);
    let head = HeadNode::start(config, shutdown.clone()).await?;
    // Whoever finds a head without a fingerprint could not tell whether it is theirs.
    let announced = announced && head.credentials.pin.is_some();
    let relay = Relay::new(&identity, source, head.address, announced)?;
    tokio::spawn(relay.run(shutdown.clone()));
    Ok(head)
}

/// Head and worker in one process.
pub(crate) async fn up(args: Args) -> Result<(), Error> {
    // Nobody takes it away while this process runs, also when who made it is over.
    let _claim = if args.temporary_home { claimed::join(&home::root()) } else { None };
    let shutdown = covey_node::shutdown_on_signal();
    let meshed = is_meshed(&args.head);
    let data = args.head.data.clone();
    let head = start_head(args.head, &shutdown).await?;
    let beyond = !head.address.ip().is_loopback() && head.credentials.pin.is_some();
    let mut config = worker_config(args.worker, head.near(), head.credentials.join_secret.clone())?;
    if beyond && config.port == Port::Near {
        config.port = Port::At(SocketAddr::new(head.address.ip(), 0));
    }
    config.mesh = meshed;
    config.launch.hide.extend(data.map(|data| std::path::absolute(&data).unwrap_or(data)));
    announce(&head);
    covey_node::systemd::ready();
    let orphaned = Arc::new(AtomicBool::new(false));
    if args.while_stdin {
        let (gone, orphaned) = (shutdown.clone(), orphaned.clone());
        // A thread, not a task: a blocked read of standard input would hold up the runtime's end.
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            orphaned.store(true, Ordering::Relaxed);
            gone.cancel();
        });
    }
    let result = covey_worker_node::run(config, shutdown.clone()).await;
    shutdown.cancel();
    head.stopped().await;
    if args.temporary_home && orphaned.load(Ordering::Relaxed) {
        // What is still on its way to the disk may make a file meanwhile; then another look finds it.
        let _ = std::fs::remove_dir_all(home::root()).or_else(|_| std::fs::remove_dir_all(home::root()));
    }
    result
}

/// A head alone.
pub(crate) async fn head(args: HeadArgs) -> Result<(), Error> {
    let shutdown = covey_node::shutdown_on_signal();
    let head = start_head(args, &shutdown).await?;
    announce(&head);
    covey_node::systemd::ready();
    shutdown.cancelled().await;
    head.stopped().await;
    Ok(())
}

/// The token itself, or where it is.
fn join_token(said: &str) -> Result<String, Error> {
    let failed = |e: std::io::Error| Error::invalid(format!("failed to read the join token: {e}"));
    let mut line = String::new();
    match said.strip_prefix('@') {
        Some(path) => line = std::fs::read_to_string(path).map_err(failed)?,
        None if said == "-" => drop(std::io::stdin().read_line(&mut line).map_err(failed)?),
        None => said.clone_into(&mut line),
    }
    Ok(line.trim().to_owned())
}

/// A worker alone.
pub(crate) async fn worker(args: WorkerOnly) -> Result<(), Error> {
    let (secret, mut head) = credentials::parse_join_token(&join_token(&args.join)?)?;
    super::warn_of_arguments(
        &secret,
        "the join token",
        "`--join -` reads it from standard input, COVEY_JOIN has it too",
    );
    let shutdown = covey_node::shutdown_on_signal();
    if args.discover {
        let pin = head.pin.ok_or_else(|| {
            Error::invalid("--discover needs a join token with a fingerprint, to know the head by")
                .hint("a head that listens beyond loopback has one: `covey token` there prints it")
        })?;
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            found = covey_mesh::discover(pin) => head = found?,
        }
    }
    let near = head.is_loopback();
    let mut config = worker_config(args.worker, head, secret)?;
    config.mesh = !args.no_mesh && !near;
    config.hand_over = Duration::from_secs(args.hand_over_s);
    covey_worker_node::run(config, shutdown).await
}
