//! The loads of stored events: publishing on a stream of events, and replaying a channel from its first event.

use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use kubemq_proto::kubemq as proto;
use kubemq_proto::kubemq::subscribe::{EventsStoreType, SubscribeType};
use kubemq_runtime::{Clock, Random};
use tonic::Request;
use tonic::codegen::http::uri::PathAndQuery;

use super::flow::Flow;
use super::meter::Meter;
use super::wire::{EventAnswer, Seen, Single, Template, Wire};
use super::{Service, stream_ended};
use crate::cli::client::{LARGEST_MESSAGE, refused};
use crate::cli::output::Failure;

/// How many answers or events are counted under one lock.
const COUNTED_AT_ONCE: usize = 1024;

/// What a replay reads, again and again.
#[derive(Clone)]
pub(super) struct Replaying {
    pub(super) channel: String,
    /// Events that are stored there before.
    pub(super) events: u64,
}

/// Publishes what `flow` lets go until the stream fails.
pub(super) async fn publish(
    service: Service,
    flow: Arc<Flow>,
    templates: Arc<[Template]>,
    meter: Meter,
    clock: Clock,
) -> Failure {
    let mut turn = 0;
    let requests = {
        let flow = Arc::clone(&flow);
        futures_util::stream::poll_fn(move |context| {
            flow.poll_next(context).map(|id| {
                turn = (turn + 1) % templates.len();
                id.map(|id| Single { id, template: templates[turn].clone() })
            })
        })
    };
    let mut answers = match open(service, requests).await {
        Ok(answers) => answers.ready_chunks(COUNTED_AT_ONCE),
        Err(failure) => return failure,
    };
    while let Some(answers) = answers.next().await {
        let now = clock.now();
        let mut failure = None;
        meter.with(|counters| {
            for answer in answers {
                match answer {
                    Ok(EventAnswer { error: Some(error), .. }) => counters.refused(1, error),
                    Ok(EventAnswer { id: Some(id), .. }) if flow.made(id) => counters.answered(id.intended, now, 1),
                    Ok(_) => {
                        failure = Some(Failure::Refused("an answer names an event that was never sent".to_owned()));
                        return;
                    }
                    Err(status) => {
                        failure = Some(refused(&status));
                        return;
                    }
                }
                flow.answered(1);
            }
        });
        if let Some(failure) = failure {
            return failure;
        }
        flow.wake();
    }
    stream_ended()
}

/// Opens a stream of events.
///
/// # Errors
///
/// When it cannot be opened.
pub(super) async fn open<S>(service: Service, requests: S) -> Result<tonic::Streaming<EventAnswer>, Failure>
where
    S: Stream<Item = Single> + Send + 'static,
{
    let mut grpc = tonic::client::Grpc::new(service);
    grpc.ready().await.map_err(|error| refused(&tonic::Status::from_error(error.into())))?;
    let path = PathAndQuery::from_static("/kubemq.kubemq/SendEventsStream");
    let answers = grpc.streaming(Request::new(requests), path, Wire::<Single, EventAnswer>::default()).await;
    answers.map(tonic::Response::into_inner).map_err(|status| refused(&status))
}

/// Stores what a replay reads.
///
/// # Errors
///
/// When the stream fails or an event is refused.
pub(super) async fn fill(service: Service, events: u64, template: Template, clock: Clock) -> Result<(), Failure> {
    let flow = Flow::new(clock, 0, events, 1, None, Some(events));
    let requests = {
        let flow = Arc::clone(&flow);
        futures_util::stream::poll_fn(move |context| {
            flow.poll_next(context).map(|id| id.map(|id| Single { id, template: template.clone() }))
        })
    };
    let answers = open(service, requests.take(usize::try_from(events).unwrap_or(usize::MAX))).await?;
    let mut stored = 0;
    let mut answers = std::pin::pin!(answers);
    while let Some(answer) = answers.next().await {
        if let Some(error) = answer.map_err(|status| refused(&status))?.error {
            return Err(Failure::Refused(error));
        }
        stored += 1;
    }
    if stored == events { Ok(()) } else { Err(stream_ended()) }
}

/// Reads a channel from its first event to its last, again and again, each time as a new client.
pub(super) async fn replay(
    service: Service,
    replaying: Replaying,
    random: Random,
    meter: Meter,
    clock: Clock,
) -> Failure {
    let mut grpc = tonic::client::Grpc::new(service).max_decoding_message_size(LARGEST_MESSAGE);
    loop {
        if let Err(error) = grpc.ready().await {
            return refused(&tonic::Status::from_error(error.into()));
        }
        let subscribe = proto::Subscribe {
            subscribe_type_data: SubscribeType::EventsStore as i32,
            client_id: kubemq_proto::id::nuid(&random),
            channel: replaying.channel.clone(),
            events_store_type_data: EventsStoreType::StartFromFirst as i32,
            ..proto::Subscribe::default()
        };
        let path = PathAndQuery::from_static("/kubemq.kubemq/SubscribeToEvents");
        let codec = Wire::<proto::Subscribe, Seen>::default();
        let events = match grpc.server_streaming(Request::new(subscribe), path, codec).await {
            Ok(response) => response.into_inner(),
            Err(status) => return refused(&status),
        };
        if let Err(failure) = read(events, replaying.events, &meter, &clock).await {
            return failure;
        }
    }
}

async fn read(events: tonic::Streaming<Seen>, count: u64, meter: &Meter, clock: &Clock) -> Result<(), Failure> {
    let mut events = events.ready_chunks(COUNTED_AT_ONCE);
    let mut last = 0;
    while last < count {
        let Some(chunk) = events.next().await else { return Err(stream_ended()) };
        let now = clock.now();
        let mut read = 0;
        for event in chunk {
            let Seen { sequence } = event.map_err(|status| refused(&status))?;
            if sequence != last + 1 {
                return Err(Failure::Refused(format!("event {sequence} came after event {last}")));
            }
            last = sequence;
            read += 1;
        }
        // Nobody waited for a single one of them.
        meter.with(|counters| counters.answered(now, now, read));
    }
    Ok(())
}
