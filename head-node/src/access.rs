//! Who may do what: every route of this port and every kind of credential, in one table. Methods of our own services are in
//! [`covey_proto::access`]; the rest is here. What is in neither is closed to everybody.

use std::{collections::HashMap, sync::LazyLock};

pub(crate) use covey_proto::access::Kind;
use covey_proto::access::{METHODS, Row};

/// Routes that answer without credentials.
pub(crate) const OPEN: &[&str] = &[LIVE, READY, HEALTH, "/.well-known/jwks.json", "/v1/artifacts/{digest}/{name}"];

/// Tells that this process runs.
pub(crate) const LIVE: &str = "/livez";
/// Tells that the head takes work: the loop turns, and the store writes and has room.
pub(crate) const READY: &str = "/readyz";
/// The same by gRPC's health protocol.
pub(crate) const HEALTH: &str = "/grpc.health.v1.Health/{*rest}";

/// A2A, OpenAI and what the owner looks at. Columns as in [`Kind::ALL`]; own is: of A2A the caller's tasks and the agents of
/// its key, of models what is its own there (stored responses).
pub(crate) const ROUTES: &[Row] = &[
    row("/v1/cluster", "------a"),
    row("/metrics", "------a"),
    row("/.well-known/agent-card.json", "----ooo"),
    row("/.well-known/agent.json", "----ooo"),
    row("/.well-known/api-catalog", "----ooo"),
    row("/a2a/{agent}/.well-known/agent-card.json", "----ooo"),
    row("/a2a/{agent}/.well-known/agent.json", "----ooo"),
    row("/", "----ooo"),
    row("/a2a", "----ooo"),
    row("/a2a/", "----ooo"),
    row("/a2a/message:send", "----ooo"),
    row("/a2a/message:stream", "----ooo"),
    row("/a2a/tasks", "----ooo"),
    row("/a2a/tasks/{*rest}", "----ooo"),
    row("/a2a/extendedAgentCard", "----ooo"),
    row("/a2a/v1/{*rest}", "----ooo"),
    row("/a2a/{agent}", "----ooo"),
    row("/a2a/{agent}/", "----ooo"),
    row("/a2a/{agent}/{*rest}", "----ooo"),
    row("/v1/tasks/{id}/events", "----ooo"),
    row("/v1/push-notifications", "----ooo"),
    row("/v1/push-notifications/{task}/{id}/replay", "----ooo"),
    row("/lf.a2a.v1.A2AService/{method}", "----ooo"),
    row("/a2a.v1.A2AService/{method}", "----ooo"),
    row("/v1/models", "-----oo"),
    row("/v1/models/{*model}", "-----oo"),
    row("/v1/chat/completions", "-----oo"),
    row("/v1/completions", "-----oo"),
    row("/v1/embeddings", "-----oo"),
    row("/v1/audio/transcriptions", "-----oo"),
    row("/v1/audio/translations", "-----oo"),
    row("/rerank", "-----oo"),
    row("/v1/rerank", "-----oo"),
    row("/v2/rerank", "-----oo"),
    row("/v1/responses", "-----oo"),
    row("/v1/responses/{id}", "-----oo"),
    row("/v1/responses/{id}/input_items", "-----oo"),
];

/// What changes who may do what, or what code runs: each of these is in the audit log.
const AUDITED: &[&str] = &[
    "/covey.v1.Link/Enroll",
    "/covey.v1.Covey/RegisterAgent",
    "/covey.v1.Covey/ConnectAgent",
    "/covey.v1.Covey/AddKey",
    "/covey.v1.Covey/RemoveKey",
    "/covey.v1.Covey/AddJoinToken",
    "/covey.v1.Covey/RotateKey",
    "/covey.v1.Covey/SetSecret",
    "/covey.v1.Covey/RemoveSecret",
    "/covey.v1.Covey/ReadSecret",
    "/covey.v1.Covey/DrainNode",
];

/// A method of a gRPC service: its path begins with a package's name.
pub(crate) fn is_of_grpc(path: &str) -> bool {
    path.strip_prefix('/').and_then(|path| path.split_once('/')).is_some_and(|(service, _)| service.contains(".v1."))
}

/// Whether that somebody did this is written down.
pub(crate) fn is_audited(path: &str) -> bool {
    AUDITED.contains(&path)
}

const fn row(path: &'static str, signs: &'static str) -> Row {
    Row { path, signs }
}

/// Rows by path; those with names in braces are tried one after the other.
struct Rows {
    exact: HashMap<&'static str, &'static Row>,
    shaped: Vec<&'static Row>,
}

static ROWS: LazyLock<Rows> = LazyLock::new(|| {
    // `Worker` is a service of the workers' own ports.
    let methods = METHODS.iter().filter(|row| !row.path.starts_with("/covey.v1.Worker/"));
    let (shaped, exact): (Vec<&'static Row>, Vec<&'static Row>) =
        methods.chain(ROUTES).partition(|row| row.path.contains('{'));
    Rows { exact: exact.into_iter().map(|row| (row.path, row)).collect(), shaped }
});

/// The row of a path; `None`: there is nothing.
pub(crate) fn row_of(path: &str) -> Option<&'static Row> {
    let rows = &*ROWS;
    rows.exact.get(path).copied().or_else(|| rows.shaped.iter().copied().find(|row| fits(row.path, path)))
}

/// Whether a path answers without credentials.
pub(crate) fn is_open(path: &str) -> bool {
    OPEN.iter().any(|shape| fits(shape, path))
}

/// Whether `path` has a shape as axum writes it: `{name}` is one segment, `{*rest}` all that follow.
fn fits(shape: &str, path: &str) -> bool {
    let (mut shapes, mut segments) = (shape.split('/'), path.split('/'));
    loop {
        match (shapes.next(), segments.next()) {
            (None, None) => return true,
            (Some(shape), Some(_)) if shape.starts_with("{*") => return true,
            (Some(shape), Some(segment)) if shape.starts_with('{') => {
                if segment.is_empty() {
                    return false;
                }
            }
            (Some(shape), Some(segment)) if shape == segment => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use covey_proto::access::Reach;

    use super::*;

    fn reach(path: &str, kind: Kind) -> Reach {
        row_of(path).map_or(Reach::None, |row| row.reach(kind))
    }

    /// Every path that a router answers: what its `Debug` says of its tree.
    pub(crate) fn paths(router: &axum::Router) -> BTreeSet<String> {
        let text = format!("{router:?}");
        let found = text.split("RouteId(").filter_map(|part| part.split_once("): \"/"));
        let paths = found.filter_map(|(id, rest)| {
            let is_id = id.chars().all(|c| c.is_ascii_digit());
            is_id.then(|| format!("/{}", rest.split_once('"').map_or("", |(path, _)| path)))
        });
        // Where a router answers what none of its routes does, axum has a route of its own for that.
        paths.filter(|path| !path.contains("__private__axum_fallback")).collect()
    }

    #[test]
    fn paths_are_closed_unless_they_are_named() {
        let callers = ["/", "/a2a", "/a2a/echo", "/.well-known/agent-card.json", "/lf.a2a.v1.A2AService/SendMessage"];
        for path in callers {
            assert_eq!(reach(path, Kind::Caller), Reach::Own, "{path}");
            assert_eq!(reach(path, Kind::Worker), Reach::None, "{path}");
        }
        let owners = ["/covey.v1.Covey/AddKey", "/metrics", "/v1/cluster"];
        for path in owners {
            for kind in Kind::ALL {
                assert_eq!(reach(path, kind) != Reach::None, kind == Kind::Admin, "{path} {kind:?}");
            }
        }
        let nobodys = [
            "/v1/cluster/x",
            "/a2ab",
            "/v1/",
            "/v1/new",
            "/v1",
            "/covey.v1.Covey/",
            "/covey.v1.Covey/New",
            "/covey.v1.Worker/Calls",
            "/v1/responses/a/b",
            "/v1/artifacts/a",
            "",
        ];
        for path in nobodys {
            assert!(!is_open(path), "{path}");
            for kind in Kind::ALL {
                assert_eq!(reach(path, kind), Reach::None, "{path} {kind:?}");
            }
        }
        assert_eq!(reach("/v1/chat/completions", Kind::Models), Reach::Own);
        assert_eq!(reach("/v1/chat/completions", Kind::Caller), Reach::None);
        assert!(is_open("/livez") && is_open("/v1/artifacts/d/n") && !is_open("/v1/artifacts/d/"));
    }

    #[test]
    fn services_are_told_from_folders() {
        let services = METHODS.iter().chain(ROUTES).filter(|row| row.path.contains(".v1."));
        assert!(services.clone().count() > 10 && services.into_iter().all(|row| is_of_grpc(row.path)));
        for path in ["/", "/v1/models", "/a2a/x.v1.y/tasks", "/.well-known/agent-card.json"] {
            assert!(!is_of_grpc(path), "{path}");
        }
    }

    #[test]
    fn what_a_router_answers_is_found() {
        let router = axum::Router::<()>::new()
            .route("/a/{b}", axum::routing::get(|| async {}))
            .route("/", axum::routing::any(|| async {}));
        assert_eq!(paths(&router), BTreeSet::from(["/".to_owned(), "/a/{b}".to_owned()]));
    }

    #[tokio::test]
    async fn every_route_is_in_the_table() {
        let dir = tempfile::tempdir().unwrap();
        let config = crate::Config {
            data: dir.path().join("head"),
            credentials: dir.path().join("credentials.json"),
            ..crate::Config::new(([127, 0, 0, 1], 0).into())
        };
        let stop = tokio_util::sync::CancellationToken::new();
        let head = crate::HeadNode::start(config, stop.clone()).await.unwrap();
        let service = |path: &str| path.rsplit_once('/').map_or("", |(service, _)| service).to_owned();
        let services: BTreeSet<String> = METHODS.iter().map(|row| service(row.path)).collect();
        let services = services.iter().filter(|service| *service != "/covey.v1.Worker");
        let said = ROUTES.iter().map(|row| row.path.to_owned()).chain(services.map(|s| format!("{s}/{{*rest}}")));
        let (closed, open) = &head.paths;
        assert_eq!(*closed, said.collect(), "say in head-node/src/access.rs who may use a route that is new");
        // What answers for no route stands at the root too; the checkpoint lets nobody there who shows nothing.
        assert!(!is_open("/"));
        let open: BTreeSet<String> = open.iter().filter(|path| *path != "/").cloned().collect();
        assert_eq!(open, OPEN.iter().map(|path| (*path).to_owned()).collect());
        stop.cancel();
        head.stopped().await;
    }

    /// Both tables as they stand in docs/security.md.
    fn page() -> String {
        let mut page = String::from("| path |");
        Kind::ALL.iter().for_each(|kind| page += &format!(" {} |", kind.name()));
        page += "\n|---|";
        Kind::ALL.iter().for_each(|_| page += "---|");
        for row in METHODS.iter().chain(ROUTES) {
            page += &format!("\n| `{}` |", row.path);
            for kind in Kind::ALL {
                page += match row.reach(kind) {
                    Reach::None => " |",
                    Reach::Own => " own |",
                    Reach::All => " all |",
                };
            }
        }
        page + "\n"
    }

    #[test]
    fn the_page_has_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/security.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (begin, end) = ("<!-- access: begin -->\n", "<!-- access: end -->");
        let (head, rest) = text.split_once(begin).expect("the page has a place for the table");
        let (known, tail) = rest.split_once(end).expect("the place has an end");
        if std::env::var_os("COVEY_WRITE_GENERATED").is_some() {
            std::fs::write(path, format!("{head}{begin}{}{end}{tail}", page())).unwrap();
            return;
        }
        assert!(known == page(), "run `COVEY_WRITE_GENERATED=1 cargo test -p covey-head-node access`");
    }
}
