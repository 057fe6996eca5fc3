//! Who gets what is sent to a subject: subscriptions by pattern, groups, and the routes that were looked up.
//!
//! A subscription without a group gets everything that matches. Of all subscriptions that match and name the
//! same group, whatever their patterns, one gets each message. The routes of subjects that were used lately are
//! kept; a new or ended subscription corrects them before anybody can send.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use kubemq_proto::frame::Frame;
use kubemq_proto::validate::has_empty_token;
use kubemq_runtime::{FixedHashMap, Random, Runtime, UnixNanos};
use parking_lot::RwLock;

use super::inbox::{Budget, Given, Held, Inbox, Owner, Reader};
use super::numbers::{ChannelNumbers, Numbers};
use super::subjects::{Subjects, is_wide};
use crate::traffic::{Of, Row, Side, Traffic};

/// Routes of one generation: twice as many are kept.
const ROUTES: usize = 8 * 1024;
/// Routes to longer subjects are looked up each time.
const LONGEST_KEPT: usize = 1024;

/// The subscriptions of one kind: events, commands or queries.
pub(super) struct Routes {
    subscriptions: RwLock<Subscriptions>,
    /// Counts changes, so that whoever keeps a route learns whether it still holds.
    version: AtomicU64,
    pub(super) numbers: Numbers,
    traffic: (Traffic, Of),
    budget: Arc<Budget>,
    runtime: Runtime,
}

#[derive(Default)]
struct Subscriptions {
    subjects: Subjects<Arc<Inbox>>,
    /// Routes that were used since the generation began.
    young: FixedHashMap<Box<str>, Arc<Route>>,
    /// Routes of the generation before, of which those that are used again become young.
    old: FixedHashMap<Box<str>, Arc<Route>>,
}

/// Who gets what is sent to one subject.
pub(super) struct Route {
    single: Vec<Receiver>,
    groups: Vec<Vec<Receiver>>,
    pub(super) numbers: Arc<ChannelNumbers>,
    budget: Arc<Budget>,
    random: Random,
}

/// A subscriber, and where is counted what it is given.
#[derive(Clone)]
struct Receiver {
    inbox: Arc<Inbox>,
    row: Arc<Row>,
}

/// Frames that are delivered together.
#[derive(Clone, Copy)]
struct Batch {
    messages: u64,
    bytes: u64,
    time: UnixNanos,
}

impl Routes {
    /// Returns routes without subscriptions; what waits for subscribers is charged to `budget`, what they are given is
    /// counted in `traffic`.
    pub(super) fn new(runtime: &Runtime, budget: &Arc<Budget>, (traffic, of): (&Traffic, Of)) -> Arc<Self> {
        Arc::new(Self {
            subscriptions: RwLock::default(),
            version: AtomicU64::new(0),
            numbers: Numbers::default(),
            traffic: (traffic.clone(), of),
            budget: Arc::clone(budget),
            runtime: runtime.clone(),
        })
    }

    /// Adds a subscription; it ends when it is dropped.
    pub(super) fn subscribe(self: &Arc<Self>, owner: Owner, most: usize) -> Subscription {
        let channel = owner.channel.clone();
        let inbox = Arc::new(Inbox::new(owner, most, Arc::clone(&self.budget)));
        let numbers = self.numbers.of(&channel);
        numbers.subscribed();
        {
            let mut subscriptions = self.subscriptions.write();
            subscriptions.subjects.insert(&channel, Arc::clone(&inbox));
            self.changed(&mut subscriptions, &channel);
        }
        Subscription { routes: Arc::clone(self), channel, numbers, reader: Reader::new(inbox) }
    }

    fn changed(&self, subscriptions: &mut Subscriptions, pattern: &str) {
        if is_wide(pattern) {
            subscriptions.young.clear();
            subscriptions.old.clear();
        } else {
            subscriptions.young.remove(pattern);
            subscriptions.old.remove(pattern);
        }
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Returns a number that is another one after every change of the subscriptions.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Returns who gets what is sent to `subject`.
    pub(super) fn route(&self, subject: &str) -> Arc<Route> {
        if let Some(route) = self.subscriptions.read().young.get(subject) {
            return Arc::clone(route);
        }
        let mut subscriptions = self.subscriptions.write();
        let Subscriptions { subjects, young, old } = &mut *subscriptions;
        let route = match old.remove(subject) {
            Some(route) => route,
            None => Arc::new(self.look_up(subjects, subject)),
        };
        if subject.len() <= LONGEST_KEPT {
            if young.len() >= ROUTES {
                *old = std::mem::take(young);
            }
            young.insert(subject.into(), Arc::clone(&route));
        }
        route
    }

    fn look_up(&self, subjects: &Subjects<Arc<Inbox>>, subject: &str) -> Route {
        let mut single = Vec::new();
        let mut groups: BTreeMap<&str, Vec<Receiver>> = BTreeMap::new();
        let (traffic, of) = &self.traffic;
        // A subject with an empty part can be sent to, and nobody gets it.
        if !has_empty_token(subject) {
            subjects.matching(subject, |inbox| {
                let members =
                    if inbox.group().is_empty() { &mut single } else { groups.entry(inbox.group()).or_default() };
                let row = traffic.of(*of, Side::Receive, subject, inbox.client());
                members.push(Receiver { inbox: Arc::clone(inbox), row });
            });
        }
        Route {
            single,
            groups: groups.into_values().collect(),
            numbers: self.numbers.of(subject),
            budget: Arc::clone(&self.budget),
            random: self.runtime.random.clone(),
        }
    }

    /// Forgets what was counted for `channel`, and the route that counts there.
    pub(super) fn forget(&self, channel: &str) {
        self.numbers.forget(channel);
        self.changed(&mut self.subscriptions.write(), channel);
    }

    /// Routes that are remembered, at most: two generations, and one that is just made.
    pub(super) const MOST_KEPT: usize = 2 * ROUTES + 1;

    /// Returns how many routes are remembered.
    pub(super) fn kept(&self) -> usize {
        let subscriptions = self.subscriptions.read();
        subscriptions.young.len() + subscriptions.old.len()
    }
}

impl Route {
    /// Gives `frames` to everybody on this route and leaves it empty. Returns how many copies were handed over.
    pub(super) fn deliver(&self, frames: &mut Vec<Frame>, sent_bytes: u64, runtime: &Runtime) -> u64 {
        let (messages, time) = (count(frames.len()), runtime.clock.wall());
        self.numbers.sent(messages, sent_bytes, time);
        if self.single.is_empty() && self.groups.is_empty() {
            frames.clear();
            return 0;
        }
        let bytes = count(frames.iter().map(Frame::len).sum::<usize>());
        let batch = Batch { messages, bytes, time };
        let mut held: Vec<Arc<Held>> = frames.drain(..).map(|frame| Held::new(frame, &self.budget)).collect();
        let mut given = Given::default();
        let mut add = |more: Given| {
            given.taken += more.taken;
            given.dropped += more.dropped;
        };
        for group in &self.groups {
            match group.as_slice() {
                [only] => add(only.give(held.iter().cloned(), batch)),
                members => held.iter().for_each(|frame| add(self.give_one_of(members, Arc::clone(frame), batch))),
            }
        }
        if let Some((last, others)) = self.single.split_last() {
            others.iter().for_each(|receiver| add(receiver.give(held.iter().cloned(), batch)));
            // The last shares it with nobody who comes after.
            add(last.give(held.drain(..), batch));
        }
        self.numbers.delivered(given.taken, batch.bytes_of(given.taken), given.dropped);
        given.taken
    }

    /// Gives `frame` to one of `members` at random; to another when much waits for that one already.
    fn give_one_of(&self, members: &[Receiver], frame: Arc<Held>, batch: Batch) -> Given {
        let first = usize::try_from(self.random.below(count(members.len()))).unwrap_or(0);
        let turns = members.iter().cycle().skip(first).take(members.len());
        let chosen = turns.clone().find(|member| !member.inbox.is_behind()).or_else(|| turns.clone().next());
        chosen.map(|member| member.give(std::iter::once(frame), batch)).unwrap_or_default()
    }
}

impl Receiver {
    /// Gives it frames of `batch`, as far as they fit.
    fn give(&self, frames: impl Iterator<Item = Arc<Held>>, batch: Batch) -> Given {
        let given = self.inbox.give(frames);
        self.row.add(given.taken, batch.bytes_of(given.taken), batch.time);
        given
    }
}

impl Batch {
    /// Returns about how many bytes so many of its messages have.
    fn bytes_of(&self, messages: u64) -> u64 {
        self.bytes * messages / self.messages.max(1)
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// A live subscription. Dropping it ends it.
pub struct Subscription {
    routes: Arc<Routes>,
    channel: Box<str>,
    numbers: Arc<ChannelNumbers>,
    reader: Reader,
}

impl Subscription {
    /// Returns the next frame. The subscription itself never ends.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        self.reader.poll_next(cx)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let inbox = self.reader.inbox();
        inbox.close();
        {
            let mut subscriptions = self.routes.subscriptions.write();
            subscriptions.subjects.remove(&self.channel, |other| Arc::ptr_eq(other, inbox));
            self.routes.changed(&mut subscriptions, &self.channel);
        }
        self.numbers.unsubscribed();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker_ref;
    use kubemq_proto::kubemq::Event;
    use kubemq_runtime::{Clock, Tasks};

    use super::*;

    struct Node {
        runtime: Runtime,
        routes: Arc<Routes>,
        budget: Arc<Budget>,
    }

    impl Node {
        fn new() -> Self {
            let runtime = Runtime { clock: Clock::real(), random: Random::from_seed(1), tasks: Tasks::tokio() };
            let budget = Budget::new(usize::MAX);
            let traffic = Traffic::new(10);
            Self { routes: Routes::new(&runtime, &budget, (&traffic, Of::Events)), runtime, budget }
        }

        fn subscribe(&self, channel: &str, group: &str) -> Subscription {
            self.subscribe_with(channel, group, usize::MAX)
        }

        fn subscribe_with(&self, channel: &str, group: &str, most: usize) -> Subscription {
            let owner = Owner { client: "c".into(), channel: channel.into(), group: group.into() };
            self.routes.subscribe(owner, most)
        }

        fn send(&self, channel: &str) -> u64 {
            let event = Event { channel: channel.to_owned(), ..Event::default() };
            self.routes.route(channel).deliver(&mut vec![Frame::event(event)], 1, &self.runtime)
        }

        fn counted(&self, channel: &str) -> super::super::numbers::Counted {
            let read = self.routes.numbers.read();
            read.into_iter().find(|(name, _)| &**name == channel).map(|(_, counted)| counted).unwrap()
        }
    }

    fn received(subscription: &mut Subscription) -> usize {
        let mut cx = Context::from_waker(noop_waker_ref());
        let mut count = 0;
        while let Poll::Ready(Some(_)) = subscription.poll_next(&mut cx) {
            count += 1;
        }
        count
    }

    #[tokio::test]
    async fn each_group_and_each_single_subscription_gets_a_copy() {
        let node = Node::new();
        let mut single = [node.subscribe("a", ""), node.subscribe("a", ""), node.subscribe(">", "")];
        let mut first = [node.subscribe("a", "g1"), node.subscribe("a", "g1"), node.subscribe("*", "g1")];
        let mut second = [node.subscribe("a", "g2")];
        let mut elsewhere = node.subscribe("b", "g1");
        for _ in 0..300 {
            assert_eq!(node.send("a"), 5);
        }
        assert_eq!(single.each_mut().map(received), [300; 3]);
        let members = first.each_mut().map(received);
        assert_eq!(members.iter().sum::<usize>(), 300, "one member of the group gets each, whatever its pattern");
        assert!(members.iter().all(|count| *count > 50), "{members:?}");
        assert_eq!(second.each_mut().map(received), [300]);
        assert_eq!(received(&mut elsewhere), 0);
        assert_eq!((node.counted("a").sent, node.counted("a").delivered), (300, 1500));
    }

    #[tokio::test]
    async fn a_member_that_is_behind_is_passed_over() {
        let node = Node::new();
        let (_stalled, mut quick) = (node.subscribe_with("a", "g", 200), node.subscribe("a", "g"));
        for _ in 0..100 {
            node.send("a");
        }
        assert!(received(&mut quick) >= 98);
        assert_eq!(node.counted("a").dropped, 0);
    }

    #[tokio::test]
    async fn a_route_that_is_kept_follows_every_change() {
        let node = Node::new();
        assert_eq!(node.send("a.b"), 0);
        let wide = node.subscribe("a.*", "");
        assert_eq!(node.send("a.b"), 1);
        let narrow = node.subscribe("a.b", "");
        let version = node.routes.version();
        assert_eq!(node.send("a.b"), 2);
        drop(wide);
        assert_ne!(node.routes.version(), version);
        assert_eq!(node.send("a.b"), 1);
        drop(narrow);
        assert_eq!(node.send("a.b"), 0);
        assert_eq!(node.budget.used(), 0);
        assert_eq!(node.counted("a.*").subscribers, 0);
    }

    #[tokio::test]
    async fn kept_routes_are_bounded_and_those_in_use_stay() {
        let node = Node::new();
        let _subscription = node.subscribe(">", "");
        let busy = node.routes.route("busy");
        for number in 0..5 * ROUTES {
            node.routes.route(&format!("n.{number}"));
            assert!(Arc::ptr_eq(&busy, &node.routes.route("busy")));
            assert!(node.routes.kept() <= Routes::MOST_KEPT);
        }
        let long = "x".repeat(LONGEST_KEPT + 1);
        assert!(!Arc::ptr_eq(&node.routes.route(&long), &node.routes.route(&long)));
    }

    #[tokio::test]
    async fn nobody_gets_what_is_sent_to_a_subject_with_an_empty_part() {
        let node = Node::new();
        let _all = node.subscribe(">", "");
        for subject in [".a", "a..b", "a"] {
            assert_eq!(node.send(subject), u64::from(subject == "a"), "{subject}");
        }
    }
}
