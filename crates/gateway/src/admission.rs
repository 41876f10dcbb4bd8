//! Large requests of one caller wait for each other: what a large one costs (it is parsed, logged, sent to a worker, answered) is
//! paid by all who ask meanwhile, so each caller has few of them under way. Small requests pass.

use std::{collections::HashMap, pin::pin, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody as _},
    extract::Request,
    http::header,
    middleware::{Next, from_fn},
    response::Response,
};
use covey_domain::{CallerId, Error, ErrorKind, caps};
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::Caller;

/// A body up to this size is small, bytes.
const SMALL: usize = 32 << 10;
/// A request keeps its place until it is answered, and not longer: then it waits for something else than the head, a model or a person.
const HELD: Duration = Duration::from_millis(250);
/// Places are counted in these, bytes.
const UNIT: usize = 1 << 10;

/// Large requests by caller.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    lanes: Arc<Mutex<HashMap<CallerId, Lane>>>,
    held: Duration,
}

/// Those of one caller.
#[derive(Debug)]
struct Lane {
    room: Arc<Semaphore>,
    /// Under way and waiting.
    requests: usize,
}

/// One request among them, until it is dropped.
struct Place {
    of: Admission,
    caller: CallerId,
}

impl Admission {
    pub fn new() -> Self {
        Self { lanes: Arc::default(), held: HELD }
    }

    /// Counts one more large request of a caller, which may wait for its turn then.
    fn enter(&self, caller: &CallerId) -> Result<(Place, Arc<Semaphore>), Error> {
        let mut lanes = self.lanes.lock();
        let lane = lanes.entry(caller.clone()).or_insert_with(|| Lane {
            room: Arc::new(Semaphore::new(caps::CALLER_LARGE_BYTES_MAX / UNIT)),
            requests: 0,
        });
        if lane.requests >= caps::CALLER_LARGE_REQUESTS_MAX {
            let why = format!("{} large requests of `{caller}` are under way", lane.requests);
            let hint = format!("large is more than {} KiB; send the next one when one is answered", SMALL >> 10);
            return Err(Error::new(ErrorKind::Overloaded, why).hint(hint));
        }
        lane.requests += 1;
        Ok((Place { of: self.clone(), caller: caller.clone() }, lane.room.clone()))
    }

    /// Routes where large requests wait for those of the same caller; `refuse` says that too many wait.
    pub fn over(&self, routes: Router, refuse: fn(&Request, Error) -> Response) -> Router {
        let admission = self.clone();
        routes.layer(from_fn(move |request, next| admission.clone().pass(request, next, refuse)))
    }

    async fn pass(self, request: Request, next: Next, refuse: fn(&Request, Error) -> Response) -> Response {
        let Some(Caller { id: caller, .. }) = request.extensions().get().cloned() else {
            return next.run(request).await;
        };
        let (request, bytes) = sized(request).await;
        if bytes <= SMALL {
            return next.run(request).await;
        }
        let (place, room) = match self.enter(&caller) {
            Ok(entered) => entered,
            Err(error) => return refuse(&request, error),
        };
        let units = bytes.min(caps::CALLER_LARGE_BYTES_MAX) / UNIT;
        // It is never closed.
        let turn = (room.acquire_many_owned(units as u32).await, place);
        let mut answer = pin!(next.run(request));
        if let Ok(answer) = tokio::time::timeout(self.held, &mut answer).await {
            return answer;
        }
        drop(turn);
        answer.await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lanes = self.of.lanes.lock();
        if let Some(lane) = lanes.get_mut(&self.caller) {
            lane.requests -= 1;
            if lane.requests == 0 {
                lanes.remove(&self.caller);
            }
        }
    }
}

/// A request and the size of its body. One that does not say it is read until it is known not to be small; then it counts as
/// large as may be.
async fn sized(request: Request) -> (Request, usize) {
    if let Some(length) = request.headers().get(header::CONTENT_LENGTH) {
        let length = length.to_str().ok().and_then(|text| text.parse().ok());
        return (request, length.unwrap_or(usize::MAX));
    }
    if request.body().is_end_stream() {
        return (request, 0);
    }
    let (parts, body) = request.into_parts();
    let (mut read, mut bytes, mut rest) = (Vec::new(), 0, body.into_data_stream());
    while bytes <= SMALL {
        let Some(piece) = rest.next().await else { break };
        bytes += piece.as_ref().map_or(0, Bytes::len);
        let failed = piece.is_err();
        read.push(piece);
        if failed {
            break;
        }
    }
    let size = if bytes > SMALL { usize::MAX } else { bytes };
    (Request::from_parts(parts, Body::from_stream(stream::iter(read).chain(rest))), size)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::{extract::State, http::StatusCode, response::IntoResponse as _, routing::post};
    use futures::future::join_all;
    use tower::ServiceExt as _;

    use super::*;

    /// Where the requests of a test wait, each for a permit.
    #[derive(Debug)]
    struct Room {
        inside: AtomicUsize,
        most: AtomicUsize,
        open: Semaphore,
    }

    impl Room {
        fn new() -> Arc<Self> {
            Arc::new(Self { inside: AtomicUsize::new(0), most: AtomicUsize::new(0), open: Semaphore::new(0) })
        }

        /// All that can come in without time passing is in then.
        async fn settled(&self) -> usize {
            for _ in 0..1_000 {
                tokio::task::yield_now().await;
            }
            self.inside.load(Ordering::SeqCst)
        }
    }

    async fn handle(State(room): State<Arc<Room>>, body: Bytes) -> String {
        let inside = room.inside.fetch_add(1, Ordering::SeqCst) + 1;
        room.most.fetch_max(inside, Ordering::SeqCst);
        room.open.acquire().await.unwrap().forget();
        room.inside.fetch_sub(1, Ordering::SeqCst);
        body.len().to_string()
    }

    fn routes(room: &Arc<Room>, held: Duration) -> (Admission, Router) {
        let admission = Admission { held, ..Admission::new() };
        let routes = Router::new().route("/", post(handle)).with_state(room.clone());
        let refuse = |_: &Request, error: Error| (StatusCode::TOO_MANY_REQUESTS, error.message).into_response();
        (admission.clone(), admission.over(routes, refuse))
    }

    fn request(caller: &str, body: Body, length: Option<usize>) -> Request {
        let mut request = Request::post("/").extension(Caller::of_all(caller.into())).body(body).unwrap();
        if let Some(length) = length {
            request.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        }
        request
    }

    fn large(caller: &str) -> Request {
        request(caller, Body::from(vec![b'x'; 1 << 20]), Some(1 << 20))
    }

    async fn sizes(answers: Vec<Result<Response, std::convert::Infallible>>) -> Vec<String> {
        let bodies = answers.into_iter().map(|answer| axum::body::to_bytes(answer.unwrap().into_body(), 100));
        join_all(bodies).await.into_iter().map(|body| String::from_utf8(body.unwrap().into()).unwrap()).collect()
    }

    #[tokio::test]
    async fn large_requests_of_a_caller_come_one_by_one_and_others_pass() {
        let room = Room::new();
        let (admission, routes) = routes(&room, Duration::from_secs(3_600));
        // One that does not say how large it is counts as large.
        let unsaid = Body::from_stream(stream::iter([0; 3].map(|_| Ok::<_, std::io::Error>(vec![b'x'; SMALL]))));
        let loud = [large("loud"), request("loud", unsaid, None), large("loud")];
        let loud = tokio::spawn(join_all(loud.map(|request| routes.clone().oneshot(request))));
        assert_eq!(room.settled().await, 1);
        let unsaid = Body::from_stream(stream::iter([Ok::<_, std::io::Error>("small")]));
        let others = [large("quiet"), request("loud", Body::from("small"), Some(5)), request("loud", unsaid, None)];
        let others = tokio::spawn(join_all(others.map(|request| routes.clone().oneshot(request))));
        assert_eq!(room.settled().await, 4);
        room.open.add_permits(6);
        assert_eq!(sizes(others.await.unwrap()).await, ["1048576", "5", "5"]);
        let whole = (3 * SMALL).to_string();
        assert_eq!(sizes(loud.await.unwrap()).await, ["1048576", &whole, "1048576"], "none of it was lost");
        assert_eq!(room.most.load(Ordering::SeqCst), 4);
        assert!(admission.lanes.lock().is_empty());
    }

    #[tokio::test]
    async fn a_request_that_waits_for_something_else_lets_the_next_one_pass() {
        let room = Room::new();
        let (_, routes) = routes(&room, Duration::from_millis(1));
        let both = tokio::spawn(join_all([0, 1].map(|_| routes.clone().oneshot(large("loud")))));
        while room.inside.load(Ordering::SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        room.open.add_permits(2);
        assert_eq!(sizes(both.await.unwrap()).await, ["1048576"; 2]);
    }

    #[tokio::test]
    async fn too_many_of_one_caller_are_refused_and_who_leaves_makes_room() {
        let room = Room::new();
        let (admission, routes) = routes(&room, Duration::from_secs(3_600));
        let waiting = |_| tokio::spawn(routes.clone().oneshot(large("loud")));
        let many: Vec<_> = (0..caps::CALLER_LARGE_REQUESTS_MAX).map(waiting).collect();
        assert_eq!(room.settled().await, 1);
        let refused = routes.clone().oneshot(large("loud")).await.unwrap();
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        many.iter().for_each(tokio::task::JoinHandle::abort);
        room.settled().await;
        assert!(admission.lanes.lock().is_empty());
    }
}
