//! HTTP+JSON: paths below an agent's address, ProtoJSON in and out; 0.3's paths begin with `v1/`.

use std::{collections::HashMap, io::Write as _};

use axum::{
    body::Bytes,
    http::{HeaderMap, Method, header},
    response::{IntoResponse as _, Response},
};
use covey_a2a::{Error, Kind, Timestamp, old_proto, v1, v03};
use serde::de::DeserializeOwned;

use super::{Answer, StreamItem, configs, errors::refused_as, listed, ops::Ask, sized, stream, whole, wrong};

/// A request below an agent's address.
pub(super) struct Call<'a> {
    pub ask: Ask,
    pub method: &'a Method,
    /// Behind the agent's address, without the first `/`: `message:send`, `tasks/ID:cancel`.
    pub path: &'a str,
    pub query: &'a HashMap<String, String>,
    pub headers: &'a HeaderMap,
    pub body: &'a Bytes,
}

/// Media type of A2A over HTTP, since 1.0.1.
const A2A_JSON: &str = "application/a2a+json";

impl Call<'_> {
    pub async fn serve(self) -> Response {
        let kind = self.kind();
        let (path, old) = match self.path.strip_prefix("v1/") {
            Some(path) => (path, true),
            None => (self.path, false),
        };
        let answer = match super::check_version(self.headers).and_then(|()| self.ask.check_extensions()) {
            Ok(()) => self.answer(path, old).await,
            Err(error) => Err(error),
        };
        let (active, background) = (self.ask.active_extensions(), self.ask.hub.background.clone());
        let response = match answer {
            Ok(Answer::Whole(body)) => ([(header::CONTENT_TYPE, kind)], body).into_response(),
            Ok(Answer::Stream(events)) => {
                let write = move |told: StreamItem, piece: &mut Vec<u8>| {
                    // Our own types have string keys, and a vector takes all.
                    let _ = match old {
                        true => serde_json::to_writer(piece, &old_proto::event(*told.frame.event, told.last)),
                        false => serde_json::to_writer(piece, &told.frame.event),
                    };
                };
                let fail = |error: &Error, piece: &mut Vec<u8>| {
                    let _ = write!(piece, "event: error\ndata: {}", error.http_body());
                };
                stream(&background, events, write, fail)
            }
            Err(error) => refused_as(&error, kind),
        };
        let mut response = super::activated(response, &active);
        crate::answers::Held::put(&self.ask.held, response.extensions_mut());
        response
    }

    /// What the client speaks: the media type of the specification where it names that, else plain JSON.
    fn kind(&self) -> &'static str {
        let names = |header| {
            let value = self.headers.get(header).and_then(|v| v.to_str().ok());
            value.is_some_and(|v| v.to_ascii_lowercase().contains("a2a+json"))
        };
        if names(header::ACCEPT) || names(header::CONTENT_TYPE) { A2A_JSON } else { "application/json" }
    }

    /// Both versions have the same operations; 0.3 writes them otherwise, and lists nothing.
    async fn answer(&self, path: &str, old: bool) -> Result<Answer, Error> {
        let (get, post) = (self.method == Method::GET, self.method == Method::POST);
        let parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
        let send = || if old { wrong(old_proto::send_in(self.read()?)) } else { self.read() };
        let task = |task: v1::Task| if old { sized(&old_proto::task(task)) } else { sized(&task) };
        match parts[..] {
            ["message:send"] if post => {
                let write = |sent| if old { sized(&old_proto::sent(sent)) } else { sized(&sent) };
                self.ask.send(send()?, old, write).await
            }
            ["message:stream"] if post => Ok(Answer::Stream(self.ask.stream(send()?, old).await?)),
            ["tasks", named] => match named.rsplit_once(':') {
                Some((id, "cancel")) if post => self.ask.cancel(id, task).await,
                // The proto file says GET, the specification's text POST.
                Some((id, "subscribe")) if get || post => Ok(Answer::Stream(self.ask.subscribe(id).await?)),
                None if get => {
                    let history_length = self.number("historyLength")?;
                    let request = v1::GetTaskRequest { tenant: String::new(), id: named.to_owned(), history_length };
                    self.ask.get(&request, task).await
                }
                _ => Err(self.unknown()),
            },
            ["tasks"] if get && !old => self.ask.list(self.list()?, |page| Ok(listed(&page).sized())).await,
            ["tasks", task, "pushNotificationConfigs", ref rest @ ..] => self.push(task, rest, old).await,
            ["extendedAgentCard"] if get && !old => whole(&self.ask.extended_card()?),
            ["card"] if get && old => {
                let card = self.ask.extended_card()?;
                let mut body = serde_json::to_value(&card).unwrap_or_default();
                covey_a2a::old::onto_card(&mut body, &card);
                Ok(Answer::Whole(body.to_string()))
            }
            _ => Err(self.unknown()),
        }
    }

    /// Webhooks of a task.
    async fn push(&self, task: &str, rest: &[&str], old: bool) -> Result<Answer, Error> {
        let told = |config| if old { whole(&old_proto::push_config(config)) } else { whole(&config) };
        match *rest {
            [] if self.method == Method::POST => {
                let config = match old {
                    true => {
                        let said: v03::TaskPushNotificationConfig = self.read()?;
                        let inner = said.push_notification_config;
                        let inner = inner.ok_or_else(|| Error::field("pushNotificationConfig", "is missing"))?;
                        old_proto::push_in(task.to_owned(), inner)
                    }
                    false => v1::TaskPushNotificationConfig { task_id: task.to_owned(), ..self.read()? },
                };
                told(self.ask.push_create(config, old).await?)
            }
            [] if self.method == Method::GET => {
                let all = self.ask.push_list(task).await?;
                match old {
                    true => {
                        let configs = all.into_iter().map(old_proto::push_config).collect();
                        whole(&v03::ListTaskPushNotificationConfigResponse { configs, next_page_token: String::new() })
                    }
                    false => Ok(configs(all)),
                }
            }
            [id] if self.method == Method::GET => told(self.ask.push_get(task, id).await?),
            [id] if self.method == Method::DELETE => {
                self.ask.push_delete(task, id).await?;
                Ok(Answer::Whole("{}".into()))
            }
            _ => Err(self.unknown()),
        }
    }

    /// A request to list, out of the query.
    fn list(&self) -> Result<v1::ListTasksRequest, Error> {
        let text = |name: &str| self.query.get(name).cloned().unwrap_or_default();
        let said = |name: &str| self.query.get(name).map(String::as_str);
        let status = match said("status") {
            None => v1::TaskState::Unspecified,
            Some(name) => v1::TaskState::from_str_name(name)
                .ok_or_else(|| Error::field("status", format!("has no state `{name}`")))?,
        };
        let since = said("statusTimestampAfter").map(str::parse::<Timestamp>).transpose();
        Ok(v1::ListTasksRequest {
            tenant: String::new(),
            context_id: text("contextId"),
            status: status.into(),
            page_size: self.number("pageSize")?,
            page_token: text("pageToken"),
            history_length: self.number("historyLength")?,
            status_timestamp_after: since
                .map_err(|why| Error::field("statusTimestampAfter", format!("is wrong: {why}")))?,
            include_artifacts: match said("includeArtifacts") {
                None | Some("false") => Some(false),
                Some("true") => Some(true),
                Some(_) => return Err(Error::field("includeArtifacts", "is neither true nor false")),
            },
        })
    }

    fn unknown(&self) -> Error {
        Error::new(Kind::MethodNotFound, format!("{} /{} is not served", self.method, self.path))
    }

    fn number(&self, name: &str) -> Result<Option<i32>, Error> {
        let Some(text) = self.query.get(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Error::field(name, "is no number"))
    }

    fn read<T: DeserializeOwned + Default>(&self) -> Result<T, Error> {
        if self.body.is_empty() {
            return Ok(T::default());
        }
        covey_domain::json::check("the request", self.body).map_err(super::errors::failed)?;
        serde_json::from_slice(self.body).map_err(|why| {
            let kind = if why.is_data() { Kind::InvalidParams } else { Kind::Parse };
            Error::new(kind, format!("failed to read the request: {why}"))
        })
    }
}
