//! Large requests of one caller wait for each other: what a large one costs (it is parsed, logged, sent to a worker, answered) is
//! paid by all who ask meanwhile, so each caller has few of them under way. They are parsed and answered by threads of a lower
//! priority. Small requests pass, and those that say that they are too large are refused before they are read.

use std::{collections::HashMap, panic::resume_unwind, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody as _},
    extract::Request,
    http::{HeaderValue, header},
    middleware::{Next, from_fn},
    response::Response,
};
use covey_domain::{CallerId, Error, ErrorKind, caps};
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Semaphore};
use tokio_util::task::AbortOnDropHandle;

use crate::{Caller, errors::refusal};

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
    background: Handle,
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
    pub fn new(background: Handle) -> Self {
        Self { lanes: Arc::default(), held: HELD, background }
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
        if let Some(length) = length_of(&request).filter(|length| *length > caps::MESSAGE_BYTES_MAX) {
            let (has, most) = (length >> 20, caps::MESSAGE_BYTES_MAX >> 20);
            let error = Error::new(ErrorKind::TooLarge, format!("the request has {has} MiB, the limit is {most} MiB"));
            return if crate::is_grpc(request.headers()) { refuse(&request, error) } else { too_large(&error) };
        }
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
        // It ends with its connection.
        let mut answer = AbortOnDropHandle::new(self.background.spawn(next.run(request)));
        let answer = match tokio::time::timeout(self.held, &mut answer).await {
            Ok(answer) => answer,
            Err(_) => {
                drop(turn);
                answer.await
            }
        };
        match answer.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(answer) => answer,
            Err(Ok(panic)) => resume_unwind(panic),
            // The process ends.
            Err(Err(_)) => std::future::pending().await,
        }
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

/// What a request says of the size of its body.
fn length_of(request: &Request) -> Option<usize> {
    let length = request.headers().get(header::CONTENT_LENGTH)?.to_str().ok();
    Some(length.and_then(|text| text.parse().ok()).unwrap_or(usize::MAX))
}

/// Of the body nothing is read; the connection ends with the answer.
fn too_large(error: &Error) -> Response {
    let faces = error.kind.faces();
    let body = serde_json::json!({"error": {
        "message": error.message, "type": faces.openai, "code": error.kind.name(), "hint": "send it in pieces, or as a file",
    }});
    let mut response = refusal(error, &body);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// A request and the size of its body. One that does not say it is read until it is known not to be small; then it counts as
/// large as may be.
async fn sized(request: Request) -> (Request, usize) {
    if let Some(length) = length_of(&request) {
        return (request, length);
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
        let admission = Admission { held, ..Admission::new(Handle::current()) };
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
    async fn who_says_that_it_is_too_large_is_not_read() {
        let room = Room::new();
        let (_, routes) = routes(&room, Duration::from_secs(3_600));
        let read = stream::poll_fn(|_| -> std::task::Poll<Option<std::io::Result<Bytes>>> { panic!("it is read") });
        let asked = request("loud", Body::from_stream(read), Some(caps::MESSAGE_BYTES_MAX + 1));
        let refused = routes.oneshot(asked).await.unwrap();
        assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(room.inside.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn large_requests_are_worked_on_in_the_background_and_small_ones_are_not() {
        let background = tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("long").build();
        let background = background.unwrap();
        let named = || async { std::thread::current().name() == Some("long") };
        let routes = Router::new().route("/", post(move |_: Bytes| async move { named().await.to_string() }));
        let refuse = |_: &Request, error: Error| (StatusCode::TOO_MANY_REQUESTS, error.message).into_response();
        let routes = Admission::new(background.handle().clone()).over(routes, refuse);
        let small = request("loud", Body::from("small"), Some(5));
        let both = [routes.clone().oneshot(small).await, routes.oneshot(large("loud")).await];
        assert_eq!(sizes(both.into()).await, ["false", "true"]);
        background.shutdown_background();
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
