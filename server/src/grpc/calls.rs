//! What every call passes: readiness before anything else, its deadline, and a fault of ours that must not take
//! the connection with it.

use std::any::Any;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kubemq_proto::strings::Refusal;
use kubemq_runtime::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response};
use tower::{Layer, Service};

use super::Door;
use super::ingest::Paid;

/// Paths of the API; reflection is served at all times.
const SERVICE_PATH: &str = "/kubemq.kubemq/";
/// Methods whose clients send several messages.
const STREAMS: [&str; 4] = ["SendEventsStream", "QueuesUpstream", "QueuesDownstream", "StreamQueueMessage"];
const STATUS: &str = "grpc-status";
/// Out of range: what the library says of a message above the limit.
const LIBRARY_TOO_LARGE: &[u8] = b"11";
/// Resource exhausted: what clients expect.
const TOO_LARGE: HeaderValue = HeaderValue::from_static("8");

/// Puts [`Calls`] around the services.
#[derive(Clone)]
pub(crate) struct CallsLayer(pub(crate) Arc<Door>);

impl<S> Layer<S> for CallsLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Calls { inner, door: Arc::clone(&self.0) }
    }
}

/// See the module documentation.
#[derive(Clone)]
pub(crate) struct Calls<S> {
    inner: S,
    door: Arc<Door>,
}

impl<S> Service<Request<Body>> for Calls<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = request.uri().path().strip_prefix(SERVICE_PATH);
        if method.is_some()
            && let Err(refusal) = self.door.is_open()
        {
            return Box::pin(std::future::ready(Ok(refused(refusal))));
        }
        let is_stream = method.is_some_and(|method| STREAMS.contains(&method));
        let clock = self.door.runtime.clock.clone();
        let timed = method.and_then(|method| self.door.durations.begin(method, &clock));
        let deadline: Option<Instant> = timeout(request.headers()).map(|timeout| clock.now() + timeout);
        let under_way = self.door.enter();
        let paid = Paid::default();
        let request = request.map(|body| Body::new(self.door.meter(body, is_stream, paid.clone())));
        let answer = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        Box::pin(async move {
            let _call = (under_way, paid, timed);
            let answer = match deadline {
                None => answer.await,
                // The library has a timer of its own, with a status that clients take for a lost server: this
                // one was made first, so it ends first.
                Some(deadline) => match clock.timeout_at(deadline, answer).await {
                    Ok(answer) => answer,
                    Err(_) => return Ok(refused(Refusal::DeadlineExceeded)),
                },
            };
            Ok(match answer {
                Ok(Ok(response)) => with_expected_code(response),
                Ok(Err(never)) => match never {},
                Err(panic) => {
                    tracing::error!(panic = text(&*panic), "a call panicked");
                    refused(Refusal::Crashed)
                }
            })
        })
    }
}

fn refused(refusal: Refusal) -> Response<Body> {
    Status::from(refusal).into_http()
}

fn with_expected_code(mut response: Response<Body>) -> Response<Body> {
    if let Some(status) = response.headers_mut().get_mut(STATUS)
        && status.as_bytes() == LIBRARY_TOO_LARGE
    {
        *status = TOO_LARGE;
    }
    response
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let static_text = panic.downcast_ref::<&'static str>().copied();
    static_text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

/// Returns the time that the client gives the call; a value that cannot be read gives none.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn the_methods_with_several_messages_are_those_of_the_api() {
        let files = prost_types::FileDescriptorSet::decode(kubemq_proto::FILE_DESCRIPTOR_SET).unwrap();
        let methods = files.file.iter().flat_map(|file| &file.service).flat_map(|service| &service.method);
        let mut streams: Vec<_> = methods.filter(|method| method.client_streaming()).map(|m| m.name()).collect();
        streams.sort_unstable();
        let mut expected = STREAMS;
        expected.sort_unstable();
        assert_eq!(streams, expected);
    }

    #[test]
    fn timeouts_are_read_as_the_protocol_writes_them() {
        let rows = [
            ("5S", Some(Duration::from_secs(5))),
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("100m", Some(Duration::from_millis(100))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("7u", Some(Duration::from_micros(7))),
            ("123456789S", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("5s", None),
            ("5", None),
        ];
        for (value, expected) in rows {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_str(value).unwrap());
            assert_eq!(timeout(&headers), expected, "{value}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }

    #[test]
    fn an_oversized_message_has_the_code_that_clients_expect() {
        let code = |status: Status| {
            let response = with_expected_code(status.into_http());
            response.headers().get(STATUS).unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(code(Status::out_of_range("too large")), "8");
        assert_eq!(code(Status::internal("other")), "13");
    }
}
