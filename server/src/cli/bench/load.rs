//! One load from start to end: connections, warm-up, measurement, the rest of the answers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use kubemq_proto::kubemq::request::RequestType;
use kubemq_proto::kubemq::subscribe::SubscribeType;
use kubemq_runtime::{Instant, OnFailure, Random, Runtime, Task};
use serde::Serialize;

use super::end_to_end::{self, Asking};
use super::flow::{Flow, Schedule};
use super::meter::Meter;
use super::process::Usage;
use super::report::{Measured, Report, micros};
use super::stored::Replaying;
use super::upstream::{self, Confirmation};
use super::wire::{RequestAnswer, SendAnswer, Template};
use super::{Service, events, responder, stored, unary};
use crate::cli::client::{self, Token};
use crate::cli::output::Failure;

/// How long answers are waited for when nothing is sent any more.
const DRAIN: Duration = Duration::from_secs(10);

/// How long a command or query may take.
const REQUEST_MILLIS: i32 = 10_000;

/// How often the end of the answers is looked for.
const DRAIN_LOOK: Duration = Duration::from_millis(2);

/// How often at least the schedule of an open loop is looked at.
const SLOWEST_PACE: Duration = Duration::from_millis(1);

/// How often at most.
const FASTEST_PACE: Duration = Duration::from_micros(50);

/// The kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Publish on upstream streams; a message is done when it is confirmed
    Upstream,
    /// Send with one call per message; a message is done when the call is answered
    Unary,
    /// Publish, get and ack at once; a message is done when its consumer has it
    EndToEnd,
    /// Publish events on a stream; each copy is a message, done when its subscriber has it
    #[value(skip)]
    Events,
    /// Send commands; one is done when it is answered
    #[value(skip)]
    Commands,
    /// Send queries; one is done when it is answered
    #[value(skip)]
    Queries,
    /// Store events; an event is done when its result comes
    #[value(skip)]
    EventsStore,
    /// Read stored events; an event is done when it is read
    #[value(skip)]
    Replay,
}

impl Mode {
    /// Returns the name that the command line and reports use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Unary => "unary",
            Self::EndToEnd => "end-to-end",
            Self::Events => "events",
            Self::Commands => "commands",
            Self::Queries => "queries",
            Self::EventsStore => "events-store",
            Self::Replay => "replay",
        }
    }
}

/// What to do to a broker.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where the broker is.
    pub address: String,
    /// Access token.
    pub token: Token,
    /// The client's name.
    pub client_id: String,
    /// The kind of load.
    pub mode: Mode,
    /// Messages per second; nothing for a closed loop.
    pub rate: Option<f64>,
    /// How many messages may be unanswered at a time, over all connections.
    pub in_flight: u64,
    /// Bytes of a body.
    pub size: usize,
    /// Channels, named by `prefix` and a number.
    pub channels: usize,
    /// What the names of the channels begin with.
    pub prefix: String,
    /// Publishing connections.
    pub connections: usize,
    /// Messages per request.
    pub batch: u64,
    /// Messages per Get; when nothing is said half of a channel's share of what is in flight, with a rate one.
    pub items: Option<u32>,
    /// Events that a replay stores before, and reads again and again.
    pub events: u64,
    /// Subscribers that get each event that is not stored.
    pub receivers: usize,
    /// Ends with so many messages instead of after a time, which is then the longest that it may take.
    pub messages: Option<u64>,
    /// How long to measure.
    pub duration: Duration,
    /// How long to run before that.
    pub warm_up: Duration,
    /// The broker's process when it is on this machine, to report what it used.
    pub broker_process: Option<u32>,
}

/// What happened since the last look, about every second.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Since the load began.
    pub elapsed: Duration,
    /// Whether this is before the measurement.
    pub warming_up: bool,
    /// Messages per second.
    pub rate: f64,
    /// Microseconds.
    pub p50_us: f64,
    /// Microseconds.
    pub p99_us: f64,
    /// Refused messages.
    pub refused: u64,
    /// Unanswered messages.
    pub unanswered: u64,
}

impl Load {
    /// Returns the name of a channel.
    #[must_use]
    pub fn channel(&self, number: usize) -> String {
        format!("{}.{number}", self.prefix)
    }

    /// Runs the load, and shows how it goes about every second.
    ///
    /// # Errors
    ///
    /// When the broker cannot be reached or ends a stream or call, or when the load contradicts itself.
    pub async fn run(&self, runtime: &Runtime, mut show: impl FnMut(&Progress)) -> Result<Report, Failure> {
        self.check()?;
        let meter = Meter::new().map_err(|error| Failure::Refused(format!("could not make a histogram: {error}")))?;
        let mut running = Running::start(self, runtime, &meter).await?;
        let mut measured = self.measure(runtime, &meter, &mut running, &mut show).await?;
        running.drain(runtime).await?;
        let late = meter.take();
        measured.latencies.add(&late.latencies).ok();
        measured.refused += late.refused;
        measured.first_refusal = measured.first_refusal.take().or(late.error);
        measured.unanswered = running.unanswered();
        Ok(Report::new(self, &measured))
    }

    /// Returns for how many messages one request counts.
    fn weight(&self) -> u64 {
        if self.mode == Mode::Events { self.receivers as u64 } else { self.batch }
    }

    /// Returns whether each publishing connection has one beside it that receives.
    fn has_receivers(&self) -> bool {
        matches!(self.mode, Mode::EndToEnd | Mode::Events | Mode::Commands | Mode::Queries)
    }

    fn check(&self) -> Result<(), Failure> {
        let connections = self.connections as u64;
        let wrong = if self.in_flight < connections * self.weight() {
            "each connection needs room for one request: raise --in-flight, or lower --connections or --batch"
        } else if self.has_receivers() && self.channels < self.connections {
            "each connection has channels of its own: raise --channels or lower --connections"
        } else if self.mode == Mode::Replay && self.channels != self.connections {
            "a replay reads one channel on each connection: leave --channels out"
        } else if self.messages.is_some() && !self.warm_up.is_zero() {
            "a number of messages is counted from the first: leave --warmup out"
        } else if !matches!(self.mode, Mode::Upstream | Mode::EndToEnd) && self.batch > 1 {
            "one call or event carries one message: leave --batch out"
        } else {
            return Ok(());
        };
        Err(Failure::Usage(wrong.to_owned()))
    }

    async fn measure(
        &self,
        runtime: &Runtime,
        meter: &Meter,
        running: &mut Running,
        show: &mut impl FnMut(&Progress),
    ) -> Result<Measured, Failure> {
        let begin = running.start;
        let (from, to) = (begin + self.warm_up, begin + self.warm_up + self.duration);
        let mut done: Option<(Measured, Used)> = None;
        let mut last = begin;
        loop {
            let warming_up = done.is_none();
            let next = (last + Duration::from_secs(1)).min(if warming_up { from } else { to });
            running.until_or_drained(runtime, next).await?;
            let now = runtime.clock.now();
            let to = if running.is_drained() { now } else { to };
            let mut seen = meter.take();
            if let Some((measured, _)) = &mut done {
                measured.latencies.add(&seen.latencies).ok();
                measured.messages += seen.messages;
                measured.refused += seen.refused;
                measured.first_refusal = measured.first_refusal.take().or(seen.error.take());
            }
            if now.since(last) >= Duration::from_millis(500) {
                show(&Progress {
                    elapsed: now.since(begin),
                    warming_up,
                    rate: per_second(seen.messages, now.since(last)),
                    p50_us: micros(seen.latencies.value_at_quantile(0.5)),
                    p99_us: micros(seen.latencies.value_at_quantile(0.99)),
                    refused: seen.refused,
                    unanswered: running.unanswered(),
                });
            }
            last = now;
            if now >= from && warming_up {
                meter.start_over(now);
                done = Some((Measured::nothing(seen.latencies), self.used()));
            }
            if let Some((mut measured, before)) = done.take_if(|_| now >= to) {
                measured.time = now.since(from);
                let after = self.used();
                measured.client = after.client.zip(before.client).map(|(after, before)| after.since(before));
                measured.broker = after.broker.zip(before.broker).map(|(after, before)| after.since(before));
                return Ok(measured);
            }
        }
    }
}

/// What the two processes have used so far.
struct Used {
    client: Option<Usage>,
    broker: Option<Usage>,
}

impl Load {
    fn used(&self) -> Used {
        let broker = self.broker_process.and_then(|process| Usage::of(Some(process)));
        Used { client: Usage::of(None), broker }
    }
}

impl Measured {
    fn nothing(mut latencies: Histogram<u64>) -> Self {
        latencies.reset();
        let time = Duration::ZERO;
        Self {
            time,
            messages: 0,
            refused: 0,
            first_refusal: None,
            unanswered: 0,
            latencies,
            client: None,
            broker: None,
        }
    }
}

/// A load that runs. Dropping it ends its tasks.
struct Running {
    start: Instant,
    flows: Vec<Arc<Flow>>,
    failures: FuturesUnordered<Task<Failure>>,
}

impl Running {
    async fn start(load: &Load, runtime: &Runtime, meter: &Meter) -> Result<Self, Failure> {
        let mut body = vec![0; load.size];
        Random::from_seed(1).fill(&mut body);
        let body = Bytes::from(body);
        let tag = runtime.random.u64();
        let mut services = Vec::new();
        for _ in 0..load.connections {
            services.push((connect(load).await?, if load.has_receivers() { Some(connect(load).await?) } else { None }));
        }
        if load.mode == Mode::Replay {
            for (number, (service, _)) in services.iter().enumerate() {
                let template = Template::stored_event(&load.client_id, &load.channel(number), body.clone());
                stored::fill(service.clone(), load.events, template, runtime.clock.clone()).await?;
            }
        }
        let start = runtime.clock.now();
        let mut running = Self { start, flows: Vec::new(), failures: FuturesUnordered::new() };
        for (number, (publisher, consumer)) in services.into_iter().enumerate() {
            let flow = Flow::new(
                runtime.clock.clone(),
                tag + number as u64,
                share(load.in_flight, load.connections, number),
                load.weight(),
                load.schedule(start, number),
                load.messages.map(|messages| share(messages, load.connections, number)),
            );
            running.flows.push(Arc::clone(&flow));
            // With receivers, each channel belongs to one connection; otherwise every connection uses all.
            let own: Vec<String> = (0..load.channels)
                .filter(|channel| consumer.is_none() || channel % load.connections == number)
                .map(|channel| load.channel(channel))
                .collect();
            let templates = own.iter().map(|channel| load.template(channel, body.clone())).collect();
            if let Some(consumer) = consumer {
                running.receive(load, runtime, meter, &flow, &consumer, own).await?;
            }
            running.send(load, number, runtime, meter, flow, publisher, templates);
        }
        if load.rate.is_some() {
            pace(runtime, running.flows.clone());
        }
        Ok(running)
    }

    #[expect(clippy::too_many_arguments, reason = "what one connection is made of")]
    fn send(
        &mut self,
        load: &Load,
        number: usize,
        runtime: &Runtime,
        meter: &Meter,
        flow: Arc<Flow>,
        service: Service,
        templates: Arc<[Template]>,
    ) {
        let (meter, clock) = (meter.clone(), runtime.clock.clone());
        match load.mode {
            Mode::Upstream | Mode::EndToEnd => {
                let ends = load.mode == Mode::Upstream;
                let confirmation = if ends { Confirmation::Ends } else { Confirmation::Refusals };
                let batch = load.batch;
                self.spawn(runtime, upstream::publish(service, flow, templates, batch, confirmation, meter, clock));
            }
            Mode::Unary => {
                let path = "/kubemq.kubemq/SendQueueMessage";
                self.spawn(runtime, unary::send::<SendAnswer>(service, path, flow, templates, meter, clock));
            }
            Mode::Commands | Mode::Queries => {
                let path = "/kubemq.kubemq/SendRequest";
                self.spawn(runtime, unary::send::<RequestAnswer>(service, path, flow, templates, meter, clock));
            }
            Mode::Events => {
                self.spawn(runtime, events::publish(service, flow, templates, load.weight(), meter));
            }
            Mode::EventsStore => self.spawn(runtime, stored::publish(service, flow, templates, meter, clock)),
            Mode::Replay => {
                let replaying = Replaying { channel: load.channel(number), events: load.events };
                let random = runtime.random.branch("replay");
                self.spawn(runtime, stored::replay(service, replaying, random, meter, clock));
            }
        }
    }

    /// Has somebody receive from `channels` before anything is sent there.
    async fn receive(
        &mut self,
        load: &Load,
        runtime: &Runtime,
        meter: &Meter,
        flow: &Arc<Flow>,
        service: &Service,
        channels: Vec<String>,
    ) -> Result<(), Failure> {
        let kind = match load.mode {
            Mode::EndToEnd => {
                self.consume(load, runtime, meter, flow, service, channels);
                return Ok(());
            }
            Mode::Queries => SubscribeType::Queries,
            Mode::Commands => SubscribeType::Commands,
            _ => SubscribeType::Events,
        };
        for channel in channels {
            if kind != SubscribeType::Events {
                let asked = responder::subscribe(service.clone(), kind, &load.client_id, &channel).await?;
                self.spawn(runtime, responder::respond(service.clone(), asked, load.client_id.clone()));
                continue;
            }
            for _ in 0..load.receivers {
                let events = events::subscribe(service.clone(), &load.client_id, &channel).await?;
                let (flow, meter, clock) = (Arc::clone(flow), meter.clone(), runtime.clock.clone());
                self.spawn(runtime, events::receive(events, flow, meter, clock));
            }
        }
        Ok(())
    }

    fn consume(
        &mut self,
        load: &Load,
        runtime: &Runtime,
        meter: &Meter,
        flow: &Arc<Flow>,
        service: &Service,
        channels: Vec<String>,
    ) {
        // Less than a channel's share, so that the other messages are on their way while a Get is answered. A Get waits
        // for all that it asks for, so where messages come by a schedule it asks for one.
        let share = if load.rate.is_some() { 1 } else { load.in_flight / load.channels as u64 / 2 };
        let items = load.items.map_or(share.clamp(1, 1024), u64::from);
        for channel in channels {
            let asking =
                Asking { channel, client_id: load.client_id.clone(), items: i32::try_from(items).unwrap_or(i32::MAX) };
            let (flow, meter, clock) = (Arc::clone(flow), meter.clone(), runtime.clock.clone());
            self.spawn(runtime, end_to_end::consume(service.clone(), asking, flow, meter, clock));
        }
    }

    fn spawn(&mut self, runtime: &Runtime, worker: impl Future<Output = Failure> + Send + 'static) {
        self.failures.push(runtime.tasks.spawn("bench-connection", OnFailure::Log, worker));
    }

    /// Waits until `deadline`, or fails with the first connection that does.
    async fn until(&mut self, runtime: &Runtime, deadline: Instant) -> Result<(), Failure> {
        match runtime.clock.timeout_at(deadline, self.failures.next()).await {
            Err(_) => Ok(()),
            Ok(failure) => Err(failure
                .and_then(Result::ok)
                .unwrap_or_else(|| Failure::Refused("a connection's task is gone".to_owned()))),
        }
    }

    /// Waits until `deadline` or until all flows have come to their ends.
    async fn until_or_drained(&mut self, runtime: &Runtime, deadline: Instant) -> Result<(), Failure> {
        if self.flows.iter().all(|flow| flow.is_endless()) {
            return self.until(runtime, deadline).await;
        }
        while !self.is_drained() && runtime.clock.now() < deadline {
            self.until(runtime, deadline.min(runtime.clock.now() + DRAIN_LOOK)).await?;
        }
        Ok(())
    }

    fn is_drained(&self) -> bool {
        self.flows.iter().all(|flow| flow.is_drained())
    }

    /// Sends nothing more and waits for the answers to what was sent.
    async fn drain(&mut self, runtime: &Runtime) -> Result<(), Failure> {
        self.flows.iter().for_each(|flow| flow.stop());
        let deadline = runtime.clock.now() + DRAIN;
        while !self.is_drained() && runtime.clock.now() < deadline {
            self.until(runtime, runtime.clock.now() + DRAIN_LOOK).await?;
        }
        Ok(())
    }

    fn unanswered(&self) -> u64 {
        self.flows.iter().map(|flow| flow.unanswered()).sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.flows.iter().for_each(|flow| flow.end());
        self.failures.iter().for_each(Task::abort);
    }
}

impl Load {
    fn template(&self, channel: &str, body: Bytes) -> Template {
        let request = |kind, body| Template::request(kind, &self.client_id, channel, body, REQUEST_MILLIS);
        match self.mode {
            Mode::Commands => request(RequestType::Command, body),
            Mode::Queries => request(RequestType::Query, body),
            Mode::EventsStore | Mode::Replay => Template::stored_event(&self.client_id, channel, body),
            Mode::Upstream | Mode::Unary | Mode::EndToEnd | Mode::Events => {
                Template::new(&self.client_id, channel, body)
            }
        }
    }

    /// Returns the schedule of one connection: each takes its share of the rate, shifted so that they alternate.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "small positive numbers"
    )]
    fn schedule(&self, start: Instant, connection: usize) -> Option<Schedule> {
        let nanos_between_requests = 1e9 * self.weight() as f64 / self.rate?;
        let shift = Duration::from_nanos((nanos_between_requests * connection as f64) as u64);
        Some(Schedule { start: start + shift, nanos_per_request: nanos_between_requests * self.connections as f64 })
    }
}

async fn connect(load: &Load) -> Result<Service, Failure> {
    let channel = client::connect(&client::endpoint(&load.address)?, &load.address).await?;
    Ok(Service::new(channel, load.token.clone()))
}

/// Returns the share of the window, or of the messages, that one connection has: the first ones take what does not
/// divide.
fn share(all: u64, connections: usize, number: usize) -> u64 {
    let connections = connections as u64;
    all / connections + u64::from((number as u64) < all % connections)
}

#[expect(clippy::cast_precision_loss, reason = "counts of a second are far below 2^52")]
fn per_second(messages: u64, time: Duration) -> f64 {
    messages as f64 / time.as_secs_f64()
}

/// Wakes the connections of an open loop when their next request is due. The runtime's own timers tick in
/// milliseconds, which is longer than what is measured; so this waits on a thread of its own.
fn pace(runtime: &Runtime, flows: Vec<Arc<Flow>>) {
    drop(runtime.tasks.dedicated("bench-pacer", OnFailure::Log, async move {
        while flows.iter().any(|flow| !flow.is_stopped()) {
            let wait = flows.iter().filter_map(|flow| flow.time_to_next()).min().unwrap_or(SLOWEST_PACE);
            block_for(wait.clamp(FASTEST_PACE, SLOWEST_PACE));
            flows.iter().for_each(|flow| flow.wake());
        }
    }));
}

#[expect(clippy::disallowed_methods, reason = "a client's pacing, on a thread of its own; no node runs this")]
fn block_for(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_shared_without_loss() {
        for connections in 1..7 {
            assert_eq!((0..connections).map(|number| share(64, connections, number)).sum::<u64>(), 64);
        }
    }
}
