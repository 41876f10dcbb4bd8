//! An agent's card, made from its spec. One document for both versions: a 1.0 client ignores the 0.3 members and the other
//! way round.

use std::{collections::HashMap, time::SystemTime};

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use covey_a2a::{
    Fields,
    card::{EXTENSION_EVENTS, EXTENSION_MODEL, EXTENSION_ONCE, canonical},
    old, v1,
};
use covey_domain::{AgentKind, AgentName, AgentSpec};
use parking_lot::Mutex;
use serde_json::json;

use super::Hub;

/// The extension of the extended card that says what skills take.
const EXTENSION_SKILLS: &str = "urn:covey:a2a:skills:v1";

/// Where an agent is reached.
pub(super) struct Place {
    /// `http://host:port`
    pub root: String,
    /// The agent that the address names; none is the default one.
    pub agent: Option<AgentName>,
}

impl Place {
    /// `http://host/a2a/agent`, or `http://host/a2a` for the default agent.
    pub fn url(&self) -> String {
        let Self { root, agent } = self;
        agent.as_ref().map_or_else(|| format!("{root}/a2a"), |agent| format!("{root}/a2a/{agent}"))
    }

    /// `host:port`, as gRPC has it.
    fn authority(&self) -> &str {
        self.root.split_once("://").map_or(&self.root, |(_, authority)| authority)
    }
}

/// When each agent became what it is, as far as this process knows.
#[derive(Default)]
pub(super) struct Known(Mutex<HashMap<AgentName, (u64, SystemTime)>>);

impl Known {
    fn since(&self, spec: &AgentSpec) -> SystemTime {
        let tag = fnv(&serde_json::to_vec(spec).unwrap_or_default());
        let mut all = self.0.lock();
        let known = all.entry(spec.name.clone()).or_insert_with(|| (tag, SystemTime::now()));
        if known.0 != tag {
            *known = (tag, SystemTime::now());
        }
        known.1
    }
}

/// The card as a response with an `ETag` and `Last-Modified`.
pub(super) fn response(hub: &Hub, spec: &AgentSpec, place: &Place, headers: &HeaderMap) -> Response {
    let card = signed(hub, card(spec, place), place);
    let mut body = serde_json::to_value(&card).unwrap_or_default();
    old::onto_card(&mut body, &card);
    let body = body.to_string();
    let tag = format!("\"{:016x}\"", fnv(body.as_bytes()));
    let since = hub.known.since(spec);
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
    let same = match text(header::IF_NONE_MATCH) {
        Some(tags) => tags == "*" || tags.split(',').any(|t| t.trim().trim_start_matches("W/") == tag),
        None => {
            let seen = text(header::IF_MODIFIED_SINCE).and_then(|at| httpdate::parse_http_date(at).ok());
            seen.is_some_and(|seen| httpdate::fmt_http_date(since) == httpdate::fmt_http_date(seen.min(since)))
        }
    };
    let mut response = match same {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
    };
    let mut put = |name, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    };
    put(header::ETAG, &tag);
    put(header::LAST_MODIFIED, &httpdate::fmt_http_date(since));
    put(header::CACHE_CONTROL, "max-age=60");
    response
}

/// The card for those who are known: it says also what each skill takes.
pub(super) fn extended(hub: &Hub, spec: &AgentSpec, place: &Place) -> v1::AgentCard {
    let mut card = card(spec, place);
    let schemas = spec.skills.iter().filter_map(|s| Some((s.id.clone(), s.input_schema.clone()?)));
    let mut params = json!({"inputSchemas": schemas.collect::<serde_json::Map<_, _>>()});
    if let Some(model) = &spec.model {
        params["model"] = model.as_str().into();
    }
    let extensions = &mut card.capabilities.get_or_insert_default().extensions;
    extensions.push(v1::AgentExtension {
        uri: EXTENSION_SKILLS.into(),
        description: "JSON schemas of what skills take: a data part of that shape, and metadata `skill` with its id."
            .into(),
        required: false,
        params: params.as_object().cloned().map(Fields),
    });
    signed(hub, card, place)
}

/// The card with a signature over its canonical form, where it says that the agent is at a place that this gateway is at. The
/// place comes from the request: a signature for any other would be one for whoever asked.
fn signed(hub: &Hub, mut card: v1::AgentCard, place: &Place) -> v1::AgentCard {
    if !hub.origins.contains(&place.root) {
        return card;
    }
    let canonical = canonical(&card);
    let jku = format!("{}/.well-known/jwks.json", place.root);
    let (protected, signature) = hub.signer.jws("JOSE", Some(&jku), canonical.as_bytes());
    card.signatures.push(v1::AgentCardSignature { protected, signature, header: None });
    card
}

fn card(spec: &AgentSpec, place: &Place) -> v1::AgentCard {
    let or_name = |text: &str, name: &str| if text.is_empty() { name.to_owned() } else { text.to_owned() };
    let interface = |url: &str, binding: &str, version: &str, tenant: &str| v1::AgentInterface {
        url: url.to_owned(),
        protocol_binding: binding.to_owned(),
        tenant: tenant.to_owned(),
        protocol_version: version.to_owned(),
    };
    let bearer = v1::HttpAuthSecurityScheme { scheme: "bearer".into(), ..Default::default() };
    let scheme = v1::security_scheme::Scheme::HttpAuthSecurityScheme(bearer);
    let (url, authority) = (place.url(), place.authority());
    let mut interfaces = vec![
        interface(&url, "JSONRPC", "1.0", ""),
        interface(&url, "HTTP+JSON", "1.0", ""),
        interface(authority, "GRPC", "1.0", spec.name.as_str()),
        interface(&url, "JSONRPC", "0.3", ""),
        interface(&url, "HTTP+JSON", "0.3", ""),
    ];
    if place.agent.is_none() {
        // Which names no agent.
        interfaces.push(interface(authority, "GRPC", "0.3", ""));
    }
    let face = &spec.a2a;
    let extensions = face.extensions.iter().map(|e| v1::AgentExtension {
        uri: e.uri.clone(),
        description: e.description.clone(),
        required: e.required,
        params: None,
    });
    let thinks = matches!(spec.kind, AgentKind::Llm(_)) || spec.model.is_some();
    let own = thinks.then(|| v1::AgentExtension {
        uri: EXTENSION_MODEL.into(),
        description: "A message's metadata may name, under this URI, the model that answers it and sampling options."
            .into(),
        required: false,
        params: None,
    });
    let once = v1::AgentExtension {
        uri: EXTENSION_ONCE.into(),
        description:
            "A message may be sent again: the same message id joins the task that it made. A stream that is cut \
            goes on behind the id of its last event (Last-Event-ID)."
                .into(),
        required: false,
        params: None,
    };
    let events = v1::AgentExtension {
        uri: EXTENSION_EVENTS.into(),
        description:
            "Who declares it gets what this protocol has no form for (thoughts, tool calls as they grow, state, \
            delegated work, tokens) in its streams: updates of the status whose metadata has, under this URI, the \
            entry of the task's log."
                .into(),
        required: false,
        params: None,
    };
    let modes = |said: &[String]| {
        let usual = || vec!["text/plain".to_owned(), "application/json".to_owned()];
        if said.is_empty() { usual() } else { said.to_vec() }
    };
    let tags = if face.tags.is_empty() { vec!["covey".to_owned()] } else { face.tags.clone() };
    v1::AgentCard {
        name: spec.name.to_string(),
        description: or_name(&spec.description, spec.name.as_str()),
        supported_interfaces: interfaces,
        provider: face.provider.clone().map(|(organization, url)| v1::AgentProvider { organization, url }),
        documentation_url: face.documentation_url.clone(),
        icon_url: face.icon_url.clone(),
        version: or_name(&face.version, env!("CARGO_PKG_VERSION")),
        capabilities: Some(v1::AgentCapabilities {
            streaming: Some(face.streaming),
            push_notifications: Some(face.push_notifications),
            extended_agent_card: Some(face.extended_card),
            extensions: extensions.chain(own).chain([once, events]).collect(),
        }),
        security_schemes: HashMap::from([("bearer".to_owned(), v1::SecurityScheme { scheme: Some(scheme) })]),
        security_requirements: vec![v1::SecurityRequirement {
            schemes: HashMap::from([("bearer".to_owned(), v1::StringList::default())]),
        }],
        default_input_modes: modes(&face.input_modes),
        default_output_modes: modes(&face.output_modes),
        skills: spec
            .skills
            .iter()
            .map(|s| v1::AgentSkill {
                id: s.id.clone(),
                name: or_name(&s.name, &s.id),
                description: or_name(&s.description, &s.id),
                tags: tags.clone(),
                ..v1::AgentSkill::default()
            })
            .collect(),
        ..v1::AgentCard::default()
    }
}

/// FNV-1a: a tag needs no secrecy, only to change with the card.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}
