//! The scenarios of queues, channel management and reconnection.

use std::time::{Duration, Instant};

use kubemq::{AckAllQueueMessagesRequest, KubemqClient, PollRequest, QueueUpstreamHandle};

use crate::world::{World, bodies, body, counts, list, message, must, polled, request, texts, until};

/// Plays a scenario; returns false when it is not one of these.
pub async fn play(id: &str, w: World) -> bool {
    match id {
        "ping" => ping(w).await,
        "send_receive" => send_receive(w).await,
        "send_batch" => send_batch(w).await,
        "send_refused" => send_refused(w).await,
        "receive_empty" => receive_empty(w).await,
        "peek" => peek(w).await,
        "ack_all" => ack_all(w).await,
        "delay" => delay(w).await,
        "expiration" => expiration(w).await,
        "duplicate_client_ids" => duplicate_client_ids(w).await,
        "concurrent_receivers" => concurrent_receivers(w).await,
        "large_message" => large_message(w).await,
        "batch_in_parts" => batch_in_parts(w).await,
        "upstream_send" => upstream_send(w).await,
        "poll_auto_ack" => poll_auto_ack(w).await,
        "poll_empty" => poll_empty(w).await,
        "poll_ack_all" => poll_ack_all(w).await,
        "poll_ack_each" => poll_ack_each(w).await,
        "poll_nack_all" => poll_nack_all(w).await,
        "poll_nack_each" => poll_nack_each(w).await,
        "poll_requeue_all" => poll_requeue_all(w).await,
        "poll_requeue_each" => poll_requeue_each(w).await,
        "poll_mixed" => poll_mixed(w).await,
        "poll_close" => poll_close(w).await,
        "poll_dead_letter" => poll_dead_letter(w).await,
        "poll_errors" => poll_errors(w).await,
        "channels" => channels(w).await,
        "reconnect" => reconnect(w, "kill").await,
        "reconnect_stream" => reconnect_stream(w, "kill").await,
        "restart" => reconnect(w, "stop").await,
        "restart_stream" => reconnect_stream(w, "stop").await,
        _ => return false,
    }
    true
}

async fn ping(w: World) {
    let info = must(w.client().await.ping().await);
    assert!(!info.host.is_empty() && !info.version.is_empty(), "{info:?}");
    assert!(info.server_start_time > 0 && info.server_up_time_seconds >= 0, "{info:?}");
}

async fn send_receive(w: World) {
    let client = w.client().await;
    let sent = message(&w.channel, "body").id("my-id").metadata("metadata").add_tag("key", "value").build();
    let result = must(client.send_queue_message(sent).await);
    assert!(!result.is_error && result.message_id == "my-id" && result.sent_at > 0, "{result:?}");
    let message = w.takes(&client, &w.channel, &list(&["body"])).await.remove(0);
    assert_eq!((&*message.id, &*message.metadata, &message.channel), ("my-id", "metadata", &w.channel));
    assert_eq!(message.tags["key"], "value");
    let attributes = message.attributes.expect("attributes");
    assert_eq!((attributes.sequence, attributes.receive_count), (1, 1));
    w.empty(&client, &w.channel).await;
}

async fn send_batch(w: World) {
    let client = w.client().await;
    w.fill(&client, &w.channel, &texts(1, 10)).await;
    w.takes(&client, &w.channel, &texts(1, 10)).await;
}

async fn send_refused(w: World) {
    let client = w.client().await;
    let result = must(client.send_queue_message(message(&w.channel, "").build()).await);
    assert!(result.is_error && result.error.starts_with("Error 110:"), "{result:?}");
}

async fn receive_empty(w: World) {
    let client = w.client().await;
    let started = Instant::now();
    w.empty(&client, &w.channel).await;
    assert!(started.elapsed() > Duration::from_millis(900), "answered after {:?}", started.elapsed());
}

async fn peek(w: World) {
    let client = w.client().await;
    w.fill(&client, &w.channel, &texts(1, 5)).await;
    for _ in 0..2 {
        let seen = must(client.receive_queue_messages(&w.channel, 3, 5, true).await);
        assert_eq!(bodies(&seen), texts(1, 3));
    }
    w.takes(&client, &w.channel, &texts(1, 5)).await;
}

async fn ack_all(w: World) {
    let client = w.client().await;
    w.fill(&client, &w.channel, &texts(1, 7)).await;
    let request = AckAllQueueMessagesRequest {
        request_id: String::new(),
        client_id: String::new(),
        channel: w.channel.clone(),
        wait_time_seconds: 1,
    };
    let response = must(client.ack_all_queue_messages(&request).await);
    assert!(!response.is_error && response.affected_messages == 7, "{response:?}");
    w.empty(&client, &w.channel).await;
}

async fn delay(w: World) {
    let client = w.client().await;
    let started = Instant::now();
    let result = must(client.send_queue_message(message(&w.channel, "late").delay_seconds(2).build()).await);
    assert!(!result.is_error && result.delayed_to > 0, "{result:?}");
    w.takes(&client, &w.channel, &list(&["late"])).await;
    assert!(started.elapsed() > Duration::from_millis(1980), "it came after {:?}", started.elapsed());
}

async fn expiration(w: World) {
    let client = w.client().await;
    let result = must(client.send_queue_message(message(&w.channel, "old").expiration_seconds(1).build()).await);
    assert!(!result.is_error && result.expiration_at > 0, "{result:?}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    w.empty(&client, &w.channel).await;
}

async fn duplicate_client_ids(w: World) {
    let (first, second) = (w.client_named("same").await, w.client_named("same").await);
    w.fill(&first, &w.channel, &texts(1, 2)).await;
    w.fill(&second, &w.channel, &texts(3, 4)).await;
    let mut receiver = must(first.new_queue_downstream_receiver().await);
    let held = w.polls(&mut receiver, &w.channel, &list(&["1"])).await;
    w.takes(&second, &w.channel, &texts(2, 3)).await;
    w.takes(&first, &w.channel, &list(&["4"])).await;
    must(second.close().await);
    must(held.ack_all().await);
    w.polls_nothing(&mut receiver, &w.channel).await;
}

async fn concurrent_receivers(w: World) {
    let (first, second) = (w.client_named("one").await, w.client_named("two").await);
    w.fill(&first, &w.channel, &texts(1, 200)).await;
    let drain = async |client: KubemqClient| {
        let mut found = Vec::new();
        loop {
            let messages = w.take(&client, &w.channel, 7, 1).await;
            if messages.is_empty() {
                return found;
            }
            found.extend(bodies(&messages));
        }
    };
    let (mut found, other) = tokio::join!(drain(first), drain(second));
    found.extend(other);
    let mut expected = texts(1, 200);
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

async fn large_message(w: World) {
    let client = w.large_client().await;
    let large = "0123456789".repeat(1_000_000);
    let result = must(client.send_queue_message(message(&w.channel, &large).build()).await);
    assert!(!result.is_error, "{result:?}");
    let mut receiver = must(client.new_queue_downstream_receiver().await);
    let response = must(receiver.poll(request(&w.channel, 1, 10)).await);
    assert!(polled(&response) == [large.clone()], "the body changed");
    must(response.re_queue_all(&w.other("other")).await);
    let messages = w.take(&client, &w.other("other"), 1, 10).await;
    assert!(bodies(&messages) == [large], "the body of the copy changed");
}

async fn batch_in_parts(w: World) {
    let client = w.client().await;
    let large = "x".repeat(100_000);
    w.fill(&client, &w.channel, &vec![large.clone(); 100]).await;
    let mut received = 0;
    loop {
        let messages = w.take(&client, &w.channel, 100, 1).await;
        if messages.is_empty() {
            break;
        }
        assert!(messages.iter().all(|message| body(&message.body) == large), "a body changed");
        received += messages.len();
    }
    assert_eq!(received, 100);
}

/// Sends over the stream, one request for all, and waits for its answer.
async fn pour(stream: &mut QueueUpstreamHandle, id: &str, channel: &str, bodies: &[String]) -> Result<(), String> {
    let messages = bodies.iter().map(|body| message(channel, body).build()).collect();
    stream.send(id, messages).await.map_err(|error| error.to_string())?;
    let answer = tokio::time::timeout(Duration::from_secs(10), stream.results().recv()).await;
    let answer = answer.map_err(|_| "no answer")?.ok_or("the stream ended")?;
    if answer.is_error || answer.ref_request_id != id || answer.results.len() != bodies.len() {
        return Err(format!("{answer:?}"));
    }
    answer.results.into_iter().try_for_each(|one| if one.is_error { Err(one.error) } else { Ok(()) })
}

async fn upstream_send(w: World) {
    let client = w.client().await;
    let mut tasks = Vec::new();
    for task in 0..10 {
        let (w, client) = (w.clone(), client.clone());
        tasks.push(tokio::spawn(async move {
            let mut stream = must(client.queue_upstream().await);
            for number in 0..10 {
                let two = [format!("{task}-{number}"), format!("{task}-{number}'")];
                pour(&mut stream, &format!("{number}"), &w.channel, &two).await.unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.expect("a task that sent everything");
    }
    assert_eq!(w.take(&client, &w.channel, 200, 10).await.len(), 200);
}

async fn poll_auto_ack(w: World) {
    let client = w.client().await;
    w.fill(&client, &w.channel, &texts(1, 10)).await;
    let mut receiver = must(client.new_queue_downstream_receiver().await);
    let response = must(receiver.poll(PollRequest { auto_ack: true, ..request(&w.channel, 10, 10) }).await);
    assert_eq!(polled(&response), texts(1, 10));
    w.polls_nothing(&mut receiver, &w.channel).await;
}

async fn poll_empty(w: World) {
    let client = w.client().await;
    let mut receiver = must(client.new_queue_downstream_receiver().await);
    for _ in 0..3 {
        let started = Instant::now();
        w.polls_nothing(&mut receiver, &w.channel).await;
        assert!(started.elapsed() > Duration::from_millis(900), "answered after {:?}", started.elapsed());
        assert!(started.elapsed() < Duration::from_secs(10), "answered after {:?}", started.elapsed());
    }
}

async fn poll_ack_all(w: World) {
    let client = w.client().await;
    w.fill(&client, &w.channel, &texts(1, 10)).await;
    let mut receiver = must(client.new_queue_downstream_receiver().await);
    must(w.polls(&mut receiver, &w.channel, &texts(1, 10)).await.ack_all().await);
    w.polls_nothing(&mut receiver, &w.channel).await;
}

async fn poll_ack_each(w: World) {
    let client = w.client().await;
    w.fill(&client, &w.channel, &texts(1, 10)).await;
    let mut receiver = must(client.new_queue_downstream_receiver().await);
    for message in w.polls(&mut receiver, &w.channel, &texts(1, 10)).await.messages {
        must(message.ack().await);
    }
    w.polls_nothing(&mut receiver, &w.channel).await;
}

async fn poll_nack_all(w: World) {
    let client = w.client().await;
    w.fill(&client, &w.channel, &texts(1, 5)).await;
    let mut receiver = must(client.new_queue_downstream_receiver().await);
    for count in 1..=4 {
        let response = w.polls(&mut receiver, &w.channel, &texts(1, 5)).await;
        assert_eq!(counts(&response), [count; 5]);
        must(response.nack_all().await);
    }
}

async fn poll_nack_each(w: World) {
    let client = w.client().await;
    w.fill(&client, &w.channel, &texts(1, 5)).await;
    let mut receiver = must(client.new_queue_downstream_receiver().await);
    let response = w.polls(&mut receiver, &w.channel, &texts(1, 5)).await;
    for (index, message) in response.messages.iter().enumerate() {
        must(if index % 2 == 0 { message.ack().await } else { message.nack().await });
    }
    let response = w.polls(&mut receiver, &w.channel, &list(&["2", "4"])).await;
    assert_eq!(counts(&response), [2, 2]);
    must(response.ack_all().await);
    w.polls_nothing(&mut receiver, &w.channel).await;
}

async fn poll_requeue_all(w: World) {
    let client = w.client().await;
    w.fill(&client, &w.channel, &texts(1, 5)).await;
    let mut receiver = must(client.new_queue_downstream_receiver().await);
    must(w.polls(&mut receiver, &w.channel, &texts(1, 5)).await.re_queue_all(&w.other("other")).await);
    let response = w.polls(&mut receiver, &w.other("other"), &texts(1, 5)).await;
    assert_eq!(counts(&response), [1; 5]);
    must(response.ack_all().await);
    w.polls_nothing(&mut receiver, &w.channel).await;
}

async fn poll_requeue_each(w: World) {
    let client = w.client().await;
    w.fill(&client, &w.channel, &texts(1, 4)).await;
    let mut receiver = must(client.new_queue_downstream_receiver().await);
    let response = w.polls(&mut receiver, &w.channel, &texts(1, 4)).await;
    for (index, message) in response.messages.iter().enumerate() {
        must(message.re_queue(&w.other(&(index % 2).to_string())).await);
    }
    must(w.polls(&mut receiver, &w.other("0"), &list(&["1", "3"])).await.ack_all().await);
    must(w.polls(&mut receiver, &w.other("1"), &list(&["2", "4"])).await.ack_all().await);
    w.polls_nothing(&mut receiver, &w.channel).await;
}

async fn poll_mixed(w: World) {
    let client = w.client().await;
    w.fill(&client, &w.channel, &texts(1, 6)).await;
    let mut receiver = must(client.new_queue_downstream_receiver().await);
    let response = w.polls(&mut receiver, &w.channel, &texts(1, 6)).await;
    for (index, message) in response.messages.iter().enumerate().take(4) {
        must(if index < 2 { message.ack().await } else { message.nack().await });
    }
    must(response.re_queue_all(&w.other("other")).await);
    must(w.polls(&mut receiver, &w.channel, &texts(3, 4)).await.ack_all().await);
    must(w.polls(&mut receiver, &w.other("other"), &texts(5, 6)).await.ack_all().await);
    w.polls_nothing(&mut receiver, &w.channel).await;
}

async fn poll_close(w: World) {
    let client = w.client().await;
    w.fill(&client, &w.channel, &texts(1, 3)).await;
    let mut receiver = must(client.new_queue_downstream_receiver().await);
    // What was polled holds the stream's sender, too.
    drop(w.polls(&mut receiver, &w.channel, &texts(1, 3)).await);
    must(receiver.close().await);
    drop(receiver);
    let mut receiver = must(client.new_queue_downstream_receiver().await);
    let response = w.polls(&mut receiver, &w.channel, &texts(1, 3)).await;
    assert_eq!(counts(&response), [1; 3]);
    assert_eq!(response.messages[0].sequence, 1);
    must(response.ack_all().await);
}

async fn poll_dead_letter(w: World) {
    let client = w.client().await;
    for number in texts(1, 3) {
        let sent = message(&w.channel, &number).max_receive_count(2).max_receive_queue(w.other("dead")).build();
        assert!(!must(client.send_queue_message(sent).await).is_error);
    }
    let mut receiver = must(client.new_queue_downstream_receiver().await);
    for _ in 0..2 {
        must(w.polls(&mut receiver, &w.channel, &texts(1, 3)).await.nack_all().await);
    }
    let response = w.polls(&mut receiver, &w.other("dead"), &texts(1, 3)).await;
    for letter in &response.messages {
        let attributes = letter.message.attributes.as_ref().expect("attributes");
        assert!(attributes.re_routed && attributes.re_routed_from_queue == w.channel, "{attributes:?}");
    }
    must(response.ack_all().await);
    w.polls_nothing(&mut receiver, &w.channel).await;
}

async fn poll_errors(w: World) {
    // This SDK takes whatever comes next for the answer to its poll: an error, or a confirmation, would show.
    let client = w.client().await;
    w.fill(&client, &w.channel, &texts(1, 20)).await;
    for batch in 0..4 {
        let mut receiver = must(client.new_queue_downstream_receiver().await);
        for half in 0..2 {
            let first = batch * 5 + 1 + half * 3;
            let expected = texts(first, first + 2 - half);
            for message in w.polls(&mut receiver, &w.channel, &expected).await.messages {
                must(message.ack().await);
            }
        }
        w.polls_nothing(&mut receiver, &w.other("none")).await;
        must(receiver.close().await);
    }
    w.empty(&client, &w.channel).await;
}

async fn channels(w: World) {
    let client = w.client().await;
    must(client.create_queues_channel(&w.channel).await);
    w.fill(&client, &w.channel, &texts(1, 2)).await;
    w.takes(&client, &w.channel, &list(&["1"])).await;
    let found = must(client.list_queues_channels(&w.channel).await);
    assert_eq!((found.len(), &found[0].name, &*found[0].channel_type), (1, &w.channel, "queues"));
    let messages = |stats: &Option<kubemq::ChannelStats>| stats.as_ref().expect("figures").messages;
    assert_eq!((messages(&found[0].incoming), messages(&found[0].outgoing)), (2, 1));
    must(client.delete_queues_channel(&w.channel).await);
    assert!(must(client.list_queues_channels(&w.channel).await).is_empty());
    w.empty(&client, &w.channel).await;
    for kind in ["events", "events_store", "commands", "queries"] {
        must(client.create_channel(&w.channel, kind).await);
        let found = must(client.list_channels(kind, &w.channel).await);
        assert_eq!((found.len(), &found[0].name, &*found[0].channel_type), (1, &w.channel, kind));
        must(client.delete_channel(&w.channel, kind).await);
        assert!(must(client.list_channels(kind, &w.channel).await).is_empty());
    }
}

async fn reconnect(w: World, how: &str) {
    let client = w.client().await;
    w.fill(&client, &w.channel, &texts(1, 3)).await;
    w.takes(&client, &w.channel, &list(&["1"])).await;
    w.again(how).await;
    w.connected(&client).await;
    w.fill(&client, &w.channel, &list(&["4"])).await;
    w.takes(&client, &w.channel, &texts(2, 4)).await;
    w.empty(&client, &w.channel).await;
}

async fn reconnect_stream(w: World, how: &str) {
    let client = w.client().await;
    let mut stream = must(client.queue_upstream().await);
    pour(&mut stream, "all", &w.channel, &texts(1, 4)).await.unwrap();
    let mut receiver = must(client.new_queue_downstream_receiver().await);
    must(w.polls(&mut receiver, &w.channel, &texts(1, 2)).await.ack_all().await);
    // Asked behind the acknowledgement, so that it has taken effect.
    w.polls(&mut receiver, &w.channel, &list(&["3"])).await;
    w.again(how).await;
    // The SDK says that a stream has ended; the application opens another.
    assert!(receiver.poll(request(&w.channel, 1, 1)).await.is_err(), "a poll over a lost stream is an error");
    w.connected(&client).await;
    let mut receiver = must(client.new_queue_downstream_receiver().await);
    let response = w.polls(&mut receiver, &w.channel, &texts(3, 4)).await;
    assert_eq!(counts(&response), [1, 1]);
    must(response.ack_all().await);
    until("the stream to send on", async || {
        stream = must(client.queue_upstream().await);
        pour(&mut stream, "five", &w.channel, &list(&["5"])).await.ok()
    })
    .await;
    must(w.polls(&mut receiver, &w.channel, &list(&["5"])).await.ack_all().await);
}
