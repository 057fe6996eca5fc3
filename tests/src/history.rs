//! What clients did and saw, in the order in which they knew it.
//!
//! A call whose answer never came has an unknown outcome: it is in the history as begun and never as ended.
//! Whoever records says what it is about to do before it does it, and what it saw after it saw it; the
//! checker relies on that order and on nothing else.

use std::sync::Arc;

use bytes::Bytes;
use kubemq_proto::kubemq::QueueMessage;
use parking_lot::Mutex;

use crate::client::attributes;

/// How a receiver gives a message away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// It is done with.
    Ack,
    /// It goes to the tail, to be delivered once more.
    Nack,
    /// It goes back as it was.
    Return,
}

/// One thing that a client did or saw.
#[derive(Clone, Debug)]
pub enum Event {
    /// A message is about to be sent. Messages of one `sender` are stored in this order, if they are stored.
    Sending {
        /// The stream or loop that sends.
        sender: u64,
        /// The message's id, which no other message has.
        id: String,
        /// Where it goes.
        channel: String,
        /// What it carries.
        body: Bytes,
    },
    /// The server said that the message is stored.
    Sent {
        /// The message's id.
        id: String,
    },
    /// The server said that the message is not stored.
    Refused {
        /// The message's id.
        id: String,
    },
    /// A message came.
    Delivered {
        /// The stream that received it.
        receiver: u64,
        /// The channel that was asked for.
        channel: String,
        /// The message's id.
        id: String,
        /// What it carries.
        body: Bytes,
        /// Its sequence.
        sequence: u64,
        /// Its receive count.
        receive_count: i32,
    },
    /// A delivery is about to be settled.
    Settling {
        /// The stream that received it.
        receiver: u64,
        /// Its channel.
        channel: String,
        /// Its sequence.
        sequence: u64,
        /// How.
        settlement: Settlement,
    },
    /// An answer showed that all the settlements of `receiver` so far have taken effect.
    Confirmed {
        /// The stream that settled.
        receiver: u64,
    },
    /// A receiver is about to go away; what it holds goes back.
    Leaving {
        /// The stream.
        receiver: u64,
    },
    /// The server was killed, and whoever was connected has noticed; what anybody held goes back.
    Killed,
}

/// A history that several clients write together.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<Vec<Event>>>);

impl History {
    /// Adds `event`.
    pub fn record(&self, event: Event) {
        self.0.lock().push(event);
    }

    /// Adds the deliveries of `messages` from `channel`, in one piece.
    pub fn delivered(&self, receiver: u64, channel: &str, messages: &[QueueMessage]) {
        let mut events = self.0.lock();
        for message in messages {
            let attributes = attributes(message);
            events.push(Event::Delivered {
                receiver,
                channel: channel.into(),
                id: message.message_id.clone(),
                body: message.body.clone(),
                sequence: attributes.sequence,
                receive_count: attributes.receive_count,
            });
        }
    }

    /// Adds the settlement of `sequences` of `channel`, in one piece.
    pub fn settling(&self, receiver: u64, channel: &str, sequences: &[u64], settlement: Settlement) {
        let mut events = self.0.lock();
        for &sequence in sequences {
            events.push(Event::Settling { receiver, channel: channel.into(), sequence, settlement });
        }
    }

    /// Returns what has been recorded so far.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.0.lock().clone()
    }
}
