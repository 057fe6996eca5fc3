//! How the client commands reach a broker: address, identity, limits.
//!
//! Plain text only; TLS arrives with the server's. A command makes one connection and ends with it: nothing
//! here reconnects by itself.

use std::future::Future;
use std::time::Duration;

use kubemq_proto::kubemq::kubemq_client::KubemqClient;
use kubemq_runtime::{Runtime, chain};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::output::{Ending, Failure, Format};

/// The port of the gRPC interface when an address names none.
const DEFAULT_PORT: u16 = 50_000;

/// The client id of a command that is given none.
pub const DEFAULT_CLIENT_ID: &str = "kubemq-cli";

/// The largest message that is sent or received, as in the SDKs.
pub const LARGEST_MESSAGE: usize = 100 * 1024 * 1024;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer may take that the broker has no reason to hold back.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The flags that every client command has.
#[derive(Clone, Debug, clap::Args)]
pub struct Connection {
    /// Where the broker listens for gRPC, as host:port
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        default_value = "localhost:50000",
        help_heading = "Connection"
    )]
    pub address: String,

    /// The name by which the broker knows this client
    #[arg(long, global = true, value_name = "NAME", default_value = DEFAULT_CLIENT_ID, help_heading = "Connection")]
    pub client_id: String,

    /// The access token, or @FILE to read it from a file
    #[arg(long, global = true, value_name = "TOKEN", help_heading = "Connection")]
    pub token: Option<String>,

    /// How to print results
    #[arg(long, global = true, value_enum, default_value_t, help_heading = "Connection")]
    pub output: Format,
}

/// A connection to a broker.
pub type Client = KubemqClient<InterceptedService<Channel, Token>>;

impl Connection {
    /// Connects to the broker.
    ///
    /// # Errors
    ///
    /// When the address or the token makes no sense, or nobody answers at the address.
    pub async fn connect(&self) -> Result<Client, Failure> {
        let channel = connect(&endpoint(&self.address)?, &self.address).await?;
        let client = KubemqClient::with_interceptor(channel, self.token()?);
        Ok(client.max_decoding_message_size(LARGEST_MESSAGE).max_encoding_message_size(LARGEST_MESSAGE))
    }

    /// Returns what proves to the broker who this client is.
    ///
    /// # Errors
    ///
    /// When the token's file cannot be read, or the token cannot be sent.
    pub fn token(&self) -> Result<Token, Failure> {
        let Some(token) = &self.token else { return Ok(Token(None)) };
        let text = match token.strip_prefix('@') {
            None => token.clone(),
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| Failure::Usage(format!("could not read the token from {path}: {error}")))?,
        };
        let value = text.trim().parse();
        value
            .map(|value| Token(Some(value)))
            .map_err(|_| Failure::Usage("the token has characters that cannot be sent".into()))
    }
}

/// Adds the access token to each call.
#[derive(Clone, Debug, Default)]
pub struct Token(Option<MetadataValue<Ascii>>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// Returns how to reach `address`: the limits of engine.md's gRPC section, no delay for small frames.
///
/// # Errors
///
/// When `address` is not of the form host:port.
pub fn endpoint(address: &str) -> Result<Endpoint, Failure> {
    let wrong = || Failure::Usage(format!("the address {address:?} is not of the form host:port"));
    if address.starts_with("https://") {
        return Err(Failure::Usage("this version connects without TLS only: give the address as host:port".into()));
    }
    let plain = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/');
    let has_port = plain.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let uri = if has_port { format!("http://{plain}") } else { format!("http://{plain}:{DEFAULT_PORT}") };
    let endpoint = Endpoint::from_shared(uri).map_err(|_| wrong())?;
    if endpoint.uri().host().is_none_or(str::is_empty) || endpoint.uri().path() != "/" {
        return Err(wrong());
    }
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .max_frame_size(1 << 20))
}

/// Connects to `endpoint`, which `address` names to the user.
///
/// # Errors
///
/// When nobody answers there.
pub async fn connect(endpoint: &Endpoint, address: &str) -> Result<Channel, Failure> {
    endpoint.connect().await.map_err(|error| {
        Failure::Refused(format!(
            "could not reach a broker at {address} ({}); `kubemq server` starts one",
            chain(&error)
        ))
    })
}

/// Runs a command to its end, on one thread.
///
/// # Errors
///
/// Whatever the command fails with.
pub fn run<F>(command: impl FnOnce(Runtime) -> F) -> Result<Ending, Failure>
where
    F: Future<Output = Result<Ending, Failure>>,
{
    run_on(1, command)
}

/// Runs a command to its end, on the given number of threads.
///
/// # Errors
///
/// Whatever the command fails with.
pub fn run_on<F>(threads: usize, command: impl FnOnce(Runtime) -> F) -> Result<Ending, Failure>
where
    F: Future<Output = Result<Ending, Failure>>,
{
    let executor = match threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        _ => tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build(),
    };
    let executor = executor.map_err(|error| Failure::Refused(format!("could not start: {error}")))?;
    executor.block_on(async { command(Runtime::real()).await })
}

/// Awaits the answer to a call, which may take `wait` longer than any call.
///
/// # Errors
///
/// The text of the broker's refusal, or that there was no answer.
pub async fn answer<T>(
    runtime: &Runtime,
    wait: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Failure> {
    let limit = CALL_TIMEOUT + wait;
    match runtime.clock.timeout(limit, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(refused(&status)),
        Err(_) => Err(Failure::Refused(format!("no answer within {} s", limit.as_secs()))),
    }
}

/// Returns the failure that `status` means: its text, and its code where the text is empty.
pub fn refused(status: &Status) -> Failure {
    let text = if status.message().is_empty() { status.code().description() } else { status.message() };
    Failure::Refused(text.to_owned())
}

/// Returns a refusal with the text that the broker put into its answer.
///
/// # Errors
///
/// Always when `is_error` is set.
pub fn accepted(is_error: bool, error: &str) -> Result<(), Failure> {
    if is_error { Err(Failure::Refused(error.to_owned())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_completed_or_refused() {
        let uri = |address: &str| endpoint(address).map(|endpoint| endpoint.uri().to_string());
        assert_eq!(uri("localhost:7000").ok().as_deref(), Some("http://localhost:7000/"));
        assert_eq!(uri("broker").ok().as_deref(), Some("http://broker:50000/"));
        assert_eq!(uri("http://broker:1/").ok().as_deref(), Some("http://broker:1/"));
        assert_eq!(uri("[::1]:50001").ok().as_deref(), Some("http://[::1]:50001/"));
        for wrong in ["", "a b", "https://broker:1", "broker:1/path", "broker:70000"] {
            assert!(uri(wrong).is_err(), "{wrong:?} was taken for an address");
        }
    }
}
