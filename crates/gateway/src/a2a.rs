//! A2A.
use std::sync::Arc;
use axum::Router;
use crate::Cluster;
/// Routes.
pub fn router(_cluster: Arc<dyn Cluster>) -> Router { Router::new() }
