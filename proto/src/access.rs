//! Which kind of credential opens which method of our own services. The head asks this table before a request reaches a
//! service, the worker before it passes on what a Python process asks.
//!
//! A method that is not here is closed to everybody; a test compares the table with the `.proto` files.

/// Kinds of credentials, in the order of the table's columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A join token: of the cluster, or one that was made for a time.
    Join,
    /// A worker that was enrolled.
    Worker,
    /// Code in a process of a worker, which asks through that worker.
    Actor,
    /// A job that runs.
    Job,
    /// A caller's key.
    Caller,
    /// A caller's key that opens models too.
    Models,
    /// The key of whoever runs the cluster.
    Admin,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Join, Self::Worker, Self::Actor, Self::Job, Self::Caller, Self::Models, Self::Admin];

    /// Its name in messages and pages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Worker => "worker",
            Self::Actor => "actor",
            Self::Job => "job",
            Self::Caller => "caller",
            Self::Models => "caller with models",
            Self::Admin => "admin",
        }
    }
}

/// How far a credential reaches in a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It is closed.
    None,
    /// What is its own: its node, its session, its tasks. Another's is refused or not found.
    Own,
    /// Whatever the request names.
    All,
}

/// One row of a table of access.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Service and method, or the path of a route.
    pub path: &'static str,
    /// One sign for each of [`Kind::ALL`]: `-` nothing, `o` its own, `a` all.
    pub signs: &'static str,
}

impl Row {
    /// How far a kind of credential reaches.
    pub fn reach(&self, kind: Kind) -> Reach {
        match self.signs.as_bytes().get(kind as usize) {
            Some(b'a') => Reach::All,
            Some(b'o') => Reach::Own,
            _ => Reach::None,
        }
    }
}

const fn row(path: &'static str, signs: &'static str) -> Row {
    Row { path, signs }
}

/// All methods of `Link`, `Covey` and `Worker`. Columns: join, worker, actor, job, caller, caller with models, admin.
///
/// Own is: of `Enroll` the key that the request proves to have; of `RegisterAgent` a name that nobody else has registered;
/// of `CreateActor` the session that the process has an actor for, or none; of tasks those that this kind of credential
/// submitted, and the one whose capability the request shows; of `GetBlob` the folders of jobs that run there; of `ReadSecret` those that are for workers; of `SaveState`, `DrainNode`, `EnterMesh` and `Attach` the node of the credential; of `Calls` the session of
/// that name; of reminders the process's own actors. `Worker` is opened by a secret that the head gives to those who may
/// call `ListStores` and `Calls`.
pub const METHODS: &[Row] = &[
    row("/covey.v1.Link/Enroll", "oo-----"),
    row("/covey.v1.Link/Attach", "-o-----"),
    row("/covey.v1.Covey/RegisterAgent", "-ooa--a"),
    row("/covey.v1.Covey/ConnectAgent", "------a"),
    row("/covey.v1.Covey/AddKey", "------a"),
    row("/covey.v1.Covey/ListKeys", "------a"),
    row("/covey.v1.Covey/RemoveKey", "------a"),
    row("/covey.v1.Covey/AddJoinToken", "------a"),
    row("/covey.v1.Covey/RotateKey", "------a"),
    row("/covey.v1.Covey/SetSecret", "------a"),
    row("/covey.v1.Covey/ListSecrets", "------a"),
    row("/covey.v1.Covey/RemoveSecret", "------a"),
    row("/covey.v1.Covey/ReadSecret", "-o-----"),
    row("/covey.v1.Covey/PutBlob", "-aaa--a"),
    row("/covey.v1.Covey/GetBlob", "-o-a--a"),
    row("/covey.v1.Covey/PutArtifact", "-aaa--a"),
    row("/covey.v1.Covey/GetArtifact", "-aaa--a"),
    row("/covey.v1.Covey/ListAgents", "-aaa--a"),
    row("/covey.v1.Covey/CreateActor", "-aoa--a"),
    row("/covey.v1.Covey/ListActors", "-aaa--a"),
    row("/covey.v1.Covey/GetActor", "-aaa--a"),
    row("/covey.v1.Covey/StopActor", "-aaa--a"),
    row("/covey.v1.Covey/CreateGang", "-aoa--a"),
    row("/covey.v1.Covey/LinkActors", "-aaa--a"),
    row("/covey.v1.Covey/ListDeadLetters", "---a--a"),
    row("/covey.v1.Covey/Submit", "-ooo--o"),
    row("/covey.v1.Covey/GetTask", "-ooo--o"),
    row("/covey.v1.Covey/ListTasks", "---o--o"),
    row("/covey.v1.Covey/CancelTask", "-ooo--o"),
    row("/covey.v1.Covey/SayTask", "-ooo--o"),
    row("/covey.v1.Covey/Subscribe", "---o--o"),
    row("/covey.v1.Covey/ReadEvents", "-ooo--o"),
    row("/covey.v1.Covey/Status", "-aaa--a"),
    row("/covey.v1.Covey/DrainNode", "-o----a"),
    row("/covey.v1.Covey/SaveState", "-o-----"),
    row("/covey.v1.Covey/SetReminder", "-aoa--a"),
    row("/covey.v1.Covey/ForgetReminder", "-aoa--a"),
    row("/covey.v1.Covey/JoinTopic", "-aaa--a"),
    row("/covey.v1.Covey/LeaveTopic", "-aaa--a"),
    row("/covey.v1.Covey/ListTopics", "-aaa--a"),
    row("/covey.v1.Covey/ListStores", "-aaa--a"),
    row("/covey.v1.Covey/EnterMesh", "-o-a--a"),
    row("/covey.v1.Covey/Calls", "-oaa--a"),
    row("/covey.v1.Worker/Calls", "-a-a--a"),
    row("/covey.v1.Worker/PutObject", "-a-a--a"),
    row("/covey.v1.Worker/GetObject", "-a-a--a"),
    row("/covey.v1.Worker/ReadLogs", "-a-a--a"),
    row("/covey.v1.Worker/GetStack", "-a-a--a"),
    row("/covey.v1.Worker/GetUsage", "-a-a--a"),
];

/// Whether code in a process may ask for a method of `Covey`.
pub fn actor_may(method: &str) -> Reach {
    let found = METHODS.iter().find(|row| row.path.strip_prefix("/covey.v1.Covey/") == Some(method));
    found.map_or(Reach::None, |row| row.reach(Kind::Actor))
}
