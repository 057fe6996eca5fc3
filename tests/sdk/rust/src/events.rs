//! The scenarios of events.

use crate::inbox::{Got, Inbox, large, ready, reconnecting, tag, together};
use crate::world::{World, body, list, must, texts, until};
use kubemq::{Event, KubemqClient};
use std::sync::Arc;
use std::time::Duration;

/// Plays a scenario; returns false when it is not one of these.
pub async fn play(id: &str, w: World) -> bool {
    match id {
        "events_send" => events_send(w).await,
        "events_stream" => events_stream(w).await,
        "events_fan_out" => events_fan_out(w).await,
        "events_groups" => events_groups(w).await,
        "events_group_left" => events_group_left(w).await,
        "events_wildcards" => events_wildcards(w).await,
        "events_large" => events_large(w).await,
        "events_idle" => events_idle(w).await,
        "events_reconnect" => events_reconnect(w, "kill").await,
        "events_restart" => events_reconnect(w, "stop").await,
        _ => return false,
    }
    true
}

async fn subscribe(client: &KubemqClient, channel: &str, group: &str) -> Inbox {
    let mut inbox = Inbox::default();
    let copy = inbox.clone();
    let on_event = move |event: kubemq::EventReceive| -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        let kubemq::EventReceive { id, channel, metadata, body: bytes, tags, .. } = event;
        copy.put(Got { id, channel, metadata, body: body(&bytes), tag: tag(&tags), ..Got::default() });
        Box::pin(async {})
    };
    inbox.subscription = Some(Arc::new(must(client.subscribe_to_events(channel, group, on_event, None).await)));
    inbox
}

async fn publish(client: &KubemqClient, channel: &str, bodies: &[String]) {
    for one in bodies {
        must(client.publish_event(channel, one.as_bytes(), None, None).await);
    }
}

async fn events_send(w: World) {
    let client = w.client().await;
    let inbox = subscribe(&client, &w.channel, "").await;
    ready(&client, &w.channel, &[&inbox]).await;
    let event = Event::builder().id("my-id").channel(&w.channel).metadata("metadata").body("body");
    must(client.send_event(event.add_tag("key", "value").build()).await);
    inbox.has(&list(&["body"])).await;
    let got = inbox.all().remove(0);
    assert_eq!((&*got.id, &*got.metadata, &*got.tag, &got.channel), ("my-id", "metadata", "value", &w.channel));
}

async fn events_stream(w: World) {
    let client = w.client().await;
    let inbox = subscribe(&client, &w.channel, "").await;
    ready(&client, &w.channel, &[&inbox]).await;
    let mut stream = must(client.send_event_stream().await);
    for one in texts(1, 100) {
        must(stream.send(Event::builder().channel(&w.channel).body(one).build()).await);
    }
    inbox.has(&texts(1, 100)).await;
    assert!(stream.errors().try_recv().is_err(), "an error over the stream");
}

async fn events_fan_out(w: World) {
    let client = w.client().await;
    let first = subscribe(&client, &w.channel, "").await;
    let second = subscribe(&client, &w.channel, "").await;
    ready(&client, &w.channel, &[&first, &second]).await;
    publish(&client, &w.channel, &texts(1, 20)).await;
    first.has(&texts(1, 20)).await;
    second.has(&texts(1, 20)).await;
}

async fn events_groups(w: World) {
    let client = w.client().await;
    let one = subscribe(&client, &w.channel, "group").await;
    let two = subscribe(&client, &w.channel, "group").await;
    let other = subscribe(&client, &w.channel, "other").await;
    let single = subscribe(&client, &w.channel, "").await;
    ready(&client, &w.channel, &[&one, &two, &other, &single]).await;
    publish(&client, &w.channel, &texts(1, 60)).await;
    single.has(&texts(1, 60)).await;
    other.has(&texts(1, 60)).await;
    together(&texts(1, 60), &[&one, &two]).await;
}

async fn events_group_left(w: World) {
    let client = w.client().await;
    let stays = subscribe(&client, &w.channel, "group").await;
    let leaves = subscribe(&client, &w.channel, "group").await;
    ready(&client, &w.channel, &[&stays, &leaves]).await;
    leaves.subscription.as_ref().expect("a subscription").unsubscribe().await;
    // Until the server has noticed, some may still go to who left.
    let mut round = 0;
    until("a round that reaches the one who stays", async || {
        round += 1;
        let bodies: Vec<String> = texts(1, 20).iter().map(|number| format!("{round}-{number}")).collect();
        publish(&client, &w.channel, &bodies).await;
        for _ in 0..20 {
            if stays.bodies().ends_with(&bodies) {
                return Some(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        None
    })
    .await;
}

async fn events_wildcards(w: World) {
    let client = w.client().await;
    let star = subscribe(&client, &w.other("*"), "").await;
    let rest = subscribe(&client, &w.other(">"), "").await;
    ready(&client, &w.other("p"), &[&star, &rest]).await;
    publish(&client, &w.other("a.b"), &list(&["deep"])).await;
    publish(&client, &w.other("a"), &list(&["flat"])).await;
    rest.has(&list(&["deep", "flat"])).await;
    star.has(&list(&["flat"])).await;
    assert_eq!((&rest.all()[0].channel, &star.all()[0].channel), (&w.other("a.b"), &w.other("a")));
}

async fn events_large(w: World) {
    let client = w.client().await;
    let inbox = subscribe(&client, &w.channel, "").await;
    ready(&client, &w.channel, &[&inbox]).await;
    publish(&client, &w.channel, &[large()]).await;
    until("the event", async || (!inbox.all().is_empty()).then_some(())).await;
    assert!(inbox.bodies() == [large()], "the body changed");
}

async fn events_idle(w: World) {
    let builder = KubemqClient::builder().host(&w.host).port(w.port).client_id("rust");
    let client = must(builder.keepalive_time(Duration::from_secs(5)).build().await);
    let sender = w.client().await;
    let inbox = subscribe(&client, &w.channel, "").await;
    ready(&sender, &w.channel, &[&inbox]).await;
    tokio::time::sleep(Duration::from_secs(17)).await;
    // What is sent while a subscription is lost does not come: this one was never.
    publish(&sender, &w.channel, &texts(1, 10)).await;
    inbox.has(&texts(1, 10)).await;
}

async fn events_reconnect(w: World, how: &str) {
    let (client, sender) = (reconnecting(&w).await, w.client().await);
    let inbox = subscribe(&client, &w.channel, "").await;
    ready(&sender, &w.channel, &[&inbox]).await;
    w.again(how).await;
    inbox.forget_probes();
    ready(&sender, &w.channel, &[&inbox]).await;
    publish(&sender, &w.channel, &texts(1, 10)).await;
    inbox.has(&texts(1, 10)).await;
}
