//! NATS JetStream: a file stream per channel, one connection, each message published with its own acknowledgement;
//! work-queue streams with a pull consumer each when messages are consumed.

use std::process::Command;

use async_nats::jetstream::{self, consumer::AckPolicy, consumer::pull, stream};
use futures_util::StreamExt as _;

use crate::server::Server;
use crate::{Arguments, Load};

pub(crate) fn start(arguments: &Arguments) -> anyhow::Result<Server> {
    let mut server = Server::prepare(&arguments.directory)?;
    let sync = if arguments.synced { "sync_interval: always" } else { "" };
    let text = format!(
        "listen: \"127.0.0.1:{}\"\njetstream {{\n store_dir: \"{}\"\n max_file_store: 20GB\n {sync}\n}}\n",
        server.port(),
        server.directory().join("data").display()
    );
    let file = server.file("nats.conf", &text)?;
    server.spawn(Command::new(arguments.servers.join("nats/nats-server")).arg("-c").arg(file))?;
    server.wait()?;
    Ok(server)
}

pub(crate) async fn run(address: &str, load: &Load<'_>) -> anyhow::Result<()> {
    let connect = || async { async_nats::connect(address).await };
    let publisher = jetstream::new(connect().await?);
    let consumer = jetstream::new(connect().await?);
    let retention = if load.consumes() { stream::RetentionPolicy::WorkQueue } else { stream::RetentionPolicy::Limits };
    let channels = load.channels();
    for channel in &channels {
        let stream = consumer
            .create_stream(stream::Config {
                name: channel.clone(),
                subjects: vec![channel.clone()],
                storage: stream::StorageType::File,
                retention,
                ..stream::Config::default()
            })
            .await?;
        if load.consumes() {
            let meter = load.meter.clone();
            let (share, config) = (load.share(), settings(load));
            let mut messages =
                stream.create_consumer(config).await?.stream().max_messages_per_batch(share.max(64)).messages().await?;
            tokio::spawn(async move {
                while let Some(Ok(message)) = messages.next().await {
                    meter.received(&message.payload);
                    if message.ack().await.is_err() {
                        return;
                    }
                }
            });
        }
    }
    let size = load.arguments.size as usize;
    let (publisher, channels) = (&publisher, &channels);
    load.meter
        .publish(size, load.consumes(), |number, body| async move {
            publisher.publish(channels[number % channels.len()].clone(), body).await?.await?;
            Ok(())
        })
        .await
}

fn settings(load: &Load<'_>) -> pull::Config {
    pull::Config {
        durable_name: Some("bench".to_owned()),
        ack_policy: AckPolicy::Explicit,
        max_ack_pending: i64::try_from(2 * load.share().max(64)).unwrap_or(i64::MAX),
        ..pull::Config::default()
    }
}
