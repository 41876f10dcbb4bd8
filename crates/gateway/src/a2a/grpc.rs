//! gRPC of both versions. In 1.0 the request's tenant names the agent; 0.3 has no such field, there the metadata `a2a-agent`
//! may. Without a name it is the default agent.

use std::sync::Arc;

use axum::{body::to_bytes, extract::Request as HttpRequest, middleware::Next, response::Response as HttpResponse};
use covey_a2a::{
    Error, old_proto,
    v1::{self, a2a_service_server::A2aService},
    v03::{self, a2a_service_server::A2aService as OldService},
};
use covey_domain::caps;
use futures::{StreamExt as _, stream::BoxStream};
use tonic::{Request, Response, Status};

use super::{
    Hub, named,
    ops::{Ask, Events},
    weight, wrong,
};
use crate::{
    Caller,
    answers::{Held, Written},
};

/// A request in gRPC's frame: whether it is compressed, how long it is.
const FRAME: usize = 5;

/// Refuses a message of so many values that it must not be decoded.
pub(super) async fn weigh(request: HttpRequest, next: Next) -> HttpResponse {
    let path = request.uri().path();
    if !(path.ends_with("/SendMessage") || path.ends_with("/SendStreamingMessage")) {
        return next.run(request).await;
    }
    let check = if path.starts_with("/lf.") { covey_a2a::weigh::check } else { covey_a2a::weigh::check_old };
    let (head, body) = request.into_parts();
    let Ok(whole) = to_bytes(body, FRAME + caps::MESSAGE_BYTES_MAX).await else {
        let most = caps::MESSAGE_BYTES_MAX >> 20;
        return Status::out_of_range(format!("the request has more than {most} MiB, or broke off")).into_http();
    };
    if let Err(error) = check(whole.get(FRAME..).unwrap_or_default()) {
        return Status::from(super::errors::failed(error)).into_http();
    }
    next.run(HttpRequest::from_parts(head, whole.into())).await
}

#[derive(Clone)]
pub(super) struct Grpc {
    pub hub: Arc<Hub>,
}

impl Grpc {
    async fn ask<T>(&self, request: &Request<T>, tenant: &str) -> Result<Ask, Status> {
        super::check_version(request.metadata().as_ref())?;
        let Some(caller) = request.extensions().get::<Caller>().cloned() else {
            return Err(Status::unauthenticated("nobody is known to ask"));
        };
        let agent = Some(tenant).filter(|name| !name.is_empty());
        let ask = super::ask(self.hub.clone(), agent, caller, request.metadata().as_ref()).await?;
        ask.check_extensions()?;
        Ok(ask)
    }
}

impl Grpc {
    async fn old_ask<T>(&self, request: &Request<T>) -> Result<Ask, Status> {
        let agent = request.metadata().get("a2a-agent").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        self.ask(request, &agent).await
    }
}

/// A task as it is written, see [`Written`].
fn task(task: v1::Task) -> Written<v1::Task, Error> {
    let bytes = weight::of_task(&task);
    Ok((task, bytes))
}

/// The same of 0.3.
fn old_task(task: v1::Task) -> Written<v03::Task, Error> {
    let bytes = weight::of_task(&task);
    Ok((old_proto::task(task), bytes))
}

/// An answer with the room that it has, see [`crate::answers`].
fn answer<T>(ask: &Ask, message: T) -> Response<T> {
    let mut response = Response::new(message);
    Held::put(&ask.held, response.extensions_mut());
    response
}

type OldStream = BoxStream<'static, Result<v03::StreamResponse, Status>>;

fn old_stream(events: Events) -> Response<OldStream> {
    let events = events.map(|told| told.map(|t| old_proto::event(*t.frame.event, t.last)).map_err(Status::from));
    Response::new(events.boxed())
}

#[tonic::async_trait]
impl OldService for Grpc {
    type SendStreamingMessageStream = OldStream;
    type TaskSubscriptionStream = OldStream;

    async fn send_message(
        &self,
        request: Request<v03::SendMessageRequest>,
    ) -> Result<Response<v03::SendMessageResponse>, Status> {
        let ask = self.old_ask(&request).await?;
        let write = |sent| {
            let bytes = weight::of_sent(&sent);
            Ok((old_proto::sent(sent), bytes))
        };
        let sent = ask.send(wrong(old_proto::send_in(request.into_inner()))?, true, write).await?;
        Ok(answer(&ask, sent))
    }

    async fn send_streaming_message(
        &self,
        request: Request<v03::SendMessageRequest>,
    ) -> Result<Response<OldStream>, Status> {
        let ask = self.old_ask(&request).await?;
        Ok(old_stream(ask.stream(wrong(old_proto::send_in(request.into_inner()))?, true).await?))
    }

    async fn get_task(&self, request: Request<v03::GetTaskRequest>) -> Result<Response<v03::Task>, Status> {
        let ask = self.old_ask(&request).await?;
        let v03::GetTaskRequest { name, history_length } = request.into_inner();
        let history_length = Some(history_length).filter(|n| *n != 0);
        let id = wrong(old_proto::task_in(&name))?.to_owned();
        let request = v1::GetTaskRequest { tenant: String::new(), id, history_length };
        Ok(answer(&ask, ask.get(&request, old_task).await?))
    }

    async fn cancel_task(&self, request: Request<v03::CancelTaskRequest>) -> Result<Response<v03::Task>, Status> {
        let ask = self.old_ask(&request).await?;
        let id = wrong(old_proto::task_in(&request.get_ref().name))?;
        Ok(answer(&ask, ask.cancel(id, old_task).await?))
    }

    async fn task_subscription(
        &self,
        request: Request<v03::TaskSubscriptionRequest>,
    ) -> Result<Response<OldStream>, Status> {
        let ask = self.old_ask(&request).await?;
        Ok(old_stream(ask.subscribe(wrong(old_proto::task_in(&request.get_ref().name))?).await?))
    }

    async fn create_task_push_notification_config(
        &self,
        request: Request<v03::CreateTaskPushNotificationConfigRequest>,
    ) -> Result<Response<v03::TaskPushNotificationConfig>, Status> {
        let ask = self.old_ask(&request).await?;
        let v03::CreateTaskPushNotificationConfigRequest { parent, config_id, config } = request.into_inner();
        let task = wrong(old_proto::task_in(&parent))?.to_owned();
        let inner = config.and_then(|config| config.push_notification_config);
        let inner = inner.ok_or_else(|| Error::field("config", "is missing"))?;
        let id = if inner.id.is_empty() { config_id } else { inner.id.clone() };
        let config = v1::TaskPushNotificationConfig { id, ..old_proto::push_in(task, inner) };
        Ok(Response::new(old_proto::push_config(ask.push_create(config, true).await?)))
    }

    async fn get_task_push_notification_config(
        &self,
        request: Request<v03::GetTaskPushNotificationConfigRequest>,
    ) -> Result<Response<v03::TaskPushNotificationConfig>, Status> {
        let ask = self.old_ask(&request).await?;
        let (task, id) = wrong(old_proto::push_name_in(&request.get_ref().name))?;
        Ok(Response::new(old_proto::push_config(ask.push_get(task, id).await?)))
    }

    async fn list_task_push_notification_config(
        &self,
        request: Request<v03::ListTaskPushNotificationConfigRequest>,
    ) -> Result<Response<v03::ListTaskPushNotificationConfigResponse>, Status> {
        let ask = self.old_ask(&request).await?;
        let all = ask.push_list(wrong(old_proto::task_in(&request.get_ref().parent))?).await?;
        let configs = all.into_iter().map(old_proto::push_config).collect();
        Ok(Response::new(v03::ListTaskPushNotificationConfigResponse { configs, next_page_token: String::new() }))
    }

    async fn get_agent_card(
        &self,
        request: Request<v03::GetAgentCardRequest>,
    ) -> Result<Response<v03::AgentCard>, Status> {
        Ok(Response::new(old_proto::card(self.old_ask(&request).await?.extended_card()?)))
    }

    async fn delete_task_push_notification_config(
        &self,
        request: Request<v03::DeleteTaskPushNotificationConfigRequest>,
    ) -> Result<Response<()>, Status> {
        let ask = self.old_ask(&request).await?;
        let (task, id) = wrong(old_proto::push_name_in(&request.get_ref().name))?;
        Ok(Response::new(ask.push_delete(task, id).await?))
    }
}

type Stream = BoxStream<'static, Result<v1::StreamResponse, Status>>;

fn stream(events: Events) -> Response<Stream> {
    Response::new(events.map(|told| told.map(|told| *told.frame.event).map_err(Status::from)).boxed())
}

#[tonic::async_trait]
impl A2aService for Grpc {
    type SendStreamingMessageStream = Stream;
    type SubscribeToTaskStream = Stream;

    async fn send_message(
        &self,
        request: Request<v1::SendMessageRequest>,
    ) -> Result<Response<v1::SendMessageResponse>, Status> {
        let ask = self.ask(&request, &request.get_ref().tenant).await?;
        let write = |sent| {
            let bytes = weight::of_sent(&sent);
            Ok((sent, bytes))
        };
        Ok(answer(&ask, ask.send(request.into_inner(), false, write).await?))
    }

    async fn send_streaming_message(
        &self,
        request: Request<v1::SendMessageRequest>,
    ) -> Result<Response<Stream>, Status> {
        let ask = self.ask(&request, &request.get_ref().tenant).await?;
        Ok(stream(ask.stream(request.into_inner(), false).await?))
    }

    async fn get_task(&self, request: Request<v1::GetTaskRequest>) -> Result<Response<v1::Task>, Status> {
        let ask = self.ask(&request, &request.get_ref().tenant).await?;
        Ok(answer(&ask, ask.get(request.get_ref(), task).await?))
    }

    async fn list_tasks(
        &self,
        request: Request<v1::ListTasksRequest>,
    ) -> Result<Response<v1::ListTasksResponse>, Status> {
        let ask = self.ask(&request, &request.get_ref().tenant).await?;
        let write = |page| {
            let bytes = weight::of_page(&page);
            Ok((page, bytes))
        };
        Ok(answer(&ask, ask.list(request.into_inner(), write).await?))
    }

    async fn cancel_task(&self, request: Request<v1::CancelTaskRequest>) -> Result<Response<v1::Task>, Status> {
        let ask = self.ask(&request, &request.get_ref().tenant).await?;
        Ok(answer(&ask, ask.cancel(&request.get_ref().id, task).await?))
    }

    async fn subscribe_to_task(
        &self,
        request: Request<v1::SubscribeToTaskRequest>,
    ) -> Result<Response<Stream>, Status> {
        let ask = self.ask(&request, &request.get_ref().tenant).await?;
        Ok(stream(ask.subscribe(&request.get_ref().id).await?))
    }

    async fn create_task_push_notification_config(
        &self,
        request: Request<v1::TaskPushNotificationConfig>,
    ) -> Result<Response<v1::TaskPushNotificationConfig>, Status> {
        let ask = self.ask(&request, &request.get_ref().tenant).await?;
        Ok(Response::new(ask.push_create(request.into_inner(), false).await?))
    }

    async fn get_task_push_notification_config(
        &self,
        request: Request<v1::GetTaskPushNotificationConfigRequest>,
    ) -> Result<Response<v1::TaskPushNotificationConfig>, Status> {
        let ask = self.ask(&request, &request.get_ref().tenant).await?;
        let request = request.get_ref();
        Ok(Response::new(ask.push_get(&request.task_id, named(&request.id)?).await?))
    }

    async fn list_task_push_notification_configs(
        &self,
        request: Request<v1::ListTaskPushNotificationConfigsRequest>,
    ) -> Result<Response<v1::ListTaskPushNotificationConfigsResponse>, Status> {
        let ask = self.ask(&request, &request.get_ref().tenant).await?;
        let configs = ask.push_list(&request.get_ref().task_id).await?;
        Ok(Response::new(v1::ListTaskPushNotificationConfigsResponse { configs, next_page_token: String::new() }))
    }

    async fn get_extended_agent_card(
        &self,
        request: Request<v1::GetExtendedAgentCardRequest>,
    ) -> Result<Response<v1::AgentCard>, Status> {
        Ok(Response::new(self.ask(&request, &request.get_ref().tenant).await?.extended_card()?))
    }

    async fn delete_task_push_notification_config(
        &self,
        request: Request<v1::DeleteTaskPushNotificationConfigRequest>,
    ) -> Result<Response<()>, Status> {
        let ask = self.ask(&request, &request.get_ref().tenant).await?;
        let request = request.get_ref();
        Ok(Response::new(ask.push_delete(&request.task_id, named(&request.id)?).await?))
    }
}
