//! What actors may ask of the cluster around their worker.

use bytes::Bytes;
use covey_domain::Error;
use covey_proto::v1::CallFrame;
use futures::future::BoxFuture;
use tokio::sync::mpsc;

/// The worker's way to the rest of the cluster.
pub trait Outward: Send + Sync + 'static {
    /// A stream of calls to other actors: takes where answers go, gives where calls go. Calls keep their order.
    fn lane(&self, answers: mpsc::UnboundedSender<CallFrame>) -> mpsc::UnboundedSender<CallFrame>;

    /// A method of service `covey.v1.Covey` by name, with its encoded request; gives the encoded reply.
    fn verb(&self, name: String, body: Bytes) -> BoxFuture<'static, Result<Bytes, Error>>;
}
