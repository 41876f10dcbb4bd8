//! Every client protocol. A protocol is `decode` (wire → command) and `encode` (log → frames) around
//! [`covey_domain::TaskEvent`]; what the gateway needs of the cluster is the port [`Cluster`].

pub mod a2a;
pub mod openai;
mod port;

pub use port::{Cluster, FoundTask, SayTask, SubmitTask, TaskQuery};

use std::sync::Arc;

use axum::{Router, extract::DefaultBodyLimit};
use covey_domain::{CallerId, caps};

/// Who asks; put into the request's extensions by the process's authentication layer.
#[derive(Clone, Debug)]
pub struct Caller(pub CallerId);

/// All routes of all protocols.
pub fn router(cluster: Arc<dyn Cluster>) -> Router {
    Router::new()
        .merge(a2a::router(cluster.clone()))
        .merge(openai::router(cluster))
        .layer(DefaultBodyLimit::max(caps::MESSAGE_BYTES_MAX))
}
