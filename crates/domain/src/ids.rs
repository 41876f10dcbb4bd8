//! Identifiers. Newtypes over a shared string, so that a task id is never passed for a node id and a clone is a
//! reference count.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    )*};
}

id! {
    /// A durable request.
    TaskId;
    /// A conversation: tasks and messages that belong together.
    ContextId;
    /// The name of a kind of actor.
    AgentName;
    /// One live actor.
    ActorId;
    /// A process of the cluster; derived from its Ed25519 key, so it is the libp2p peer id too.
    NodeId;
    /// A model served by some worker.
    ModelName;
    /// One connected driver (a Python process, a CLI).
    SessionId;
    /// Who asks: the subject of the credentials.
    CallerId;
    /// A message inside a task's log.
    MessageId;
    /// A part of a message inside a task's log.
    PartId;
    /// One tool call.
    ToolCallId;
    /// A question to a person or client that holds a task up.
    InterruptId;
    /// Work delegated from inside a task.
    SubRunId;
    /// Something a task produced beside its answer.
    ArtifactId;
    /// SHA-256 of bytes, in hex: code blobs, inputs, artifacts.
    Digest;
}

impl Digest {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::of_hash(sha2::Sha256::new_with_prefix(bytes))
    }

    /// Of what was put into a hash.
    pub fn of_hash(hash: sha2::Sha256) -> Self {
        hash.finalize().iter().map(|b| format!("{b:02x}")).collect::<String>().into()
    }
}

impl ActorId {
    /// The virtual actor of an agent that a key names. It exists when it is spoken to.
    pub fn of_key(agent: &AgentName, key: &str) -> Self {
        Self::from(format!("{agent}/{key}"))
    }

    /// Agent and key of a virtual actor; `None` for one that was made.
    pub fn key(&self) -> Option<(&str, &str)> {
        self.as_str().split_once('/')
    }
}

/// The number that makes an older owner's writes worthless: it only rises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of the next owner.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
