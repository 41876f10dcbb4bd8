//! Spans of calls, from driver to actor to model, sent by OTLP to whatever `OTEL_EXPORTER_OTLP_ENDPOINT` names, by gRPC or, where
//! `OTEL_EXPORTER_OTLP_PROTOCOL` says `http/protobuf`, by HTTP. Without an endpoint nothing is recorded, and a span costs one look
//! at a flag. The variables are those of OpenTelemetry's specification, and those with `_TRACES` come first.
//!
//! The context travels as W3C `traceparent` in the call itself.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use covey_domain::Error;
use opentelemetry::{
    Context, KeyValue,
    trace::{
        Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
        Tracer as _, TracerProvider as _,
    },
};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{SdkTracer, SdkTracerProvider, Span as SdkSpan, SpanData},
};
use tokio::runtime::Handle;

/// Where spans go. The presence of one turns them on.
pub const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];

static TRACING: OnceLock<(SdkTracerProvider, SdkTracer)> = OnceLock::new();

/// Begins to record, if the environment says where to; the connection has a thread of its own, so that spans outlive any
/// runtime. `service` is what they are listed under unless `OTEL_SERVICE_NAME` says otherwise. Gives why it could not.
pub fn init(service: &str) -> Result<(), String> {
    if first_of(ENDPOINTS).is_none() || TRACING.get().is_some() {
        return Ok(());
    }
    let protocol = protocol(first_of(PROTOCOLS))?;
    let (tx, rx) = std::sync::mpsc::sync_channel(1);
    let carry = move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(tx.send(Err(error.to_string()))),
        };
        runtime.block_on(async {
            let builder = SpanExporter::builder();
            let exporter = match protocol {
                Protocol::Grpc => builder.with_tonic().build(),
                http => builder.with_http().with_protocol(http).build(),
            };
            let exporter = exporter.map(|inner| Carried { inner: Arc::new(inner), runtime: Handle::current() });
            if tx.send(exporter.map_err(|e| e.to_string())).is_ok() {
                std::future::pending::<()>().await;
            }
        });
    };
    let failed = |e: &dyn std::fmt::Display| format!("failed to trace to ${}: {e}", ENDPOINTS[1]);
    std::thread::Builder::new().name("covey-trace".into()).spawn(carry).map_err(|e| failed(&e))?;
    let exporter = rx.recv().map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
    let resource = Resource::builder();
    let resource = match std::env::var_os("OTEL_SERVICE_NAME") {
        Some(_) => resource,
        None => resource.with_service_name(service.to_owned()),
    };
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
    let tracer = provider.tracer("covey");
    let _ = TRACING.set((provider, tracer));
    Ok(())
}

/// The first of these variables that says something.
fn first_of(names: [&str; 2]) -> Option<String> {
    names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

fn protocol(said: Option<String>) -> Result<Protocol, String> {
    match said.as_deref() {
        None | Some("grpc") => Ok(Protocol::Grpc),
        Some("http/protobuf") => Ok(Protocol::HttpBinary),
        Some(other) => Err(format!("failed to read ${}: `{other}` is not grpc or http/protobuf", PROTOCOLS[1])),
    }
}

/// An exporter whose requests are made on the runtime of their own thread: whoever has spans to send has none.
#[derive(Debug)]
struct Carried {
    inner: Arc<SpanExporter>,
    runtime: Handle,
}

impl opentelemetry_sdk::trace::SpanExporter for Carried {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let inner = self.inner.clone();
        let sent = self.runtime.spawn(async move { inner.export(batch).await }).await;
        sent.unwrap_or_else(|e| Err(OTelSdkError::InternalFailure(e.to_string())))
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        let inner = Arc::get_mut(&mut self.inner).expect("it is set before the first batch is sent");
        inner.set_resource(resource);
    }
}

/// Whether spans are recorded.
pub fn is_on() -> bool {
    TRACING.get().is_some()
}

/// Sends what is left. Not from a thread of the runtime.
pub fn flush() {
    if let Some((provider, _)) = TRACING.get() {
        // Whoever listens may be gone; the work is not worth less for it.
        let _ = provider.force_flush();
    }
}

/// What a span is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A call, at its caller.
    Call,
    /// A turn, at its actor.
    Turn,
    /// Something inside.
    Inside,
}

/// One span; nothing when tracing is off. It ends when it is dropped.
#[derive(Debug, Default)]
pub struct Span(Option<Box<SdkSpan>>);

impl Span {
    /// Begins a span below `parent`, a `traceparent`; one that is empty or wrong begins a trace.
    pub fn begin(kind: Kind, name: &str, parent: &str, attributes: &[(&'static str, &str)]) -> Self {
        let Some((_, tracer)) = TRACING.get() else { return Self(None) };
        let context = match read(parent) {
            Some(parent) => Context::new().with_remote_span_context(parent),
            None => Context::new(),
        };
        let kind = match kind {
            Kind::Call => SpanKind::Client,
            Kind::Turn => SpanKind::Server,
            Kind::Inside => SpanKind::Internal,
        };
        let attributes = attributes.iter().map(|(key, value)| KeyValue::new(*key, (*value).to_owned()));
        let builder = tracer.span_builder(name.to_owned()).with_kind(kind).with_attributes(attributes);
        Self(Some(Box::new(tracer.build_with_context(builder, &context))))
    }

    /// What what is done for it must carry; `otherwise` when nothing is recorded here.
    pub fn traceparent(&self, otherwise: &str) -> String {
        match &self.0 {
            None => otherwise.to_owned(),
            Some(span) => {
                let context = span.span_context();
                format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags())
            }
        }
    }

    /// Something more about it.
    pub fn set(&mut self, key: &'static str, value: i64) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// It ended badly.
    pub fn fail(&mut self, error: &Error) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new("error.type", error.kind.name()));
            span.set_status(Status::error(error.message.clone()));
        }
    }
}

/// W3C Trace Context, version 00: `00-<32 hex>-<16 hex>-<2 hex>`.
fn read(text: &str) -> Option<SpanContext> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if version.len() != 2 || trace.len() != 32 || span.len() != 16 || flags.len() != 2 {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_is_one_that_we_speak() {
        let said = |text: &str| protocol(Some(text.to_owned()));
        assert!(matches!(protocol(None), Ok(Protocol::Grpc)));
        assert!(
            matches!(said("grpc"), Ok(Protocol::Grpc)) && matches!(said("http/protobuf"), Ok(Protocol::HttpBinary))
        );
        assert!(said("http/json").unwrap_err().contains("`http/json`"));
    }

    #[test]
    fn a_parent_is_read_and_what_is_wrong_is_none() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let read_back = read(good).unwrap();
        assert_eq!(read_back.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(read_back.is_sampled());
        for wrong in ["", "00", "00-xyz-00f067aa0ba902b7-01", "00-00000000000000000000000000000000-0000000000000000-01"]
        {
            assert!(read(wrong).is_none(), "{wrong}");
        }
        let span = Span::begin(Kind::Call, "x", good, &[]);
        assert_eq!(span.traceparent(good), good, "where nothing is recorded, the context passes through");
    }
}
