//! Kafka in KRaft mode: a topic of one partition per channel, one producer that waits for all replicas (there is
//! one), and one consumer of a group that commits what it has.
//!
//! The client is librdkafka: its programs share the processors with the server, and Java's own would spend the
//! measurement warming up.

use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{CommitMode, Consumer as _, StreamConsumer};
use rdkafka::message::Message as _;
use rdkafka::producer::{FutureProducer, FutureRecord};

use crate::server::{Server, free_port};
use crate::{Arguments, Load};

/// A cluster's name, as Kafka wants it.
const CLUSTER: &str = "a3ViZW1xLXBlZXJzLTAwMQ";

pub(crate) fn start(arguments: &Arguments) -> anyhow::Result<Server> {
    let mut server = Server::prepare(&arguments.directory)?;
    let classes = format!("{}/*", arguments.servers.join("kafka/lib").canonicalize()?.display());
    let (port, controller) = (server.port(), free_port()?);
    let flush = if arguments.synced { "log.flush.interval.messages=1\n" } else { "" };
    let text = format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port}\ncontroller.listener.names=CONTROLLER\n\
         log.dirs={}\nauto.create.topics.enable=false\noffsets.topic.replication.factor=1\n\
         offsets.topic.num.partitions=1\ngroup.initial.rebalance.delay.ms=0\n{flush}",
        server.directory().join("data").display()
    );
    let file = server.file("server.properties", &text)?;
    let formatted = Command::new("java")
        .args(["-cp", &classes, "kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c"])
        .arg(&file)
        .output()
        .context("java cannot be started")?;
    anyhow::ensure!(formatted.status.success(), "{}", String::from_utf8_lossy(&formatted.stderr));
    // The settings of Kafka's own start script.
    server.spawn(
        Command::new("java")
            .args(["-Xms1G", "-Xmx1G", "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"])
            .args(["-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent"])
            .args(["-Djava.awt.headless=true", "-cp", &classes, "kafka.Kafka"])
            .arg(file),
    )?;
    server.wait()?;
    Ok(server)
}

pub(crate) async fn run(address: &str, load: &Load<'_>) -> anyhow::Result<()> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", address).set("broker.address.family", "v4");
    let channels = load.channels();
    make_topics(&config, &channels).await?;
    if load.consumes() {
        let consumer: StreamConsumer = config
            .clone()
            .set("group.id", "bench")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("fetch.wait.max.ms", "100")
            .create()?;
        consumer.subscribe(&channels.iter().map(String::as_str).collect::<Vec<_>>())?;
        let (meter, most) = (load.meter.clone(), (load.arguments.in_flight as usize / 2).max(1));
        tokio::spawn(async move {
            if let Err(error) = consume(&consumer, most, &meter).await {
                eprintln!("error: {error:#}");
            }
        });
    }
    let producer: FutureProducer = config
        .clone()
        .set("acks", "all")
        // What comes while a request is under way makes the next batch; nothing waits for company. With more
        // requests under way each message would go in one of its own, and be flushed by itself.
        .set("queue.buffering.max.ms", "0")
        .set("max.in.flight.requests.per.connection", "1")
        .create()?;
    let size = load.arguments.size as usize;
    let (producer, channels) = (&producer, &channels);
    load.meter
        .publish(size, load.consumes(), |number, body| async move {
            let record =
                FutureRecord::<(), [u8]>::to(&channels[number % channels.len()]).partition(0).payload(&body[..]);
            let sent = producer.send_result(record).map_err(|(error, _)| error)?;
            sent.await?.map_err(|(error, _)| error)?;
            Ok(())
        })
        .await
}

async fn make_topics(config: &ClientConfig, channels: &[String]) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> = config.create()?;
    let topics: Vec<NewTopic<'_>> =
        channels.iter().map(|channel| NewTopic::new(channel, 1, TopicReplication::Fixed(1))).collect();
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    for made in admin.create_topics(&topics, &options).await? {
        made.map_err(|(topic, error)| anyhow::anyhow!("{topic}: {error}"))?;
    }
    Ok(())
}

/// Receives, and commits after each `most` messages, or when nothing more is there.
async fn consume(consumer: &StreamConsumer, most: usize, meter: &crate::meter::Meter) -> anyhow::Result<()> {
    let mut ready = consumer.stream().ready_chunks(most);
    let mut since = 0;
    while let Some(chunk) = ready.next().await {
        for message in chunk {
            let message = message?;
            meter.received(message.payload().unwrap_or_default());
            since += 1;
        }
        if since >= most {
            since = 0;
            consumer.commit_consumer_state(CommitMode::Async)?;
        }
    }
    Ok(())
}
