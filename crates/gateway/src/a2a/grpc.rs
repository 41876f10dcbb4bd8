//! gRPC of 1.0. The request's tenant names the agent; without one it is the default agent.

use std::sync::Arc;

use covey_a2a::{
    Error, Kind,
    v1::{self, a2a_service_server::A2aService},
};
use futures::{StreamExt as _, stream::BoxStream};
use tonic::{Request, Response, Status};

use super::ops::{Ask, Events, no_pushes};
use crate::{Caller, Cluster};

pub(super) struct Grpc {
    pub cluster: Arc<dyn Cluster>,
}

impl Grpc {
    async fn ask<T>(&self, request: &Request<T>, tenant: &str) -> Result<Ask, Status> {
        super::check_version(request.metadata().as_ref())?;
        let Some(Caller(caller)) = request.extensions().get::<Caller>().cloned() else {
            return Err(Status::unauthenticated("nobody is known to ask"));
        };
        let agent = match tenant {
            "" => self.cluster.default_agent().await,
            name => super::find(&*self.cluster, name).await,
        };
        let agent = agent.ok_or_else(|| Error::new(Kind::NotFound, format!("no agent `{tenant}`")))?;
        let seen = request.metadata().get("last-event-id").and_then(|v| v.to_str().ok()?.parse().ok());
        Ok(Ask { cluster: self.cluster.clone(), agent, caller, seen })
    }
}

fn stream(events: Events) -> Response<BoxStream<'static, Result<v1::StreamResponse, Status>>> {
    Response::new(events.map(|told| told.map(|told| told.event).map_err(Status::from)).boxed())
}

#[tonic::async_trait]
impl A2aService for Grpc {
    type SendStreamingMessageStream = BoxStream<'static, Result<v1::StreamResponse, Status>>;
    type SubscribeToTaskStream = Self::SendStreamingMessageStream;

    async fn send_message(
        &self,
        request: Request<v1::SendMessageRequest>,
    ) -> Result<Response<v1::SendMessageResponse>, Status> {
        let ask = self.ask(&request, &request.get_ref().tenant).await?;
        Ok(Response::new(ask.send(request.into_inner()).await?))
    }

    async fn send_streaming_message(
        &self,
        request: Request<v1::SendMessageRequest>,
    ) -> Result<Response<Self::SendStreamingMessageStream>, Status> {
        let ask = self.ask(&request, &request.get_ref().tenant).await?;
        Ok(stream(ask.stream(request.into_inner()).await?))
    }

    async fn get_task(&self, request: Request<v1::GetTaskRequest>) -> Result<Response<v1::Task>, Status> {
        let ask = self.ask(&request, &request.get_ref().tenant).await?;
        Ok(Response::new(ask.get(request.get_ref()).await?))
    }

    async fn list_tasks(&self, _: Request<v1::ListTasksRequest>) -> Result<Response<v1::ListTasksResponse>, Status> {
        Err(Error::new(Kind::UnsupportedOperation, "tasks are not listed yet").into())
    }

    async fn cancel_task(&self, request: Request<v1::CancelTaskRequest>) -> Result<Response<v1::Task>, Status> {
        let ask = self.ask(&request, &request.get_ref().tenant).await?;
        Ok(Response::new(ask.cancel(&request.get_ref().id).await?))
    }

    async fn subscribe_to_task(
        &self,
        request: Request<v1::SubscribeToTaskRequest>,
    ) -> Result<Response<Self::SubscribeToTaskStream>, Status> {
        let ask = self.ask(&request, &request.get_ref().tenant).await?;
        Ok(stream(ask.subscribe(&request.get_ref().id).await?))
    }

    async fn create_task_push_notification_config(
        &self,
        _: Request<v1::TaskPushNotificationConfig>,
    ) -> Result<Response<v1::TaskPushNotificationConfig>, Status> {
        Err(no_pushes().into())
    }

    async fn get_task_push_notification_config(
        &self,
        _: Request<v1::GetTaskPushNotificationConfigRequest>,
    ) -> Result<Response<v1::TaskPushNotificationConfig>, Status> {
        Err(no_pushes().into())
    }

    async fn list_task_push_notification_configs(
        &self,
        _: Request<v1::ListTaskPushNotificationConfigsRequest>,
    ) -> Result<Response<v1::ListTaskPushNotificationConfigsResponse>, Status> {
        Err(no_pushes().into())
    }

    async fn get_extended_agent_card(
        &self,
        _: Request<v1::GetExtendedAgentCardRequest>,
    ) -> Result<Response<v1::AgentCard>, Status> {
        Err(Error::new(Kind::UnsupportedOperation, "there is no extended card").into())
    }

    async fn delete_task_push_notification_config(
        &self,
        _: Request<v1::DeleteTaskPushNotificationConfigRequest>,
    ) -> Result<Response<()>, Status> {
        Err(no_pushes().into())
    }
}
