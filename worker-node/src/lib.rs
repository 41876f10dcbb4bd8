//! The compute process: dials the head, runs actors and models, and keeps what it has to say until the head has it on
//! disk.

mod cluster;
mod direct;
mod enroll;
mod link;
mod machine;
mod open_entries;
mod shared_lease;
mod sole;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use covey_actor_runtime::{
    Compute, LaunchConfig, Models, ModelsConfig, Objects, ObjectsConfig, Registry, Runtime, RuntimeConfig,
};
use covey_client::Client;
use covey_domain::{Error, Isolation, NodeId, Resources, isolation::Offer};
use covey_mesh::{Enter, Inbound, Member};
use covey_node::{Identity, claimed, tls::PinnedAddress};
use covey_proto::v1::WorkerPort;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Where callers reach a worker without the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// A free port: on loopback when the head is on loopback; on this machine's address towards the network when this
    /// worker has a certificate; else none.
    Near,
    /// There.
    At(SocketAddr),
    /// Nowhere: they come through the head.
    None,
}

/// How a worker is set up.
#[derive(Clone)]
pub struct Config {
    /// Where the head is; with a fingerprint, it is spoken to by TLS.
    pub head: PinnedAddress,
    /// Secret of the join token.
    pub secret: String,
    /// Human name; also keeps the identity across restarts. `None` = a fresh identity.
    pub name: Option<String>,
    /// What it offers; CPUs and memory are measured where they are `None`.
    pub cpus: Option<f64>,
    /// Bytes.
    pub memory: Option<u64>,
    /// GPUs.
    pub gpus: f64,
    /// Whatever else it has to give, by name, in thousandths.
    pub custom: BTreeMap<String, u64>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Which models it serves, and how. Of memory they may take three quarters of what it offers where 0 is said.
    pub models: ModelsConfig,
    /// Interpreter for Python agents.
    pub python: Option<PathBuf>,
    /// Native agents.
    pub registry: Registry,
    /// How processes of agents, tools and jobs are started; without the `covey` binary they have no sandbox, and jobs may
    /// outlive this process.
    pub launch: LaunchConfig,
    /// Its own port for callers.
    pub port: Port,
    /// Before it stops, its actors are handed to other workers, for at most this long.
    pub hand_over: std::time::Duration,
    /// Takes part in the mesh: others get through to it, and it to others, where no address leads.
    pub mesh: bool,
    /// Host name that callers are told instead of the one it listens on.
    pub advertise: Option<String>,
}

impl Config {
    /// A worker for this head with everything measured.
    pub fn new(head: PinnedAddress, secret: String) -> Self {
        Self {
            head,
            secret,
            name: None,
            cpus: None,
            memory: None,
            gpus: 0.0,
            custom: BTreeMap::new(),
            labels: BTreeMap::new(),
            models: ModelsConfig::default(),
            python: None,
            registry: Registry::default(),
            launch: LaunchConfig::default(),
            port: Port::Near,
            mesh: false,
            advertise: None,
            hand_over: std::time::Duration::ZERO,
        }
    }
}

/// Runs until it is `asked` to stop, through any number of links. Fails only when the head refuses it for good.
pub async fn run(config: Config, asked: CancellationToken) -> Result<(), Error> {
    // Cancelled once what lives here is handed over.
    let shutdown = CancellationToken::new();
    let io = |what: &str, e: std::io::Error| Error::internal(format!("failed to {what}: {e}"));
    let home = covey_node::home::root();
    let mut sole = None;
    let own = config.name.as_ref().map(|name| home.join("workers").join(name));
    let identity = match (&config.name, &own) {
        (Some(name), Some(own)) => {
            sole = Some(sole::lock(own, name, &config.head.address).await?);
            let file = own.join("identity.key");
            Identity::load_or_create(&file).map_err(|e| io(&format!("read or write `{}`", file.display()), e))?
        }
        _ => Identity::ephemeral(),
    };
    let node = identity.node();
    let identity = Arc::new(identity);
    let kept = own.map(|own| own.join("credential.json"));
    let door = enroll::Door::new(config.head.clone(), identity.clone(), config.secret.clone(), kept);
    tokio::select! {
        () = asked.cancelled() => return Ok(()),
        enrolled = door.enroll_patiently() => enrolled?,
    }
    let name = config.name.clone().unwrap_or_else(|| format!("worker-{}", std::process::id()));
    let cpus = config.cpus.unwrap_or_else(machine::cpus);
    covey_inference::set_threads(cpus.floor().max(1.0) as usize);
    let found = covey_actor_runtime::find_python(config.python.clone()).await;
    let no_python = found.as_ref().err().cloned().unwrap_or_default();
    if !no_python.is_empty() {
        tracing::warn!(why = no_python, "Python agents are not served here");
    }
    let python = found.ok();
    let memory_bytes = config.memory.unwrap_or_else(machine::memory);
    let mut model_config = config.models.clone();
    if model_config.memory == 0 {
        model_config.memory = match model_config.compute {
            card @ Compute::Cuda(_) => card.free_memory() / 10 * 9,
            _ => memory_bytes / 4 * 3,
        };
    }
    let models = Arc::new(Models::new(model_config));
    #[expect(
        clippy::disallowed_methods,
        reason = "the link empties it at all times, into the outbox, which has a bound"
    )]
    let (reports, rx) = mpsc::unbounded_channel();
    // A short path: Unix sockets take 107 bytes.
    let folder = std::env::temp_dir().join(format!("covey-{}-{:016x}", std::process::id(), rand::random::<u64>()));
    covey_node::home::own_dir(&folder).map_err(|e| io("make a folder of its own", e))?;
    let claim = claimed::claim(&folder).map_err(|e| io("lock a folder of its own", e))?;
    tokio::task::spawn_blocking(take_away_leftovers);
    let objects = Objects::new(ObjectsConfig {
        memory: machine::memory_folder().join(folder.file_name().unwrap_or_default()),
        memory_bytes_max: machine::room_for_objects(&machine::memory_folder(), memory_bytes),
        disk: folder.join("objects"),
        disk_bytes_max: memory_bytes * 2,
    })
    .map_err(|e| io("make the folder of objects", e))?;
    let lease_folder = shared_lease::folder(&home).map_err(|e| io("make the folder of the lease", e))?;
    let lease_file = lease_folder.join("lease");
    let shared_lease = shared_lease::SharedLease::create(&lease_file).map_err(|e| io("write the lease", e))?;
    let (tunnel, inbound) = match config.mesh.then(|| join_mesh(&door, &shutdown)).transpose()? {
        Some((member, inbound)) => (Some(member), Some(inbound)),
        None => (None, None),
    };
    let cluster = cluster::Cluster::new(door.clone(), tunnel.map(|t| Arc::new(t) as _), objects.clone());
    let runtime = Runtime::new(
        RuntimeConfig {
            outward: Arc::new(cluster.clone()),
            node: node.clone(),
            logs: home.join("logs"),
            cache: home.join("cache"),
            environment: vec![
                ("COVEY_OBJECTS".into(), objects.folder().display().to_string()),
                ("COVEY_NODE".into(), node.to_string()),
                ("COVEY_VERSION".into(), env!("CARGO_PKG_VERSION").into()),
                ("COVEY_LEASE".into(), lease_file.display().to_string()),
                // In a sandbox it has mounts of its own, and shares the files all the same.
                ("COVEY_MACHINE".into(), covey_client::objects::machine()),
            ],
            job_environment: vec![
                ("COVEY_ADDRESS".into(), config.head.to_string()),
                ("COVEY_MACHINE".into(), covey_client::objects::machine()),
            ],
            launch: launch(&config, &home, &folder, &lease_folder, &objects),
            registry: config.registry.clone(),
            models: models.clone(),
            python: python.clone(),
            folder: folder.clone(),
            python_processes: cpus.ceil() as usize,
        },
        reports,
    );
    cluster.set_runtime(runtime.clone());
    let isolation = runtime.isolation().await;
    if isolation.most < Isolation::Strict {
        tracing::info!(lacks = isolation.lacks, "agents that ask for strict isolation cannot be here");
    }
    models.set_remote(cluster.infer());
    models.set_cluster(Arc::new(cluster.clone()));
    let near = config.head.is_loopback();
    let listen = match config.port {
        Port::At(at) => Some(at),
        Port::Near if near => Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        Port::Near if config.head.pin.is_some() => {
            covey_node::home::reachable(Ipv4Addr::UNSPECIFIED.into()).map(|ip| SocketAddr::new(ip, 0))
        }
        Port::Near | Port::None => None,
    };
    let served = (name.clone(), runtime.clone(), objects.clone());
    let port = direct::serve(listen, inbound, &config, &identity, served, shutdown.clone()).await?;
    let facts = Facts {
        node,
        name,
        resources: Resources {
            cpu_milli: (cpus * 1000.0) as u64,
            memory_bytes,
            gpu_milli: (config.gpus * 1000.0) as u64,
            custom: config.custom.clone(),
        },
        labels: config.labels,
        python: python.map(|p| p.version).unwrap_or_default(),
        no_python,
        incarnation: rand::random::<u64>() >> 1,
        port,
        machine: covey_client::objects::machine(),
        objects: objects.clone(),
        isolation,
    };
    let keeper = objects.clone();
    tokio::spawn(async move {
        let mut every = tokio::time::interval(std::time::Duration::from_secs(1));
        loop {
            every.tick().await;
            keeper.make_room();
        }
    });
    tokio::spawn(watch_models(models.clone()));
    tokio::spawn(hand_over(asked, shutdown.clone(), config.hand_over, cluster, runtime.clone(), facts.node.clone()));
    tokio::spawn(door.clone().renew());
    // As a task of its own: whoever waits for it may be on a thread that takes long to wake.
    let link = link::Link::new(door, facts, runtime.clone(), models, rx, shared_lease).run(shutdown);
    let result = tokio::spawn(link).await.unwrap_or_else(|e| Err(Error::internal(format!("the link ended: {e}"))));
    // Also where the link had ended before this worker was told to stop, as it does when a head stops in this very process.
    runtime.leave().await;
    objects.clear();
    let _ = std::fs::remove_dir_all(folder);
    let _ = std::fs::remove_dir_all(lease_folder);
    drop((claim, sole));
    result
}

/// What workers, drivers and clusters of drivers left that were killed.
fn take_away_leftovers() {
    let memory = machine::memory_folder();
    claimed::sweep(&std::env::temp_dir(), "covey-", Some(&memory));
    claimed::sweep(&memory, "covey-", None);
}

/// What processes here may reach beside the system: objects, the caches and models of this worker, and the folder that it was
/// started in, unless somebody is at home there. The cluster's own files are hidden wherever they lie.
fn launch(config: &Config, home: &Path, folder: &Path, lease: &Path, objects: &Objects) -> LaunchConfig {
    let mut launch = config.launch.clone();
    launch.home = folder.join("home");
    let temporary = folder.join("tmp");
    for own in [&launch.home, &temporary] {
        let _ = std::fs::create_dir_all(own);
    }
    launch.temporary = Some(temporary);
    launch.read.extend(config.models.folders.iter().filter_map(|folder| folder.canonicalize().ok()));
    let people = std::env::home_dir();
    let is_private = |at: &Path| home.starts_with(at) || people.as_ref().is_some_and(|people| people.starts_with(at));
    launch.read.push(lease.to_owned());
    launch.read.extend(std::env::current_dir().ok().filter(|at| !is_private(at)));
    launch.write.extend([folder.to_owned(), objects.folder().to_owned()]);
    launch.hide.push(std::path::absolute(home).unwrap_or_else(|_| home.to_owned()));
    launch
}

/// Tells the head of models that came or went, and of what they do.
async fn watch_models(models: Arc<Models>) {
    /// Seconds between two looks into the folders.
    const LOOK_S: u64 = 3;
    let mut every = tokio::time::interval(std::time::Duration::from_secs(1));
    for second in 0u64.. {
        every.tick().await;
        if second % LOOK_S == 0 {
            let models = models.clone();
            // Only a panic ends it early, and that is told by the runtime.
            let _ = tokio::task::spawn_blocking(move || models.scan()).await;
        }
        models.report();
    }
}

/// Into the mesh, through the head.
fn join_mesh(door: &enroll::Door, shutdown: &CancellationToken) -> Result<(Member, Inbound), Error> {
    let (own, door) = (door.identity().clone(), door.clone());
    let enter: Enter = Arc::new(move || {
        let door = door.clone();
        Box::pin(async move {
            let client = Client::connect_as(&door.head, &door.credential(), Some(door.identity().clone())).await?;
            client.enter_mesh(door.identity().node()).await
        })
    });
    Member::join(&own, enter, shutdown.clone())
}

/// Once the worker is asked to stop, its actors move to others; then, or when time is up, it stops.
async fn hand_over(
    asked: CancellationToken,
    stop: CancellationToken,
    within: std::time::Duration,
    cluster: cluster::Cluster,
    runtime: Runtime,
    node: NodeId,
) {
    asked.cancelled().await;
    if !within.is_zero() && !runtime.is_empty() {
        let moved = async {
            let head = cluster.connect().await?;
            cluster.drain(&node).await?;
            while !runtime.is_empty() {
                if head.is_away() {
                    return Err(Error::unavailable("the head is gone"));
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            Ok::<_, Error>(())
        };
        match tokio::time::timeout(within, moved).await {
            Ok(Ok(())) => tracing::info!("all actors were handed over"),
            Ok(Err(error)) => tracing::warn!(%error, "actors could not be handed over"),
            Err(_) => tracing::warn!("stopping with actors that did not finish in time"),
        }
    }
    stop.cancel();
}

/// What a worker says of itself at every link.
pub(crate) struct Facts {
    pub node: NodeId,
    pub name: String,
    pub resources: Resources,
    pub labels: BTreeMap<String, String>,
    pub python: String,
    pub no_python: String,
    pub incarnation: u64,
    pub port: Option<WorkerPort>,
    pub machine: String,
    pub objects: Objects,
    pub isolation: Offer,
}
