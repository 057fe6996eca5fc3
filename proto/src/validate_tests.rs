//! One row per rule, and rows with several faults at once for the order of the rules.

use bytes::Bytes;

use super::*;

fn message() -> QueueMessage {
    QueueMessage {
        client_id: "c".to_owned(),
        channel: "q".to_owned(),
        body: Bytes::from_static(b"b"),
        ..QueueMessage::default()
    }
}

fn with_policy(change: impl FnOnce(&mut QueueMessagePolicy)) -> QueueMessage {
    let mut policy = QueueMessagePolicy::default();
    change(&mut policy);
    QueueMessage { policy: Some(policy), ..message() }
}

#[test]
fn names_of_queues() {
    let long = "x".repeat(256);
    let longer = "x".repeat(257);
    let accepted = ["q", "a.b", "a/b", "a:b", "a;b", "größe", "_QUEUES_", ".a", "a..b", long.as_str()];
    let refused = [
        "",
        "a.",
        ".",
        "a b",
        "a\tb",
        "a\nb",
        "a\rb",
        "a\0b",
        "a\u{a0}b",
        "a\u{2003}b",
        "a\u{7f}b",
        "a*",
        "*",
        "a.>",
        "a>b",
        MANAGEMENT_CHANNEL,
        longer.as_str(),
    ];
    for name in accepted {
        assert_eq!(queue_name(name), Ok(()), "{name:?}");
    }
    for name in refused {
        assert_eq!(queue_name(name), Err(Refusal::QueueName), "{name:?}");
    }
    for name in [".a", "a..b", "..", ".."] {
        assert!(has_empty_token(name), "{name:?}");
    }
    assert!(!has_empty_token("a.b.c"));
}

#[test]
fn names_of_other_channels_report_their_first_fault() {
    let longer = "x".repeat(257);
    let rows: &[(&str, Result<(), Refusal>)] = &[
        ("a", Ok(())),
        ("a.b/c:d", Ok(())),
        ("", Err(Refusal::EmptyChannel)),
        (&longer, Err(Refusal::EmptyChannel)),
        (MANAGEMENT_CHANNEL, Err(Refusal::EmptyChannel)),
        ("a.", Err(Refusal::ChannelEndsWithDot)),
        ("a *.", Err(Refusal::ChannelEndsWithDot)),
        ("a b", Err(Refusal::ChannelWhiteSpace)),
        ("a *", Err(Refusal::ChannelWhiteSpace)),
        ("a\rb", Err(Refusal::ChannelWhiteSpace)),
        ("a*", Err(Refusal::ChannelWildcard)),
        ("a..b", Err(Refusal::EmptyChannel)),
        (".a", Err(Refusal::EmptyChannel)),
    ];
    for (name, expected) in rows {
        assert_eq!(channel_name(name), *expected, "{name:?}");
    }
}

#[test]
fn sends_report_their_first_fault() {
    let limits = QueueLimits::default();
    let rows: Vec<(QueueMessage, Result<(), Refusal>)> = vec![
        (message(), Ok(())),
        (QueueMessage { metadata: "m".to_owned(), body: Bytes::new(), ..message() }, Ok(())),
        (QueueMessage { client_id: String::new(), ..message() }, Err(Refusal::EmptyClientId)),
        (QueueMessage::default(), Err(Refusal::EmptyClientId)),
        (QueueMessage { channel: String::new(), body: Bytes::new(), ..message() }, Err(Refusal::QueueName)),
        (QueueMessage { channel: "a.".to_owned(), ..message() }, Err(Refusal::QueueName)),
        (QueueMessage { channel: "a b".to_owned(), ..message() }, Err(Refusal::QueueName)),
        (QueueMessage { channel: "a*".to_owned(), ..message() }, Err(Refusal::QueueName)),
        (QueueMessage { channel: "a>".to_owned(), ..message() }, Err(Refusal::QueueName)),
        (QueueMessage { body: Bytes::new(), ..message() }, Err(Refusal::EmptyMessage)),
        (
            QueueMessage { body: Bytes::new(), ..with_policy(|policy| policy.expiration_seconds = -1) },
            Err(Refusal::EmptyMessage),
        ),
        (with_policy(|policy| policy.expiration_seconds = -1), Err(Refusal::Expiration)),
        (with_policy(|policy| policy.expiration_seconds = 43_201), Err(Refusal::Expiration)),
        (with_policy(|policy| policy.expiration_seconds = 43_200), Ok(())),
        (with_policy(|policy| policy.max_receive_count = -1), Err(Refusal::ReceiveCount)),
        (with_policy(|policy| policy.max_receive_count = 1025), Err(Refusal::ReceiveCount)),
        (with_policy(|policy| policy.max_receive_count = 1024), Ok(())),
        (with_policy(|policy| policy.delay_seconds = -1), Err(Refusal::Delay)),
        (with_policy(|policy| policy.delay_seconds = 43_201), Err(Refusal::Delay)),
        (with_policy(|policy| policy.delay_seconds = 43_200), Ok(())),
        (
            with_policy(|policy| {
                policy.expiration_seconds = -1;
                policy.max_receive_count = -1;
                policy.delay_seconds = -1;
                policy.max_receive_queue = "a b".to_owned();
            }),
            Err(Refusal::Expiration),
        ),
        (
            with_policy(|policy| {
                policy.max_receive_count = -1;
                policy.delay_seconds = -1;
            }),
            Err(Refusal::ReceiveCount),
        ),
        (
            with_policy(|policy| {
                policy.delay_seconds = -1;
                policy.max_receive_queue = ">".to_owned();
            }),
            Err(Refusal::Delay),
        ),
        (with_policy(|policy| policy.max_receive_queue = "a b".to_owned()), Err(Refusal::QueueName)),
        (with_policy(|policy| policy.max_receive_queue = "a.".to_owned()), Err(Refusal::QueueName)),
        (with_policy(|policy| policy.max_receive_queue = ">".to_owned()), Err(Refusal::QueueName)),
        (with_policy(|policy| policy.max_receive_queue = "a..b".to_owned()), Err(Refusal::QueueName)),
        (with_policy(|policy| policy.max_receive_queue = "x".repeat(257)), Err(Refusal::QueueName)),
        (with_policy(|policy| policy.max_receive_queue = "x".repeat(256)), Ok(())),
        (with_policy(|policy| policy.max_receive_queue = "q".to_owned()), Ok(())),
        (QueueMessage { channel: "a..b".to_owned(), ..message() }, Err(Refusal::PublishName)),
        (QueueMessage { channel: ".a".to_owned(), ..message() }, Err(Refusal::PublishName)),
        (
            QueueMessage { channel: ".a".to_owned(), ..with_policy(|policy| policy.delay_seconds = -1) },
            Err(Refusal::Delay),
        ),
    ];
    for (message, expected) in rows {
        assert_eq!(send(&message, &limits), expected, "{message:?}");
    }
}

#[test]
fn a_message_may_fill_the_limit_and_not_exceed_it() {
    let limits = QueueLimits { max_message_bytes: ENVELOPE_BYTES + 100, ..QueueLimits::default() };
    let fits = |body: usize| QueueMessage { body: Bytes::from(vec![1; body]), ..message() };
    let envelope = fits(90).encoded_len() - 90;
    assert_eq!(send(&fits(100 - envelope), &limits), Ok(()));
    assert_eq!(send(&fits(101 - envelope), &limits), Err(Refusal::PayloadTooLarge));
}

#[test]
fn receives_report_their_first_fault() {
    let limits = QueueLimits::default();
    let good = || ReceiveQueueMessagesRequest {
        client_id: "c".to_owned(),
        channel: "q".to_owned(),
        max_number_of_messages: 10,
        wait_time_seconds: 0,
        ..ReceiveQueueMessagesRequest::default()
    };
    let bad_wait = |seconds| ReceiveQueueMessagesRequest { wait_time_seconds: seconds, ..good() };
    let bad_max = |max| ReceiveQueueMessagesRequest { max_number_of_messages: max, wait_time_seconds: -1, ..good() };
    let named = |name: &str| ReceiveQueueMessagesRequest { channel: name.to_owned(), ..good() };
    assert_eq!(receive(&good(), &limits), Ok(Receive { max: 10, wait: Duration::from_secs(1) }));
    assert_eq!(receive(&bad_wait(3600), &limits), Ok(Receive { max: 10, wait: Duration::from_secs(3600) }));
    let rows = vec![
        (ReceiveQueueMessagesRequest::default(), Refusal::EmptyClientId),
        (ReceiveQueueMessagesRequest { max_number_of_messages: 0, ..named("a b") }, Refusal::QueueName),
        (bad_max(0), Refusal::MaxMessages),
        (bad_max(-1), Refusal::MaxMessages),
        (bad_max(1025), Refusal::MaxMessages),
        (bad_wait(-1), Refusal::WaitTimeout),
        (bad_wait(3601), Refusal::WaitTimeout),
        (ReceiveQueueMessagesRequest { wait_time_seconds: -1, ..named("a..b") }, Refusal::WaitTimeout),
        (named("a..b"), Refusal::QueueSubscribe),
        (named(".a"), Refusal::QueueSubscribe),
    ];
    for (request, expected) in rows {
        assert_eq!(receive(&request, &limits), Err(expected), "{request:?}");
    }
}

#[test]
fn ack_alls_report_their_first_fault() {
    let limits = QueueLimits::default();
    let request = |client: &str, channel: &str, wait| AckAllQueueMessagesRequest {
        client_id: client.to_owned(),
        channel: channel.to_owned(),
        wait_time_seconds: wait,
        ..AckAllQueueMessagesRequest::default()
    };
    let rows = [
        (request("c", "q", 0), Ok(Duration::from_secs(1))),
        (request("c", "q", 5), Ok(Duration::from_secs(5))),
        (request("", "", -1), Err(Refusal::EmptyClientId)),
        (request("c", "a.", -1), Err(Refusal::QueueName)),
        (request("c", "q", -1), Err(Refusal::WaitTimeout)),
        (request("c", "q", 3601), Err(Refusal::WaitTimeout)),
        (request("c", "a..b", 3601), Err(Refusal::WaitTimeout)),
        (request("c", "a..b", 1), Err(Refusal::QueueSubscribe)),
    ];
    for (request, expected) in rows {
        assert_eq!(ack_all(&request, &limits), expected, "{request:?}");
    }
}

fn step(kind: StreamRequestType) -> StreamQueueMessagesRequest {
    StreamQueueMessagesRequest {
        client_id: "c".to_owned(),
        channel: "q".to_owned(),
        stream_request_type_data: kind.into(),
        ref_sequence: 1,
        modified_message: Some(message()),
        ..StreamQueueMessagesRequest::default()
    }
}

#[test]
fn stream_receives_report_their_first_fault() {
    let limits = QueueLimits::default();
    let good = || step(StreamRequestType::ReceiveMessage);
    let (visibility, wait) = (Duration::from_secs(60), Duration::from_secs(1));
    assert_eq!(stream(&good(), &limits), Ok(StreamStep::Receive { visibility, wait }));
    let rows = vec![
        (StreamQueueMessagesRequest { client_id: String::new(), ..good() }, Refusal::EmptyClientId),
        (StreamQueueMessagesRequest { channel: String::new(), visibility_seconds: -1, ..good() }, Refusal::QueueName),
        (StreamQueueMessagesRequest { visibility_seconds: -1, wait_time_seconds: -1, ..good() }, Refusal::Visibility),
        (StreamQueueMessagesRequest { visibility_seconds: 43_201, ..good() }, Refusal::Visibility),
        (StreamQueueMessagesRequest { wait_time_seconds: -1, ..good() }, Refusal::WaitTimeout),
        (StreamQueueMessagesRequest { wait_time_seconds: 3601, ..good() }, Refusal::WaitTimeout),
    ];
    for (request, expected) in rows {
        assert_eq!(stream(&request, &limits), Err(expected), "{request:?}");
    }
}

#[test]
fn stream_settlements_report_their_first_fault() {
    let limits = QueueLimits::default();
    let zero = |kind| StreamQueueMessagesRequest { ref_sequence: 0, ..step(kind) };
    let unknown =
        |kind| StreamQueueMessagesRequest { stream_request_type_data: kind, ..StreamQueueMessagesRequest::default() };
    let modified = |message| StreamQueueMessagesRequest {
        modified_message: message,
        visibility_seconds: -1,
        ..step(StreamRequestType::SendModifiedMessage)
    };
    let rows = vec![
        (step(StreamRequestType::AckMessage), Ok(StreamStep::Ack { sequence: 1 })),
        (zero(StreamRequestType::AckMessage), Err(Refusal::AckSequence)),
        (step(StreamRequestType::RejectMessage), Ok(StreamStep::Reject { sequence: 1 })),
        (zero(StreamRequestType::RejectMessage), Err(Refusal::AckSequence)),
        (
            StreamQueueMessagesRequest { visibility_seconds: 4, ..zero(StreamRequestType::ModifyVisibility) },
            Ok(StreamStep::ModifyVisibility(Duration::from_secs(4))),
        ),
        (zero(StreamRequestType::ModifyVisibility), Ok(StreamStep::ModifyVisibility(Duration::from_secs(60)))),
        (
            StreamQueueMessagesRequest { visibility_seconds: -1, ..step(StreamRequestType::ModifyVisibility) },
            Err(Refusal::Visibility),
        ),
        (zero(StreamRequestType::ResendMessage), Ok(StreamStep::Resend)),
        (
            StreamQueueMessagesRequest { channel: String::new(), ..step(StreamRequestType::ResendMessage) },
            Err(Refusal::QueueName),
        ),
        (step(StreamRequestType::SendModifiedMessage), Ok(StreamStep::SendModified)),
        (modified(None), Err(Refusal::NoModifiedMessage)),
        (modified(Some(QueueMessage::default())), Err(Refusal::EmptyClientId)),
        (modified(Some(with_policy(|policy| policy.delay_seconds = -1))), Err(Refusal::Delay)),
        (modified(Some(message())), Err(Refusal::Visibility)),
        (unknown(0), Err(Refusal::EmptyClientId)),
        (StreamQueueMessagesRequest { client_id: "c".to_owned(), ..unknown(0) }, Err(Refusal::StreamRequestType)),
        (StreamQueueMessagesRequest { client_id: "c".to_owned(), ..unknown(7) }, Err(Refusal::StreamRequestType)),
    ];
    for (request, expected) in rows {
        assert_eq!(stream(&request, &limits), expected, "{request:?}");
    }
}

#[test]
fn gets_report_their_first_fault_and_fill_in_what_is_missing() {
    let limits = QueueLimits::default();
    let request = |client: &str, channel: &str, max_items, wait_timeout| QueuesDownstreamRequest {
        client_id: client.to_owned(),
        channel: channel.to_owned(),
        max_items,
        wait_timeout,
        ..QueuesDownstreamRequest::default()
    };
    let get_of = |max, millis| Ok(Get { max, wait: Duration::from_millis(millis) });
    let rows = [
        (request("c", "q", 10, 2500), get_of(10, 2500)),
        (request("c", "q", 10, 1), get_of(10, 1)),
        (request("c", "q", 0, 0), get_of(200_000, 0)),
        (request("c", "q", -3, -7), get_of(200_000, 0)),
        (request("", "", 1, 1), Err(Refusal::EmptyClientId)),
        (request("c", "", 1, 1), Err(Refusal::QueueName)),
        (request("c", ">", 1, 1), Err(Refusal::QueueName)),
        (request("c", "a..b", 1, 1), Err(Refusal::QueueSubscribe)),
    ];
    for (request, expected) in rows {
        assert_eq!(get(&request, &limits), expected, "{request:?}");
    }
}

#[test]
fn requests_report_their_first_fault() {
    let good = || Request {
        request_type_data: RequestType::Query.into(),
        client_id: "c".to_owned(),
        channel: "r".to_owned(),
        metadata: "m".to_owned(),
        timeout: 1000,
        ..Request::default()
    };
    let named = |name: &str| Request { channel: name.to_owned(), timeout: 0, ..good() };
    let rows = vec![
        (good(), Ok(RequestType::Query)),
        (Request::default(), Err(Refusal::RequestType)),
        (Request { request_type_data: 3, ..good() }, Err(Refusal::RequestType)),
        (Request { client_id: String::new(), channel: String::new(), ..good() }, Err(Refusal::EmptyClientId)),
        (named(""), Err(Refusal::EmptyChannel)),
        (named("a *."), Err(Refusal::ChannelEndsWithDot)),
        (named("a *"), Err(Refusal::ChannelWhiteSpace)),
        (named("a.*"), Err(Refusal::ChannelWildcard)),
        (Request { metadata: String::new(), timeout: 0, ..good() }, Err(Refusal::RequestTimeout)),
        (Request { timeout: -1, ..good() }, Err(Refusal::RequestTimeout)),
        (Request { metadata: String::new(), cache_key: "k".to_owned(), ..good() }, Err(Refusal::EmptyRequest)),
        (Request { cache_key: "k".to_owned(), ..good() }, Err(Refusal::CacheTtl)),
        (
            Request {
                cache_key: "k".to_owned(),
                cache_ttl: 1,
                request_type_data: RequestType::Command.into(),
                ..good()
            },
            Ok(RequestType::Command),
        ),
    ];
    for (request, expected) in rows {
        assert_eq!(super::request(&request), expected, "{request:?}");
    }
}

fn sent_event(client: &str, channel: &str, body: &'static str) -> Event {
    Event {
        client_id: client.to_owned(),
        channel: channel.to_owned(),
        body: Bytes::from_static(body.as_bytes()),
        ..Event::default()
    }
}

#[test]
fn events_report_their_first_fault() {
    let long = "x".repeat(MAX_SUBJECT_BYTES);
    let longer = "x".repeat(MAX_SUBJECT_BYTES + 1);
    for channel in ["a", "a.b", "a..b", ".a", "a/b:c;d", "größe", long.as_str()] {
        assert_eq!(event(&sent_event("c", channel, "b")), Ok(()), "{channel:.40}");
    }
    let rows = [
        (sent_event("", "", ""), Refusal::EmptyClientId),
        (sent_event("c", "", ""), Refusal::EmptyChannel),
        (sent_event("c", MANAGEMENT_CHANNEL, "b"), Refusal::EmptyChannel),
        (sent_event("c", "a *.", ""), Refusal::ChannelEndsWithDot),
        (sent_event("c", "a *", ""), Refusal::ChannelWhiteSpace),
        (sent_event("c", "a\tb", ""), Refusal::ChannelWhiteSpace),
        (sent_event("c", "a\0b", ""), Refusal::ChannelWhiteSpace),
        (sent_event("c", &longer, "b"), Refusal::ChannelWhiteSpace),
        (sent_event("c", "a.*", ""), Refusal::ChannelWildcard),
        (sent_event("c", "a>b", ""), Refusal::ChannelWildcard),
        (sent_event("c", "a", ""), Refusal::EmptyMessage),
    ];
    for (sent, expected) in rows {
        assert_eq!(event(&sent), Err(expected), "{:.40}", sent.channel);
    }
    let tags_only = Event { tags: [("k".to_owned(), "v".to_owned())].into(), ..sent_event("c", "a", "") };
    assert_eq!(event(&tags_only), Err(Refusal::EmptyMessage));
    let metadata_only = Event { metadata: "m".to_owned(), ..sent_event("c", "a", "") };
    assert_eq!(event(&metadata_only), Ok(()));
}

fn subscription(kind: SubscribeType, client: &str, channel: &str, group: &str) -> Subscribe {
    Subscribe {
        subscribe_type_data: kind.into(),
        client_id: client.to_owned(),
        channel: channel.to_owned(),
        group: group.to_owned(),
        ..Subscribe::default()
    }
}

#[test]
fn subscriptions_report_their_first_fault() {
    let events = |client, channel, group| subscription(SubscribeType::Events, client, channel, group);
    for channel in ["a", "a.*", "a.>", ">", "*", "a*b", "a.>.b", "a/b:c"] {
        assert_eq!(events_subscription(&events("c", channel, "g:1")), Ok(()), "{channel}");
    }
    let with_start = |subscribe| Subscribe { events_store_type_data: 1, ..subscribe };
    let rows = [
        (with_start(events("", "", "g 1")), Refusal::EmptyClientId),
        (with_start(events("c", "", "g 1")), Refusal::EmptyChannel),
        (with_start(events("c", "a .", "g 1")), Refusal::ChannelEndsWithDot),
        (with_start(events("c", "a b", "g 1")), Refusal::ChannelWhiteSpace),
        (with_start(events("c", "a..b", "g 1")), Refusal::StartWithoutStore),
        (events("c", "a..b", "g 1"), Refusal::Subject),
        (events("c", ".a", ""), Refusal::Subject),
        (events("c", "a", "g 1"), Refusal::GroupName),
        (events("c", MANAGEMENT_CHANNEL, ""), Refusal::EmptyChannel),
    ];
    for (subscribe, expected) in rows {
        assert_eq!(events_subscription(&subscribe), Err(expected), "{subscribe:?}");
    }
    for (kind, expected) in [
        (SubscribeType::Undefined, Err(Refusal::SubscribeType)),
        (SubscribeType::Events, Ok(false)),
        (SubscribeType::EventsStore, Ok(true)),
        (SubscribeType::Commands, Err(Refusal::SubscribeType)),
        (SubscribeType::Queries, Err(Refusal::SubscribeType)),
    ] {
        assert_eq!(wants_stored_events(&subscription(kind, "", "", "")), expected, "{kind:?}");
    }
    assert_eq!(
        requests_subscription(&subscription(SubscribeType::Commands, "c", "a.>", "g")),
        Ok(RequestType::Command)
    );
    assert_eq!(requests_subscription(&subscription(SubscribeType::Queries, "c", "a", "")), Ok(RequestType::Query));
    for (subscribe, expected) in [
        (subscription(SubscribeType::Events, "", "", ""), Refusal::SubscribeType),
        (subscription(SubscribeType::Queries, "", "", ""), Refusal::EmptyClientId),
        (subscription(SubscribeType::Queries, "c", "", ""), Refusal::EmptyChannel),
        (subscription(SubscribeType::Queries, "c", "a..b", ""), Refusal::Subject),
        (subscription(SubscribeType::Queries, "c", "a", "g 1"), Refusal::GroupName),
        (subscription(SubscribeType::Queries, "c", MANAGEMENT_CHANNEL, ""), Refusal::EmptyChannel),
    ] {
        assert_eq!(requests_subscription(&subscribe), Err(expected), "{subscribe:?}");
    }
}

#[test]
fn answers_report_their_first_fault() {
    let answer = |client: &str, channel: &str, request: &str| Response {
        client_id: client.to_owned(),
        reply_channel: channel.to_owned(),
        request_id: request.to_owned(),
        ..Response::default()
    };
    let rows = [
        (answer("", "", ""), Err(Refusal::EmptyClientId)),
        (answer("c", "", ""), Err(Refusal::EmptyChannel)),
        (answer("c", "a.", ""), Err(Refusal::ChannelEndsWithDot)),
        (answer("c", "a b", ""), Err(Refusal::ChannelWhiteSpace)),
        (answer("c", "a.*", ""), Err(Refusal::ChannelWildcard)),
        (answer("c", "a", ""), Err(Refusal::EmptyRequestId)),
        (answer("c", "_EVENTS_.x", "r"), Ok(())),
    ];
    for (sent, expected) in rows {
        assert_eq!(response(&sent), expected, "{sent:?}");
    }
}

#[test]
fn what_delivery_adds_must_fit() {
    assert!(is_deliverable(976, 2000) && !is_deliverable(977, 2000) && !is_deliverable(usize::MAX, 2000));
}
