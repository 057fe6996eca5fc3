//! The listener, and how the server is set up and ended.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use kubemq_proto::FILE_DESCRIPTOR_SET;
use kubemq_proto::kubemq::kubemq_server::KubemqServer;
use kubemq_runtime::Runtime;
use kubemq_runtime::sync::watch;
use tokio::net::TcpListener;
use tonic::codec::CompressionEncoding;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::calls::CallsLayer;
use super::connection::Watched;
use super::door::Identity;
use super::{Door, Durations, Ingest, Phase, Service};

/// What one stream may have on its way unread.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// What one connection may have on its way unread, over all its streams. The HTTP/2 library closes a connection
/// when unread frames of less than 256 bytes waste more than half of this: a stream that the node does not read
/// for a while may well hold a full window of them, since many clients put each message into a frame of its own.
const CONNECTION_WINDOW: u32 = 64 * STREAM_WINDOW;
/// The largest frame: fewer, larger reads.
const MAX_FRAME: u32 = 1024 * 1024;
/// Clients put all their subscriptions on one connection.
const MAX_STREAMS: u32 = 1_000_000;
/// Streams that a client may cancel before they were looked at; beyond it the connection is closed.
const CANCELLED_STREAMS: usize = 1024;
/// How long a connection may be silent before it is asked whether it is still there.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(30);
/// How long it may take to answer.
const KEEP_ALIVE_WITHIN: Duration = Duration::from_secs(20);
/// How the kernel probes a silent connection. A machine that vanished is noticed after eleven seconds: until then the
/// ids of its clients are taken. (A process that stands still answers to these; see [`KEEP_ALIVE_AFTER`].)
const PROBES: Probes = Probes { after: Duration::from_secs(5), every: Duration::from_secs(2), most: 3 };

struct Probes {
    after: Duration,
    every: Duration,
    most: u32,
}

/// How long calls that are under way may go on when the server stops.
const FINISH: Duration = Duration::from_secs(5);
/// How long connections may take to close after that.
const CLOSE: Duration = Duration::from_secs(2);

/// How the server is set up.
#[derive(Clone)]
pub struct Options {
    /// The largest request or answer, in bytes.
    pub max_message_bytes: usize,
    /// What requests pay for before they are buffered.
    pub ingest: Ingest,
    /// Where it is counted how long calls took.
    pub durations: Durations,
    /// The name under which the node answers pings; empty for a neutral one.
    pub host: String,
    /// The version that clients are told, which they compare with those they know.
    pub version: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_message_bytes: 100 * 1024 * 1024,
            ingest: Ingest::new(256 * 1024 * 1024),
            durations: Durations::default(),
            host: String::new(),
            version: "2.6.0".to_owned(),
        }
    }
}

/// Why the server could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors of the API could not be used.
    #[error("could not set up reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The listener failed.
    #[error("could not serve connections")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves the API on `listener` until the phase says that the node stops and everything under way has ended:
/// streams with a status that tells clients to come back, then the connections.
///
/// # Errors
///
/// [`ServeError`] when the server could not be set up or its listener failed.
pub async fn serve(
    listener: TcpListener,
    options: Options,
    runtime: Runtime,
    phase: watch::Receiver<Phase>,
) -> Result<(), ServeError> {
    let identity = Identity {
        host: host(&options.host),
        version: options.version,
        started: runtime.clock.wall(),
        started_at: runtime.clock.now(),
    };
    let clock = runtime.clock.clone();
    let door = Door::new(runtime, identity, (options.ingest, options.durations, options.max_message_bytes), phase);
    let service = KubemqServer::new(Service { door: Arc::clone(&door) })
        .max_decoding_message_size(options.max_message_bytes)
        .max_encoding_message_size(options.max_message_bytes)
        .accept_compressed(CompressionEncoding::Gzip);
    let reflection =
        || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET);
    // Without this every small answer waits for the client's acknowledgement of the one before.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let Probes { after, every, most } = PROBES;
    let incoming = incoming.with_keepalive(Some(after)).with_keepalive_interval(Some(every));
    let incoming = incoming.with_keepalive_retries(Some(most));
    let watched = clock.clone();
    let incoming = incoming.map(move |accepted| accepted.map(|bytes| Watched::new(bytes, watched.clone())));
    let (stopped, mut is_stopped) = watch::channel(false);
    let signal = {
        let (door, clock) = (Arc::clone(&door), clock.clone());
        async move {
            door.stopping().await;
            door.stop.raise();
            if clock.timeout(FINISH, door.idle()).await.is_err() {
                tracing::warn!("calls still under way were cut off");
            }
            stopped.send(true);
        }
    };
    let serving = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_pending_accept_reset_streams(Some(CANCELLED_STREAMS))
        .http2_keepalive_interval(Some(KEEP_ALIVE_AFTER))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_WITHIN))
        .layer(CallsLayer(Arc::clone(&door)))
        .add_service(service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .serve_with_incoming_shutdown(incoming, signal);
    let closing = async {
        is_stopped.wait_for(|stopped| *stopped).await.ok();
        clock.sleep(CLOSE).await;
    };
    tokio::select! {
        biased;
        served = serving => Ok(served?),
        // A client that does not take part in closing does not keep the node.
        () = closing => Ok(()),
    }
}

/// Returns the name under which pings are answered, in the form that clients know.
fn host(configured: &str) -> String {
    let name = configured.replace('.', "_");
    if name.is_empty() {
        return "kubemq".to_owned();
    }
    if name.starts_with(|first: char| first.is_ascii_digit()) { format!("kubemq-{name}") } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_the_form_that_clients_know() {
        for (configured, expected) in
            [("", "kubemq"), ("node-1.local", "node-1_local"), ("10.0.0.1", "kubemq-10_0_0_1")]
        {
            assert_eq!(host(configured), expected);
        }
    }
}
