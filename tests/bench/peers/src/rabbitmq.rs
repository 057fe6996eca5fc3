//! RabbitMQ: a quorum queue per channel, persistent messages with publisher confirms, consumers with a prefetch that
//! acknowledge all they have at once. A quorum queue flushes before it confirms; there is no other mode.

use std::process::Command;

use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties};

use crate::server::{Server, free_port};
use crate::{Arguments, Load};

/// A message that the broker writes to its disk.
const PERSISTENT: u8 = 2;

pub(crate) fn start(arguments: &Arguments) -> anyhow::Result<Server> {
    let mut server = Server::prepare(&arguments.directory)?;
    let root = arguments.servers.join("rabbitmq").canonicalize()?;
    let erlang = root.join("usr/lib/erlang");
    let (names, distribution) = (free_port()?, free_port()?);
    let home = server.directory().to_owned();
    // The daemon that knows the names of nodes; left to itself the node would start one that outlives it.
    let daemon = root.join("runtime/epmd");
    server.spawn(Command::new(daemon).args(["-port", &names.to_string(), "-address", "127.0.0.1"]))?;
    let path = format!("{}:{}", erlang.join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let port = server.port();
    server.spawn(
        Command::new(root.join("scripts/rabbitmq-server").canonicalize()?)
            .env("PATH", path)
            .env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"))
            .env("HOME", &home)
            .env("ERL_EPMD_PORT", names.to_string())
            .env("RABBITMQ_ALLOW_INPUT", "1")
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-noinput -kernel inet_dist_use_interface {127,0,0,1}")
            .env("RABBITMQ_CONF_ENV_FILE", home.join("none"))
            .env("RABBITMQ_NODENAME", format!("peer{port}@localhost"))
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", port.to_string())
            .env("RABBITMQ_DIST_PORT", distribution.to_string())
            .env("RABBITMQ_MNESIA_BASE", home.join("data"))
            .env("RABBITMQ_LOG_BASE", home.join("log"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", home.join("plugins")),
    )?;
    server.wait()?;
    Ok(server)
}

pub(crate) async fn run(address: &str, load: &Load<'_>) -> anyhow::Result<()> {
    let uri = format!("amqp://{address}/%2f");
    let connect = || Connection::connect(&uri, ConnectionProperties::default());
    let (sending, receiving) = (connect().await?, connect().await?);
    let publisher = sending.create_channel().await?;
    publisher.confirm_select(ConfirmSelectOptions::default()).await?;
    let channels = load.channels();
    for channel in &channels {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        publisher.queue_declare(channel.as_str().into(), QueueDeclareOptions::durable(), arguments).await?;
        if load.consumes() {
            let consumer = receiving.create_channel().await?;
            let prefetch = u16::try_from(load.share().clamp(64, 2000)).unwrap_or(u16::MAX);
            consumer.basic_qos(prefetch, BasicQosOptions::default()).await?;
            let deliveries = consumer
                .basic_consume(
                    channel.as_str().into(),
                    "bench".into(),
                    BasicConsumeOptions::default(),
                    FieldTable::default(),
                )
                .await?;
            let meter = load.meter.clone();
            tokio::spawn(async move {
                let mut ready = deliveries.ready_chunks(usize::from(prefetch / 2));
                while let Some(chunk) = ready.next().await {
                    let mut last = None;
                    for delivery in chunk.into_iter().flatten() {
                        meter.received(&delivery.data);
                        last = Some(delivery);
                    }
                    let Some(last) = last else { return };
                    if last.ack(BasicAckOptions { multiple: true }).await.is_err() {
                        return;
                    }
                }
                drop(consumer);
            });
        }
    }
    let size = load.arguments.size as usize;
    let (publisher, channels) = (&publisher, &channels);
    load.meter
        .publish(size, load.consumes(), |number, body| async move {
            let confirm = publisher
                .basic_publish(
                    "".into(),
                    channels[number % channels.len()].as_str().into(),
                    BasicPublishOptions::default(),
                    &body,
                    BasicProperties::default().with_delivery_mode(PERSISTENT),
                )
                .await?
                .await?;
            anyhow::ensure!(matches!(confirm, Confirmation::Ack(_)), "a message was refused");
            Ok(())
        })
        .await
}
