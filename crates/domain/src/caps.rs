//! Every bound of the system has a name, and it is here.

/// Largest request body of any protocol, and largest payload of one call, bytes.
pub const MESSAGE_BYTES_MAX: usize = 32 << 20;
/// Bytes put into one message of a stream of frames, unless a single frame is larger.
pub const BATCH_BYTES_MAX: usize = 16 << 20;
/// Levels that JSON of a request, an answer or a definition may be nested. What is stored is parsed with a bound of 128
/// levels, and the record around a value takes up to a dozen.
pub const JSON_DEPTH_MAX: usize = 64;
/// Bytes of memory that the values of JSON that a stranger wrote may take, by [`crate::json::weigh`]: about 900,000 numbers, or 100,000
/// small objects.
pub const JSON_MEMORY_MAX: usize = 64 << 20;
/// Largest code blob a driver may ship, bytes.
pub const CODE_BYTES_MAX: usize = 24 << 20;
/// Calls and tasks waiting in one actor's mailbox.
pub const MAILBOX_DEPTH_MAX: usize = 10_000;
/// Bytes of arguments of the calls that one actor has accepted and not answered; one call is always taken.
pub const MAILBOX_BYTES_MAX: usize = 512 << 20;
/// Tasks waiting for an actor, over all agents.
pub const TASK_QUEUE_DEPTH_MAX: usize = 100_000;
/// Tasks of one caller that have not ended.
pub const CALLER_TASKS_MAX: usize = 10_000;
/// The same of all drivers together, which have the key of the whole cluster: others find room beside them.
pub const DRIVER_TASKS_MAX: usize = TASK_QUEUE_DEPTH_MAX / 10 * 9;
/// Bytes that one caller's tasks may take in the store, where the head is told nothing else (`--caller-gb`).
pub const CALLER_STORE_BYTES: u64 = 50_000_000_000;
/// Bytes that one caller's tasks that have not ended were asked with.
pub const CALLER_TASK_BYTES_MAX: usize = 256 << 20;
/// Bytes that all tasks that have not ended were asked with.
pub const TASK_BYTES_MAX: usize = 1 << 30;
/// Streams that one caller reads at once.
pub const CALLER_STREAMS_MAX: usize = 1_000;
/// Bytes of memory that the tasks of one page of a list take about; the page ends with the task that takes it above.
pub const LIST_PAGE_BYTES_MAX: usize = 8 << 20;
/// Bytes that the tasks were asked with whose beginnings one caller's streams show at once, one such task aside: a reader that
/// does not read holds them.
pub const CALLER_STREAM_BYTES_MAX: usize = 32 << 20;
/// Bytes of one caller's answers that are not written yet, one such answer aside: a reader that does not read holds them.
pub const CALLER_ANSWER_BYTES_MAX: usize = 64 << 20;
/// Answers of one caller that are made at once from logs of tasks, whose sizes nobody knows before.
pub const CALLER_ANSWERS_MADE_MAX: usize = 8;
/// Bytes of one caller's large requests that are worked on at once, one such request aside.
pub const CALLER_LARGE_BYTES_MAX: usize = 256 << 10;
/// Large requests of one caller that are worked on or wait for their turn.
pub const CALLER_LARGE_REQUESTS_MAX: usize = 64;
/// Requests waiting for one model's engine.
pub const MODEL_QUEUE_DEPTH_MAX: usize = 1_024;
/// Items a stream may be ahead of its reader.
pub const STREAM_WINDOW: u32 = 256;
/// Frames waiting to be written to one worker's link: starts and stops of all that it may have.
pub const LINK_QUEUE_DEPTH_MAX: usize = 2_000_000;
/// Their bytes.
pub const LINK_QUEUE_BYTES_MAX: usize = 1 << 30;
/// Frames waiting to be written to one client: answers to all the calls that it may have open, and where its actors are.
pub const CLIENT_QUEUE_DEPTH_MAX: usize = 4 * CALLS_OPEN_MAX;
/// Their bytes.
pub const CLIENT_QUEUE_BYTES_MAX: usize = 512 << 20;
/// Inputs waiting for the head's owner loop.
pub const OWNER_QUEUE_DEPTH_MAX: usize = 65_536;
/// Messages of entries that one link has given to the head's owner loop and that are not taken yet, and their bytes.
pub const LINK_HANDED_MAX: usize = 1_024;
/// See [`LINK_HANDED_MAX`].
pub const LINK_HANDED_BYTES_MAX: usize = 16 << 20;
/// Bytes that one attempt's log on a worker may be ahead of the head's disk before the turn waits: what a small message of somebody
/// else waits for at most, of each task that says much.
pub const TASK_AHEAD_BYTES_MAX: usize = 256 << 10;
/// Bytes of events that share an entry of a worker's outbox, and that the head's owner takes at once, unless one alone has more.
pub const ENTRY_BYTES_MAX: usize = 64 << 10;
/// Entries a worker keeps for the head until they are durable.
pub const OUTBOX_DEPTH_MAX: usize = 1_000_000;
/// Events of a live task kept in memory for readers; older ones are read from the store.
pub const FEED_EVENTS_MAX: usize = 4_096;
/// Their bytes.
pub const FEED_TASK_BYTES_MAX: usize = 4 << 20;
/// Bytes of those of all tasks.
pub const FEED_BYTES_MAX: usize = 256 << 20;
/// Message ids of tasks that ended last, kept in memory for idempotent submission; older ones are looked up on disk.
pub const MESSAGE_IDS_RECENT_MAX: usize = 32_768;
/// Calls a client may have open at once.
pub const CALLS_OPEN_MAX: usize = 100_000;
/// Attempts of one task before a crash counts as its own fault.
pub const TASK_ATTEMPTS_MAX: u32 = 5;
/// Attempts of a task, and tries of a call, that may be lost before it runs with no other beside it.
pub const ALONE_AFTER: u32 = 2;
/// Drivers that are connected, or may come back.
pub const SESSIONS_MAX: usize = 10_000;
/// A driver whose connection broke has this long to come back before its actors end, where nothing else is said; and what it
/// asks of a head that is away waits as long.
pub const SESSION_GRACE_MS: u64 = 30_000;
/// Reminders set in a cluster.
pub const REMINDERS_MAX: usize = 1_000_000;
/// Largest state of one actor, bytes.
pub const STATE_BYTES_MAX: usize = 16 << 20;
/// Answers to calls with keys that go with an actor's state, bytes; of older ones and larger ones it is only known that they
/// were given.
pub const ANSWERED_BYTES_MAX: usize = 1 << 20;
/// Bytes of an agent's own exception (base64) that the log of a task keeps.
pub const ERROR_DETAIL_MAX: usize = 64 << 10;
/// Bytes of the message, and of the detail, of an error of a call.
pub const CALL_ERROR_BYTES_MAX: usize = 1 << 20;
/// Longest agent name, characters.
pub const AGENT_NAME_MAX: usize = 64;
/// Longest name in an event of a task's log: of a tool, a model, a surface, a source, bytes.
pub const EVENT_NAME_MAX: usize = 4 << 10;
/// Models whose tokens one turn counts apart.
pub const TURN_MODELS_MAX: usize = 64;
/// Bytes of events that a turn may have written beyond what the head has on disk, where it does not wait for that: what a method says
/// beside its answer. With more it ends.
pub const TURN_UNSAVED_BYTES_MAX: usize = 64 << 20;
/// Longest name or label of a worker, a model or an actor, bytes.
pub const SHOWN_NAME_MAX: usize = 256;
/// Events read from the store at once.
pub const EVENT_PAGE_MAX: usize = 1_024;
/// Bytes of events read from the store at once, unless one row alone has more.
pub const EVENT_PAGE_BYTES_MAX: usize = 1 << 20;
/// Bytes of the log that the tables may be behind; above it new work waits, then is refused.
pub const STORE_LAG_BYTES_MAX: usize = 64 << 20;
/// Bytes of one file of the log, above which the same holds.
pub const STORE_LOG_BYTES_MAX: u64 = 96 << 20;
/// Places in logs that are kept for readers who come back.
pub const BOOKMARKS_MAX: usize = 4_096;
/// What a job may print; beyond it nothing is kept.
pub const JOB_LOG_BYTES_MAX: usize = 64 << 20;
/// Lines that a worker tells one driver of what its actors print, each second; more is left out and counted.
pub const PRINTED_LINES_PER_S_MAX: usize = 1_000;
/// Bytes of these, each second.
pub const PRINTED_BYTES_PER_S_MAX: usize = 1 << 20;
/// Bytes of one such line; the rest is left out.
pub const PRINTED_LINE_BYTES_MAX: usize = 16 << 10;
/// Batches of such lines that wait in a driver to be shown; more are left out and counted.
pub const PRINTED_QUEUE_DEPTH_MAX: usize = 64;
/// Workers that a driver listens to for what its actors print.
pub const PRINTED_WORKERS_MAX: usize = 256;
/// Actors that a worker remembers, after they are over, for who wants to read what they printed.
pub const PAST_LOGS_MAX: usize = 10_000;
/// Lives of one actor whose logs are read one after the other.
pub const PAST_LIVES_MAX: usize = 16;
/// Actors in a picture of the cluster.
pub const STATUS_ACTORS_MAX: usize = 1_000;
/// Entries of one page of a listing.
pub const PAGE_MAX: usize = 10_000;
/// Bytes of a topic's name.
pub const TOPIC_NAME_MAX: usize = 256;
/// Actors that listen to one topic.
pub const TOPIC_MEMBERS_MAX: usize = 100_000;
/// Actors of one gang.
pub const GANG_MAX: usize = 10_000;
/// Pairs of linked actors.
pub const LINKS_MAX: usize = 100_000;
/// Dead letters that are kept; the oldest go.
pub const DEAD_LETTERS_MAX: usize = 1_000;
/// Bytes of a dead letter's error, and of its method's name; what is longer is cut.
pub const DEAD_LETTER_TEXT_MAX: usize = 4_096;
/// Processes that a call may end before it is not tried again.
pub const POISON_AFTER: u32 = 3;
/// Messages to one task while it runs.
pub const TASK_MESSAGES_MAX: usize = 1_000;
/// Tasks of one actor that wait for an answer from outside, beside those that run.
pub const TASKS_RESTING_MAX: usize = 5_000;
/// Bytes of a file that travel with its message; those of a larger one go to the artifact store.
pub const FILE_INLINE_MAX: usize = 256 << 10;
/// Bytes of one file.
pub const ARTIFACT_BYTES_MAX: u64 = 4 << 30;
/// Bytes of a file that travel at once to or from the artifact store.
pub const ARTIFACT_CHUNK: usize = 8 << 20;
/// Files on their way to the artifact store at once.
pub const ARTIFACT_UPLOADS_MAX: usize = 256;
/// Webhooks of one task.
pub const HOOKS_PER_TASK_MAX: usize = 16;
/// Webhooks of one caller that are not told everything yet.
pub const CALLER_HOOKS_MAX: usize = 2_000;
/// Bytes of a webhook's id or token.
pub const HOOK_TEXT_MAX: usize = 4_096;
/// Bound of the first pause before a failed call or task is tried again, milliseconds.
pub const RETRY_BACKOFF_MS: u64 = 100;
/// Bound of every such pause, milliseconds.
pub const RETRY_BACKOFF_MAX_MS: u64 = 30_000;
/// An agent's tasks and actors wait this long for a place where nothing else is said, milliseconds.
pub const SCHEDULE_TIMEOUT_MS: u64 = 300_000;
/// How long a constructor may take where its agent has no `schedule_timeout`: long enough to load a large model.
pub const START_TIMEOUT_MS: u64 = 1_800_000;
/// A turn that was given up (cancelled, or over its run timeout) has this long to say so before it counts as stuck.
pub const STUCK_AFTER_MS: u64 = 100;
/// A stuck turn has this long to end before its process is replaced, milliseconds.
pub const STUCK_GRACE_MS: u64 = 5_000;
/// Actors of a process that is replaced have this long to finish the turns that run and to move, milliseconds.
pub const REPLACE_MS: u64 = 30_000;
/// A process that is replaced has this long to say that it begins nothing more, milliseconds.
pub const REPLACE_ANSWER_MS: u64 = 5_000;
/// Files in a working folder.
pub const FOLDER_FILES_MAX: usize = 100_000;
/// Bytes of a working folder, unpacked.
pub const FOLDER_BYTES_MAX: u64 = 4 << 30;
/// Characters of a secret's name.
pub const SECRET_NAME_MAX: usize = 64;
/// Bytes of a secret.
pub const SECRET_BYTES_MAX: usize = 64 << 10;
/// Secrets that a head keeps.
pub const SECRETS_MAX: usize = 1_000;
/// Join tokens that are good at once, beside the cluster's own.
pub const JOIN_TOKENS_MAX: usize = 1_000;
/// Connections that a port serves at once.
pub const CONNECTIONS_MAX: usize = 20_000;
/// Connections of one address beyond this machine, or of a /64 of IPv6.
pub const CONNECTIONS_PER_ADDRESS_MAX: usize = 2_000;
/// Addresses whose connections broke the protocol lately, as far as they are remembered.
pub const OFFENDERS_MAX: usize = 4_096;
/// Streams that one HTTP/2 connection may have had reset for what it sent on them, before it is closed.
pub const HTTP2_RESETS_MAX: usize = 64;
/// Requests of one HTTP/2 connection at once.
pub const HTTP2_STREAMS_MAX: u32 = 256;
/// Streams that watch whether a head takes work.
pub const HEALTH_WATCHERS_MAX: usize = 256;
/// Headers of one request, bytes.
pub const HEADER_BYTES_MAX: usize = 64 << 10;
/// Points of a picture that is read.
pub const PICTURE_PIXELS_MAX: u64 = 25_000_000;
/// Seconds of sound that are read of one file: what is held of it is 460 MB.
pub const SOUND_SECONDS_MAX: u64 = 2 * 3_600;
/// Samples a second that sound may have.
pub const SOUND_RATE_MAX: u32 = 768_000;
