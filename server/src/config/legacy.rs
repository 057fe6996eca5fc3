//! Keys of the original product that have no meaning here yet.
//!
//! A file or an environment made for it must not stop this server, so each is known by name and answered with a
//! warning. The exceptions are keys that protect: a server that ignored them would be open while its operator
//! believes that it is not, so it refuses to start when one of them is switched on.

/// What happens when a key is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Treatment {
    /// It has no effect.
    Ignored,
    /// The server refuses to start while its value means anything but "off".
    Protects,
}

use Treatment::{Ignored, Protects};

/// Sections of which every key is treated alike, in the spelling of the original.
pub(super) static SECTIONS: &[(&str, Treatment)] = &[
    ("client", Ignored),
    ("broker", Ignored),
    ("rest", Ignored),
    ("routing", Ignored),
    ("notification", Ignored),
    ("cluster", Ignored),
    ("connectors", Ignored),
    ("authentication.jwtConfig", Ignored),
    ("security", Protects),
];

/// Single keys, in the spelling of the original.
pub(super) static KEYS: &[(&str, Treatment)] = &[
    ("store.cleanStore", Ignored),
    ("store.maxQueues", Ignored),
    ("store.maxSubscribers", Ignored),
    ("store.maxPurgeInactive", Ignored),
    ("queue.maxInflight", Ignored),
    ("queue.pubAckWaitSeconds", Ignored),
    ("grpc.subBuffSize", Ignored),
    ("log.fileEnable", Ignored),
    ("log.filePath", Ignored),
    ("api.enable", Ignored),
    ("api.allowOrigins", Ignored),
    ("authentication.enable", Protects),
    ("authentication.type", Ignored),
    ("authentication.config", Ignored),
    ("authorization.enable", Protects),
    ("authorization.policyData", Ignored),
    ("authorization.filePath", Ignored),
    ("authorization.url", Ignored),
    ("authorization.autoReload", Ignored),
    ("configData", Ignored),
];

/// Environment variables, which cannot be told from anybody's by their section.
pub(super) static ENVIRONMENT: &[(&str, Treatment)] = &[
    ("REST_PORT", Ignored),
    ("REST_READ_TIMEOUT", Ignored),
    ("REST_WRITE_TIMEOUT", Ignored),
    ("REST_SUB_BUFF_SIZE", Ignored),
    ("REST_BODY_LIMIT", Ignored),
    ("CONNECTORS_REST_ENABLE", Ignored),
    ("CONNECTORS_REST_PORT", Ignored),
    ("CONNECTORS_GRPC_ENABLE", Ignored),
    ("CONNECTORS_GRPC_SUB_BUFF_SIZE", Ignored),
    ("CONNECTORS_GRPC_ENABLE_REFLECTION", Ignored),
    ("GRPC_SUB_BUFF_SIZE", Ignored),
    ("BROKER_MAX_PAYLOAD", Ignored),
    ("BROKER_WRITE_DEADLINE", Ignored),
    ("BROKER_MAX_CONN", Ignored),
    ("BROKER_WRITE_BUFFER_SIZE", Ignored),
    ("BROKER_READ_BUFFER_SIZE", Ignored),
    ("BROKER_DISK_SYNC_SECONDS", Ignored),
    ("BROKER_SLICE_MAX_MESSAGES", Ignored),
    ("BROKER_SLICE_MAX_BYTES", Ignored),
    ("BROKER_SLICE_MAX_AGE_SECONDS", Ignored),
    ("BROKER_PARALLEL_RECOVERY", Ignored),
    ("STORE_CLEAN_STORE", Ignored),
    ("STORE_MAX_QUEUES", Ignored),
    ("STORE_MAX_SUBSCRIBERS", Ignored),
    ("STORE_MAX_PURGE_INACTIVE", Ignored),
    ("QUEUE_MAX_INFLIGHT", Ignored),
    ("QUEUE_PUB_ACK_WAIT_SECONDS", Ignored),
    ("ROUTING_ENABLE", Ignored),
    ("ROUTING_DATA", Ignored),
    ("ROUTING_FILE_PATH", Ignored),
    ("ROUTING_URL", Ignored),
    ("ROUTING_AUTO_RELOAD", Ignored),
    ("CLUSTER_ENABLE", Ignored),
    ("CLUSTER_ROUTES", Ignored),
    ("AUTHENTICATION_ENABLE", Protects),
    ("AUTHORIZATION_ENABLE", Protects),
    ("SECURITY_CERT_FILENAME", Protects),
    ("SECURITY_CERT_DATA", Protects),
    ("SECURITY_KEY_FILENAME", Protects),
    ("SECURITY_KEY_DATA", Protects),
    ("SECURITY_CA_FILENAME", Protects),
    ("SECURITY_CA_DATA", Protects),
];

/// Returns how the key at `path` is treated, or nothing when it is no key of the original either.
pub(super) fn treatment(path: &str) -> Option<Treatment> {
    let single = KEYS.iter().find(|(key, _)| key.eq_ignore_ascii_case(path));
    let section = || {
        SECTIONS.iter().find(|(section, _)| {
            let head = path.get(..section.len()).is_some_and(|head| head.eq_ignore_ascii_case(section));
            head && path[section.len()..].starts_with('.')
        })
    };
    single.or_else(section).map(|(_, treatment)| *treatment)
}

/// Returns whether a protecting key with this value is switched off.
pub(super) fn is_off(value: &str) -> bool {
    let off = ["", "0", "f", "false", "no", "off", "null", "~"];
    off.iter().any(|off| off.eq_ignore_ascii_case(value.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_original_are_known_and_others_are_not() {
        let rows = [
            ("broker.diskSyncSeconds", Some(Ignored)),
            ("BROKER.DISKSYNCSECONDS", Some(Ignored)),
            ("rest.cors.allowOrigins", Some(Ignored)),
            ("brokers.port", None),
            ("broker", None),
            ("store.cleanstore", Some(Ignored)),
            ("store.cleanStores", None),
            ("authentication.enable", Some(Protects)),
            ("authentication.jwtconfig.key", Some(Ignored)),
            ("security.cert.data", Some(Protects)),
            ("queue.maxDelaySecond", None),
        ];
        for (path, expected) in rows {
            assert_eq!(treatment(path), expected, "{path}");
        }
    }

    #[test]
    fn off_is_said_in_many_ways() {
        assert!(["", " ", "false", "FALSE", "0", "off", "no"].iter().all(|value| is_off(value)));
        assert!(["true", "1", "yes", "-----BEGIN CERTIFICATE-----"].iter().all(|value| !is_off(value)));
    }
}
