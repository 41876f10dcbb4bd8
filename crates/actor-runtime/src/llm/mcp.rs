//! Servers of the Model Context Protocol as tools, through its official SDK.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use covey_domain::{
    Error, ErrorKind, Isolation,
    agent::McpServer,
    event::{Content, MediaSource},
};
use rmcp::{
    RoleClient, ServiceExt as _,
    model::{CallToolRequestParams, ContentBlock},
    service::RunningService,
    transport::{
        StreamableHttpClientTransport, TokioChildProcess, streamable_http_client::StreamableHttpClientTransportConfig,
    },
};
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use super::tools::Said;
use crate::{
    Outward,
    envs::home_of,
    files,
    launch::{Launch, Launcher, found},
};

/// A server that has not said hello, or what its tools are, after this time will not.
const HELLO_TIMEOUT: Duration = Duration::from_secs(30);
/// One that has not answered a call after this time will not, where nothing is said.
const CALL_TIMEOUT: Duration = Duration::from_secs(300);

/// A connection to a server, made when it is needed and again when it broke.
pub(super) struct Server {
    config: McpServer,
    launcher: Arc<Launcher>,
    /// Where large files of its answers go.
    outward: Arc<dyn Outward>,
    isolation: Option<Isolation>,
    running: Mutex<Option<RunningService<RoleClient, ()>>>,
}

/// Name, description and schema of a tool.
type Offered = (String, String, Value);

impl Server {
    pub fn new(
        config: McpServer,
        launcher: Arc<Launcher>,
        outward: Arc<dyn Outward>,
        isolation: Option<Isolation>,
    ) -> Self {
        Self { config, launcher, outward, isolation, running: Mutex::default() }
    }

    fn name(&self) -> String {
        if self.config.url.is_empty() { self.config.command.join(" ") } else { self.config.url.clone() }
    }

    fn failed(&self, what: &str, error: impl std::fmt::Display) -> Error {
        Error::unavailable(format!("the MCP server `{}` {what}: {error}", self.name()))
    }

    async fn connect(&self) -> Result<RunningService<RoleClient, ()>, Error> {
        let hello = async {
            if self.config.url.is_empty() {
                let Some((program, arguments)) = self.config.command.split_first() else {
                    return Err(Error::invalid("an MCP server needs a `command` or a `url`"));
                };
                // It reads what it is made of: the virtual environment or the folder that its program is in.
                let program = Path::new(program);
                if found(program).is_none() {
                    // What starts it would be started, and end without a word.
                    let missing = "it is no file, and in no folder of the worker's PATH";
                    return Err(self.failed("could not be started", missing));
                }
                let own =
                    program.is_absolute().then(|| home_of(program).or_else(|| program.parent().map(Path::to_owned)));
                let read: Vec<PathBuf> = own.flatten().into_iter().collect();
                let launch = Launch { read: &read, isolation: self.isolation, ..Launch::default() };
                let mut command = self.launcher.command(program, &launch);
                command.args(arguments).envs(&self.config.env);
                let (process, _) = TokioChildProcess::builder(command)
                    .stderr(Stdio::null())
                    .spawn()
                    .map_err(|e| self.failed("could not be started", e))?;
                ().serve(process).await.map_err(|e| self.failed("did not say hello", e))
            } else {
                let mut headers = HashMap::new();
                for (name, value) in &self.config.headers {
                    let wrong = |_| Error::invalid(format!("`{name}` is not a header that can be sent"));
                    let name = name.as_str().try_into().map_err(|_| wrong(()))?;
                    headers.insert(name, value.as_str().try_into().map_err(|_| wrong(()))?);
                }
                let config =
                    StreamableHttpClientTransportConfig::with_uri(self.config.url.as_str()).custom_headers(headers);
                let transport = StreamableHttpClientTransport::from_config(config);
                ().serve(transport).await.map_err(|e| self.failed("did not say hello", e))
            }
        };
        self.within(HELLO_TIMEOUT, "did not say hello", hello).await?
    }

    /// A server may take a request and never answer it, also where its stream ends without a word.
    async fn within<T>(&self, time: Duration, failed: &str, work: impl Future<Output = T>) -> Result<T, Error> {
        let late = |_| self.failed(failed, format!("{} s are over", time.as_secs_f32()));
        tokio::time::timeout(time, work).await.map_err(late)
    }

    /// A way to the server; calls go side by side over it.
    async fn peer(&self) -> Result<rmcp::Peer<RoleClient>, Error> {
        let mut running = self.running.lock().await;
        if let Some(service) = running.as_ref().filter(|s| !s.is_closed() && !s.is_transport_closed()) {
            return Ok(service.peer().clone());
        }
        let fresh = self.connect().await?;
        let peer = fresh.peer().clone();
        *running = Some(fresh);
        Ok(peer)
    }

    /// What it offers.
    pub async fn tools(&self) -> Result<Vec<Offered>, Error> {
        let (peer, failed) = (self.peer().await?, "did not list its tools");
        let tools = self.within(HELLO_TIMEOUT, failed, peer.list_all_tools()).await?;
        let tools = tools.map_err(|e| self.failed(failed, e))?;
        let offered = tools.into_iter().map(|tool| {
            let about = tool.description.unwrap_or_default().into_owned();
            (tool.name.into_owned(), about, Value::Object((*tool.input_schema).clone()))
        });
        Ok(offered.collect())
    }

    /// What a tool says: its texts, or its structured answer as JSON where it has none; pictures and sounds are in the log alone.
    pub async fn call(&self, name: &str, arguments: Map<String, Value>) -> Result<Said, Error> {
        let params = CallToolRequestParams::new(name.to_owned()).with_arguments(arguments);
        let (peer, failed) = (self.peer().await?, "did not answer");
        let time = self.config.timeout_ms.map_or(CALL_TIMEOUT, Duration::from_millis);
        // A call that is dropped is cancelled at the server.
        let result = self.within(time, failed, peer.call_tool(params)).await?.map_err(|e| self.failed(failed, e))?;
        let (mut texts, mut content) = (Vec::<String>::new(), Vec::new());
        let file = |mime, data| Content::File { mime, name: None, source: MediaSource::Inline(data) };
        for block in result.content {
            let (text, kept) = match block {
                ContentBlock::Text(text) => (text.text.clone(), Content::Text(text.text)),
                ContentBlock::Image(image) => ("[an image]".to_owned(), file(image.mime_type, image.data)),
                ContentBlock::Audio(sound) => ("[a sound]".to_owned(), file(sound.mime_type, sound.data)),
                other => {
                    let value = serde_json::to_value(&other).unwrap_or_default();
                    (value.to_string(), Content::Data(value))
                }
            };
            texts.push(text);
            content.push(kept);
        }
        let structured = result.structured_content;
        if texts.is_empty() {
            texts.extend(structured.as_ref().map(Value::to_string));
        }
        let text = texts.join("\n");
        if result.is_error == Some(true) {
            return Err(Error::new(ErrorKind::Application, text));
        }
        Ok(Said { text, content: files::stored(&*self.outward, content).await?, structured })
    }
}
