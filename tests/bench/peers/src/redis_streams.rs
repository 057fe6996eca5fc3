//! Redis Streams: one `XADD` per message on a connection that pipelines them; consumers of a group that settle what
//! they have (`XACK`, `XDEL`) and ask for more (`XREADGROUP`) in one round trip.

use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Value};

use crate::server::Server;
use crate::{Arguments, Load};

/// Connections that publish when everything is flushed: the server reads 16 KiB of each before it flushes once for
/// all, so that on one connection sixteen messages would share a flush.
const SYNCED_CONNECTIONS: usize = 64;

/// Connections that publish otherwise: more of them only cost more calls.
const CONNECTIONS: usize = 4;

/// How long a consumer waits for messages, in milliseconds.
const BLOCK: usize = 1000;

pub(crate) fn start(arguments: &Arguments) -> anyhow::Result<Server> {
    let mut server = Server::prepare(&arguments.directory)?;
    let root = arguments.servers.join("redis").canonicalize()?;
    let policy = if arguments.synced { "always" } else { "everysec" };
    let data = server.directory().to_owned();
    server.spawn(
        Command::new(root.join("usr/bin/redis-server"))
            .env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"))
            .args(["--bind", "127.0.0.1", "--port", &server.port().to_string(), "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", policy])
            // A rewrite of the whole file amid a measurement would be another measurement.
            .args(["--auto-aof-rewrite-percentage", "0", "--dir"])
            .arg(data),
    )?;
    server.wait()?;
    Ok(server)
}

async fn connect(address: &str) -> anyhow::Result<MultiplexedConnection> {
    let client = redis::Client::open(format!("redis://{address}"))?;
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(30)));
    Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
}

pub(crate) async fn run(address: &str, load: &Load<'_>) -> anyhow::Result<()> {
    let wanted = if load.arguments.synced { SYNCED_CONNECTIONS } else { CONNECTIONS };
    let mut publishers = Vec::new();
    for _ in 0..wanted.min(load.arguments.in_flight as usize) {
        publishers.push(connect(address).await?);
    }
    let channels = load.channels();
    if load.consumes() {
        for channel in &channels {
            let mut connection = publishers[0].clone();
            let mut create = redis::cmd("XGROUP");
            create.arg("CREATE").arg(channel).arg("bench").arg("0").arg("MKSTREAM");
            create.exec_async(&mut connection).await?;
        }
        let connection = connect(address).await?;
        let (channels, meter, count) = (channels.clone(), load.meter.clone(), load.share());
        tokio::spawn(async move {
            if let Err(error) = consume(connection, &channels, count, &meter).await {
                eprintln!("error: {error:#}");
            }
        });
    }
    let size = load.arguments.size as usize;
    let (publishers, channels) = (&publishers, &channels);
    load.meter
        .publish(size, load.consumes(), |number, body| async move {
            let mut connection = publishers[number % publishers.len()].clone();
            let mut add = redis::cmd("XADD");
            add.arg(&channels[number % channels.len()]).arg("*").arg("body").arg(&body[..]);
            add.exec_async(&mut connection).await?;
            Ok(())
        })
        .await
}

async fn consume(
    mut connection: MultiplexedConnection,
    channels: &[String],
    count: usize,
    meter: &crate::meter::Meter,
) -> anyhow::Result<()> {
    let mut settled: Vec<(String, Vec<Value>)> = Vec::new();
    loop {
        let mut pipeline = redis::pipe();
        for (channel, ids) in &settled {
            for command in ["XACK", "XDEL"] {
                pipeline.cmd(command).arg(channel);
                if command == "XACK" {
                    pipeline.arg("bench");
                }
                for id in ids {
                    pipeline.arg(bytes_of(id)?);
                }
                pipeline.ignore();
            }
        }
        pipeline.cmd("XREADGROUP").arg("GROUP").arg("bench").arg("one").arg("COUNT").arg(count);
        pipeline.arg("BLOCK").arg(BLOCK).arg("STREAMS").arg(channels);
        for _ in channels {
            pipeline.arg(">");
        }
        let (answer,): (Value,) = pipeline.query_async(&mut connection).await?;
        settled = received(answer, meter)?;
    }
}

/// Counts what an `XREADGROUP` answered, and returns the ids by channel.
fn received(answer: Value, meter: &crate::meter::Meter) -> anyhow::Result<Vec<(String, Vec<Value>)>> {
    let mut all = Vec::new();
    for stream in array(answer)? {
        let mut stream = array(stream)?.into_iter();
        let (name, entries) = stream.next().zip(stream.next()).context("a stream without entries")?;
        let mut ids = Vec::new();
        for entry in array(entries)? {
            let mut entry = array(entry)?.into_iter();
            let (id, fields) = entry.next().zip(entry.next()).context("an entry without fields")?;
            let body = array(fields)?.into_iter().nth(1).context("an entry without a body")?;
            meter.received(bytes_of(&body)?);
            ids.push(id);
        }
        all.push((String::from_utf8_lossy(bytes_of(&name)?).into_owned(), ids));
    }
    Ok(all)
}

fn array(value: Value) -> anyhow::Result<Vec<Value>> {
    match value {
        Value::Array(values) => Ok(values),
        // Nothing came in time.
        Value::Nil => Ok(Vec::new()),
        other => anyhow::bail!("not an array: {other:?}"),
    }
}

fn bytes_of(value: &Value) -> anyhow::Result<&[u8]> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        other => anyhow::bail!("not a string: {other:?}"),
    }
}
