//! The sentences that clients compare, written down a second time from the specification.
//!
//! A test that took them from the program would agree with any mistake in them.

/// Returns the sentence of error `number`.
///
/// # Panics
///
/// Panics when the tests know no such number.
#[must_use]
pub fn sentence(number: u16) -> &'static str {
    match number {
        101 => "Error 101: invalid clientID value, cannot be empty",
        102 => "Error 102: invalid channel value, cannot be empty",
        107 => "Error 107: invalid channel value, no wildcards are allowed",
        108 => "Error 108: invalid channel value, no white spaces are allowed",
        109 => "Error 109: invalid set timeout value, cannot be 0 or negative",
        115 => "Error 115: invalid request, cannot be empty",
        116 => "Error 116: invalid cache ttl value, cannot be 0 or negative",
        117 => "Error 117: invalid request id, cannot be empty",
        118 => "Error 118: event store parameters were set but subscribe type is not event store",
        119 => "Error 119: invalid channel value, cannot end with `.`",
        120 => {
            "Error 120: invalid queue name value, cannot be empty, contains wildcards ,white spaces and end with dot"
        }
        122 => "Error 122: max messages should be between 1 and max message setting in kubemq config  ",
        110 => "Error 110: invalid message, cannot be empty",
        124 => "Error 124: no active message to ack",
        125 => "Error 125: ack sequence cannot be 0 or negative",
        126 => "Error 126: no active message to send",
        127 => "Error 127: invalid visibility time, cannot be negative or exceed setting in kubemq config",
        128 => "Error 128: subscription to queue is already active",
        129 => "Error 129: current visibility timer expired",
        131 => "Error 131: invalid queue message",
        132 => "Error 132: invalid stream queue messages request type",
        133 => "Error 133: invalid expiration seconds, exceed max expiration seconds setting in kubemq config",
        134 => {
            "Error 134: invalid max received count, cannot be negative or exceed max receive count setting in kubemq config"
        }
        135 => "Error 135: invalid delay seconds, exceed max delay seconds setting in kubemq config",
        136 => {
            "Error 136: invalid wait timeout, value cannot be negative or exceed max wait timeout seconds setting in kubemq config"
        }
        137 => "Error 137: no active message to reject",
        138 => "Error 138: no new message in queue, wait time expired",
        206 => "Error 206: invalid request type",
        207 => "Error 207: invalid subscribe type",
        301 => "Error 301: timeout for request message",
        _ => panic!("the tests know no error {number}"),
    }
}

/// A downstream settlement names a transaction that this stream does not have.
pub const NO_TRANSACTION: &str = "transaction is completed or transaction id not found";
/// An acknowledgement, or a requeue of everything, in a transaction that is closed.
pub const ACK_CLOSED: &str = "cannot ack messages with closed response ";
/// A question for offsets of a transaction that is closed.
pub const OFFSETS_CLOSED: &str = "cannot get active offsets with closed response ";
/// A requeue that does not say where to.
pub const REQUEUE_NOWHERE: &str = "cannot requeue messages with empty channel destination ";
