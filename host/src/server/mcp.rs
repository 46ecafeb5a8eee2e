//! The Model Context Protocol over a pair of streams: the tools that a client may call, and the calls,
//! each on the syscall path of the connection's process. What MCP calls a hint, the tool's effect knows.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::StreamExt as _;
use rmcp::handler::server::ServerHandler;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ErrorData, Implementation, JsonObject,
    ListToolsResult, PaginatedRequestParams, ProgressNotificationParam, ServerCapabilities, ServerConfig, Tool,
    ToolAnnotations,
};
use rmcp::service::{NotificationContext, RequestContext, RoleServer, ServiceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc, oneshot};

use super::Lines;
use super::error::{ApiError, Code};
use super::wire::{CallLine, Connected, OfferedTool, Request};
use crate::abi::Effect;
use crate::capability::Rights;
use crate::process::Pid;

/// A request of a connection, and where its answer goes.
pub type Question = (Request, oneshot::Sender<Result<Lines, ApiError>>);

/// Asks whoever answers: a kernel in this process or another's, which may change while a client is connected.
#[derive(Clone, Debug)]
struct Kernels(mpsc::UnboundedSender<Question>);

impl Kernels {
    async fn ask(&self, request: Request) -> Result<Lines, ApiError> {
        let (reply, answer) = oneshot::channel();
        let gone = || ApiError::new(Code::KernelEnding, "the connection is being closed", "connect again");
        self.0.send((request, reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// Between the end of a kernel and the question to the next.
const NEXT_KERNEL: Duration = Duration::from_millis(200);

/// Between two words of a call's progress.
const PROGRESS: Duration = Duration::from_secs(1);

/// Serves MCP on standard input and output until the input ends. What the client wants is asked by `questions`.
///
/// # Errors
/// A client that does not begin with `initialize`, or streams that fail.
pub async fn serve(questions: mpsc::UnboundedSender<Question>, rights: Rights) -> Result<(), ApiError> {
    let failed = |why: String| {
        ApiError::new(
            Code::BadUsage,
            format!("the MCP client broke off: {why}"),
            "docs/mcp.md says how a client is set up",
        )
    };
    let mcp = Mcp { kernels: Kernels(questions), rights: Arc::new(rights), process: Arc::default() };
    let service = match mcp.serve(rmcp::transport::stdio_pipes()).await {
        Ok(service) => service,
        // It said nothing and left: so a client asks whether there is a server at all.
        Err(rmcp::service::ServerInitializeError::ConnectionClosed(_)) => return Ok(()),
        Err(e) => return Err(failed(e.to_string())),
    };
    service.waiting().await.map(drop).map_err(|e| failed(e.to_string()))
}

/// One connection.
#[derive(Clone, Debug)]
struct Mcp {
    kernels: Kernels,
    rights: Arc<Rights>,
    process: Arc<Mutex<Option<Process>>>,
}

/// The process that makes the connection's calls. It lasts as long as the answer that told of it.
struct Process {
    pid: Pid,
    _answer: Lines,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl Mcp {
    /// The process of this connection; a new one where there is none or `gone` is the one that was.
    async fn process(&self, gone: Option<Pid>) -> Result<Pid, ApiError> {
        let mut process = self.process.lock().await;
        if let Some(process) = process.as_ref().filter(|p| Some(p.pid) != gone) {
            return Ok(process.pid);
        }
        let Rights { mounts, hosts, .. } = Rights::clone(&self.rights);
        let mut answer = self.kernels.ask(Request::Connect { name: "mcp".to_owned(), mounts, hosts }).await?;
        let Connected { pid } = first(&mut answer).await?;
        *process = Some(Process { pid, _answer: answer });
        Ok(pid)
    }

    async fn call(&self, name: &str, arguments: &str) -> Result<CallLine, ApiError> {
        let mut gone = None;
        loop {
            let pid = self.process(gone).await?;
            let call = Request::ToolCall {
                name: name.to_owned(),
                arguments: arguments.to_owned(),
                mounts: Vec::new(),
                hosts: Vec::new(),
                stop: true,
                connection: Some(pid),
            };
            let answer = async { first(&mut self.kernels.ask(call).await?).await };
            match answer.await {
                // Another kernel, or a process that used up its quota: nothing was begun.
                Err(e) if e.code == Code::UnknownProcess && gone.is_none() => gone = Some(pid),
                answer => return answer,
            }
        }
    }
}

/// The first line of an answer.
async fn first<T: DeserializeOwned>(answer: &mut Lines) -> Result<T, ApiError> {
    parse(&answer.next().await.unwrap_or_else(|| Err(ApiError::internal("a request had no answer")))?)
}

impl ServerHandler for Mcp {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder().enable_tools().enable_tool_list_changed().build();
        let mut info = ServerConfig::new(capabilities);
        info.server_info = Implementation::new("aok", env!("CARGO_PKG_VERSION"));
        info.instructions = Some(
            "Tools run in a WebAssembly sandbox. They see the directories and hosts that the server was started with."
                .to_owned(),
        );
        info
    }

    async fn list_tools(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let Rights { mounts, hosts, .. } = Rights::clone(&self.rights);
        let mut lines = self.kernels.ask(Request::ToolsOffered { mounts, hosts }).await.map_err(broken)?;
        let mut tools = Vec::new();
        while let Some(line) = lines.next().await {
            let tool: OfferedTool = parse(&line.map_err(broken)?).map_err(broken)?;
            tools.push(describe(tool));
        }
        Ok(ListToolsResult::with_all_items(tools))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments = Value::Object(request.arguments.unwrap_or_default()).to_string();
        tokio::select! {
            answer = self.call(&request.name, &arguments) => answer.map(|line| result(line).into()).map_err(broken),
            // Dropping the answer stops the call.
            () = context.ct.cancelled() => Err(ErrorData::internal_error("the call was cancelled", None)),
            never = tell_progress(&context) => match never {},
        }
    }

    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        let kernels = self.kernels.clone();
        tokio::spawn(async move {
            loop {
                let mut changes = match kernels.ask(Request::ToolChanges {}).await {
                    Ok(changes) => changes,
                    Err(e) => return tracing::warn!("changes of the tools are not told: {e}"),
                };
                while let Some(Ok(_)) = changes.next().await {
                    if context.peer.notify_tool_list_changed().await.is_err() {
                        return;
                    }
                }
                // That kernel has ended, and the next may have other plugins.
                tokio::time::sleep(NEXT_KERNEL).await;
                if context.peer.notify_tool_list_changed().await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Tells a client that asked for it how long its call has run, until this is dropped. A tool says nothing of how
/// far it is, but a client that hears of the call gives it more patience.
async fn tell_progress(context: &RequestContext<RoleServer>) -> Infallible {
    let Some(token) = context.meta.get_progress_token() else { return std::future::pending().await };
    let began = Instant::now();
    loop {
        tokio::time::sleep(PROGRESS).await;
        let seconds = began.elapsed().as_secs_f64();
        let progress = ProgressNotificationParam::new(token.clone(), seconds);
        let told = context.peer.notify_progress(progress.with_message(format!("running for {seconds:.0} s"))).await;
        if told.is_err() {
            // The connection is gone, and the call with it.
            return std::future::pending().await;
        }
    }
}

fn parse<T: DeserializeOwned>(line: &str) -> Result<T, ApiError> {
    serde_json::from_str(line).map_err(|e| ApiError::internal(format!("the kernel's answer is not understood: {e}")))
}

/// A tool as MCP shows it. The protocol takes only schemas of objects.
fn describe(OfferedTool { tool, network }: OfferedTool) -> Tool {
    let object = |schema: Value| match schema {
        Value::Object(schema) if schema.get("type").is_some_and(|t| t == "object") => Some(Arc::new(schema)),
        _ => None,
    };
    let any = || Arc::new(JsonObject::from_iter([("type".to_owned(), json!("object"))]));
    let mut described = Tool::new(tool.name, tool.description, object(tool.input_schema).unwrap_or_else(any));
    described.output_schema = tool.output_schema.and_then(object);
    described.annotations = Some(annotations(tool.effect, network));
    described
}

fn annotations(effect: Effect, network: bool) -> ToolAnnotations {
    let hints = ToolAnnotations::new().read_only(!effect.is_outward()).open_world(network);
    match effect {
        Effect::Pure | Effect::ReadOnly => hints,
        Effect::Idempotent => hints.destructive(false).idempotent(true),
        Effect::Destructive => hints.destructive(true).idempotent(false),
    }
}

/// What a call gave: the result as text, an object also as itself; or the tool's error, which is the
/// model's to deal with.
fn result(line: CallLine) -> CallToolResult {
    if let Some(error) = line.error {
        let limit = error.limit.map(|limit| format!(" (limit: {limit})")).unwrap_or_default();
        let text = format!("{}{limit} [{}]", error.message, error.code.name());
        return CallToolResult::error(vec![ContentBlock::text(text)]);
    }
    let text = line.result.map_or_else(|| "null".to_owned(), |raw| raw.get().to_owned());
    match serde_json::from_str(&text) {
        Ok(Value::String(plain)) => CallToolResult::success(vec![ContentBlock::text(plain)]),
        Ok(value @ Value::Object(_)) => {
            let mut result = CallToolResult::success(vec![ContentBlock::text(text)]);
            result.structured_content = Some(value);
            result
        }
        _ => CallToolResult::success(vec![ContentBlock::text(text)]),
    }
}

/// What went wrong beside the tool: the request itself, or the kernel.
fn broken(error: ApiError) -> ErrorData {
    let message = format!("{} ({})", error.message, error.hint);
    let data = Some(json!({ "code": error.code.name() }));
    match error.code {
        Code::UnknownTool | Code::AmbiguousTool | Code::InvalidArguments | Code::BadUsage => {
            ErrorData::invalid_params(message, data)
        }
        _ => ErrorData::internal_error(message, data),
    }
}
