//! Whether this head takes work, for those who ask by HTTP (`/readyz`) and by gRPC's health protocol.

use std::{sync::Arc, time::Duration};

use covey_domain::caps;
use covey_store::Capacity;
use futures::{StreamExt as _, stream::BoxStream};
use tokio::{
    sync::{Mutex, Semaphore},
    time::Instant,
};
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};

use crate::Shared;

/// A loop or a store that does not answer within this time stands still.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// What was found is told again for so long: finding it is an fsync, and whoever asks may be anybody.
const GOOD_FOR: Duration = Duration::from_millis(100);
/// How often those who watch are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What was found.
pub(crate) type Found = Result<(), &'static str>;

/// Finds out whether the head takes work: the loop turns, and the store writes and has room.
#[derive(Clone)]
pub(crate) struct Readiness {
    shared: Shared,
    /// Found last, and when. One looks at a time.
    last: Arc<Mutex<Option<(Instant, Found)>>>,
}

impl Readiness {
    pub fn new(shared: Shared) -> Self {
        Self { shared, last: Arc::default() }
    }

    pub async fn look(&self) -> Found {
        if self.shared.shutdown.is_cancelled() {
            return Err("it stops");
        }
        let mut last = self.last.lock().await;
        if let Some((at, found)) = *last
            && at.elapsed() < GOOD_FOR
        {
            return found;
        }
        let found = self.find().await;
        *last = Some((Instant::now(), found));
        found
    }

    async fn find(&self) -> Found {
        let shared = &self.shared;
        if !shared.pulse.beats(PATIENCE).await {
            return Err("the loop stands still");
        }
        match shared.store.capacity() {
            Capacity::Free => {}
            Capacity::Behind => return Err("the tables are behind"),
            Capacity::DiskFull => return Err("the disk is full"),
        }
        let store = shared.store.clone();
        let synced = tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(move || store.probe())).await;
        match synced {
            Ok(Ok(Ok(()))) => Ok(()),
            _ => Err("the store does not write"),
        }
    }
}

/// `grpc.health.v1.Health`. All services are ready together, so the empty name and each of theirs say the same.
pub(crate) struct HealthService {
    readiness: Readiness,
    watchers: Arc<Semaphore>,
}

/// Services that can be asked about.
const SERVICES: &[&str] = &["", "covey.v1.Covey", "covey.v1.Link", "lf.a2a.v1.A2AService", "a2a.v1.A2AService"];

fn says(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

fn status(found: Found) -> ServingStatus {
    match found {
        Ok(()) => ServingStatus::Serving,
        Err(_) => ServingStatus::NotServing,
    }
}

impl HealthService {
    pub fn new(readiness: Readiness) -> Self {
        Self { readiness, watchers: Arc::new(Semaphore::new(caps::HEALTH_WATCHERS_MAX)) }
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !SERVICES.contains(&request.get_ref().service.as_str()) {
            return Err(Status::not_found("there is no such service"));
        }
        Ok(Response::new(says(status(self.readiness.look().await))))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        // The protocol's own words: a service that is not known may come, so the stream stays open.
        let known = SERVICES.contains(&request.get_ref().service.as_str());
        let Ok(turn) = self.watchers.clone().try_acquire_owned() else {
            return Err(Status::resource_exhausted("too many watch; `Check` answers"));
        };
        let readiness = self.readiness.clone();
        let stops = readiness.shared.shutdown.clone();
        let stream = async_stream::stream! {
            let _turn = turn;
            let mut told = None;
            loop {
                let now = if known { status(readiness.look().await) } else { ServingStatus::ServiceUnknown };
                if told != Some(now) {
                    told = Some(now);
                    yield Ok(says(now));
                }
                if stops.is_cancelled() {
                    return;
                }
                tokio::select! {
                    () = stops.cancelled() => {}
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
            }
        };
        Ok(Response::new(stream.boxed()))
    }
}
