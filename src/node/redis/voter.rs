//! Who a server says it is, from when its answers are votes, and what the log says of that. It keeps what is known of a
//! node over its connections; who may vote is decided by `protocol/admission.rs`.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, InfoDict, Value as Wire};

use super::field;
use crate::node::ServerInfo;
use crate::protocol::admission::{Admission, Identity, Introduction, Reason, Standing};
use crate::protocol::command::{Refusal, Unknown};
use crate::protocol::time::Instant;

/// What a server says of itself: `None` if it does not say who it is.
pub(super) fn introduction(info: &InfoDict) -> Option<Introduction> {
    let told = |name: &str| info.get::<String>(name);
    let identity = Identity { run_id: told("run_id")?.into(), replication_id: told("master_replid")?.into() };
    let is_master = told("role").as_deref() == Some("master");
    Some(Introduction {
        identity,
        uptime: Duration::from_secs(info.get("uptime_in_seconds").unwrap_or(0)),
        // A server that was a replica remembers where it left its master.
        always_master: is_master && told("second_repl_offset").as_deref() == Some("-1"),
    })
}

/// The question to which [`distrust`] reads the reply. Servers before 7.0 take one pattern only.
pub(super) fn persistence() -> Cmd {
    let mut question = redis::cmd("CONFIG");
    question.arg(&["GET", "append*"]);
    question
}

/// What a server's configuration says against the word that it forgets nothing. A server that does not tell its
/// configuration says nothing against it.
pub(super) fn distrust(config: &Wire) -> Option<String> {
    let other_than = |name: &str, good: &str| {
        let value = field(config, name).filter(|value| value != good)?;
        Some(format!("{name} is {value}, not {good}"))
    };
    other_than("appendonly", "yes").or_else(|| other_than("appendfsync", "always"))
}

/// What a server says of itself, for people, from its replies to INFO and CONFIG; or why it says nothing.
pub(super) fn server_info(info: Wire, config: &Wire) -> Result<ServerInfo, Unknown> {
    let info = match info {
        Wire::ServerError(error) => return Err(Unknown::Refused(Refusal::from_code(error.code()))),
        info => redis::from_redis_value::<InfoDict>(info).map_err(|_| Unknown::Nonsense)?,
    };
    let told = |name: &str| info.get::<String>(name);
    let number = |name: &str| info.get::<u64>(name);
    let version = match told("valkey_version") {
        Some(version) => Some(format!("valkey {version}")),
        None => told("redis_version").map(|version| format!("redis {version}")),
    };
    let appendfsync = field(config, "appendfsync");
    Ok(ServerInfo {
        version,
        role: told("role"),
        run_id: told("run_id"),
        replication_id: told("master_replid"),
        uptime: number("uptime_in_seconds").map(Duration::from_secs),
        persistence: number("aof_enabled").map(|aof| match (aof, appendfsync) {
            (0, _) => "no append-only file".to_owned(),
            (_, Some(appendfsync)) => format!("appendfsync {appendfsync}"),
            (_, None) => "append-only file".to_owned(),
        }),
        eviction_policy: told("maxmemory_policy"),
        has_memory_limit: number("maxmemory").is_some_and(|limit| limit > 0),
        replicas: number("connected_slaves").unwrap_or(0),
    })
}

/// A node as one that votes, or does not yet.
pub(super) struct Voter {
    admission: Admission,
    /// Who it was the last time that it said so, and when.
    former: Option<(Identity, Instant)>,
    /// Why it waits, or waited last.
    why: Arc<str>,
    /// What the server says against the operator's word for its disk, if that was given.
    distrust: Option<Arc<str>>,
    /// The log has said that it waits, and not yet that it votes.
    wait_is_told: bool,
    /// The log has said that the server does not say who it is. That makes it wait at every connection anew.
    silence_is_told: bool,
}

impl Voter {
    pub(super) fn new(admission: Admission) -> Self {
        Voter {
            admission,
            former: None,
            why: "".into(),
            distrust: None,
            wait_is_told: false,
            silence_is_told: false,
        }
    }

    /// A connection was made.
    pub(super) fn meet(
        &mut self,
        node: &str,
        now: Instant,
        introduction: Option<&Introduction>,
        distrust: Option<&str>,
    ) -> Standing {
        if let Some(distrust) = distrust.filter(|distrust| self.distrust.as_deref() != Some(distrust)) {
            tracing::warn!(
                node,
                why = distrust,
                "trust_disk is not followed: the server may forget what it grants"
            );
        }
        self.distrust = distrust.map(Arc::from);
        let standing = self.admission.admit(now, introduction, distrust.is_none());
        if now < standing.counts_from && standing.reason != Reason::Known {
            self.why = self.why_it_waits(now, standing.reason, introduction).into();
        }
        if let Some(introduction) = introduction {
            self.former = Some((introduction.identity.clone(), now));
            self.silence_is_told = false;
        }
        standing
    }

    fn why_it_waits(&self, now: Instant, reason: Reason, introduction: Option<&Introduction>) -> String {
        let Some(introduction) = introduction else {
            return "does not say who it is (INFO forbidden)".to_owned();
        };
        let uptime = introduction.uptime;
        match (reason, &self.former) {
            _ if !introduction.always_master => "its memory is a copy of another's".to_owned(),
            (Reason::Changed, Some((former, _))) if former.run_id == introduction.identity.run_id => {
                "its memory is a copy of another's".to_owned()
            }
            // It counts in whole seconds, of which one may be too many.
            (Reason::Changed, Some((_, met))) if uptime <= now.since(*met) + Duration::from_secs(1) => {
                format!("restarted {} s ago", uptime.as_secs())
            }
            (Reason::Changed, _) => "another server than before".to_owned(),
            _ => format!("started {} s ago", uptime.as_secs()),
        }
    }

    /// Why the node waits, or waited last.
    pub(super) fn why(&self) -> Arc<str> {
        self.why.clone()
    }

    pub(super) fn distrust(&self) -> Option<Arc<str>> {
        self.distrust.clone()
    }

    /// The log: whether the node votes.
    pub(super) fn tell(&mut self, node: &str, now: Instant, standing: Standing) {
        let Standing { counts_from, reason } = standing;
        if now >= counts_from {
            if std::mem::take(&mut self.wait_is_told) {
                tracing::info!(node, "votes now");
            }
            return;
        }
        let is_told = match reason {
            Reason::Known => self.wait_is_told,
            Reason::Silent => std::mem::replace(&mut self.silence_is_told, true),
            _ => false,
        };
        if is_told {
            return;
        }
        self.wait_is_told = true;
        let (why, votes_in) = (&*self.why, format_args!("{:.1?}", counts_from.since(now)));
        // A deployment that was started a moment ago is nothing to worry about, and its first lock takes long all the same.
        if reason == Reason::Age {
            tracing::info!(node, why, %votes_in, "{WAITS}");
        } else {
            tracing::warn!(node, why, %votes_in, "{WAITS}");
        }
    }
}

const WAITS: &str = "does not vote yet: it may have forgotten a lock that is still held";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::admission::RestartProtection;
    use crate::protocol::time::{Drift, Ttl};

    fn info(text: &str) -> InfoDict {
        InfoDict::new(text)
    }

    fn server(run_id: &str, uptime: u64, offset: i64) -> Introduction {
        let lines = [
            format!("run_id:{run_id}"),
            format!("uptime_in_seconds:{uptime}"),
            "role:master\r\nmaster_replid:r".to_owned(),
            format!("second_repl_offset:{offset}"),
        ];
        introduction(&info(&lines.join("\r\n"))).expect("it says who it is")
    }

    #[test]
    fn who_a_server_is_is_read_from_its_info() {
        let read = server("a", 7, -1);
        assert_eq!((&*read.identity.run_id, &*read.identity.replication_id), ("a", "r"));
        assert_eq!((read.uptime, read.always_master), (Duration::from_secs(7), true));
        assert!(!server("a", 7, 4_711).always_master, "it was a replica once");
        let replica = "run_id:a\r\nmaster_replid:r\r\nrole:slave\r\nsecond_repl_offset:-1";
        assert!(!introduction(&info(replica)).expect("it says who it is").always_master);
        for silent in ["", "run_id:a", "master_replid:r\r\nrole:master"] {
            assert_eq!(introduction(&info(silent)), None, "{silent}");
        }
        let bare = introduction(&info("run_id:a\r\nmaster_replid:r")).expect("it says who it is");
        assert_eq!((bare.uptime, bare.always_master), (Duration::ZERO, false), "at its worst");
    }

    #[test]
    fn a_configuration_can_only_speak_against_a_disk() {
        let text = |text: &str| Wire::BulkString(text.into());
        for (appendonly, appendfsync, says) in [
            ("yes", "always", None),
            ("no", "always", Some("appendonly is no, not yes")),
            ("yes", "everysec", Some("appendfsync is everysec, not always")),
        ] {
            let pairs = [("appendonly", appendonly), ("appendfsync", appendfsync)];
            let map = Wire::Map(pairs.iter().map(|(name, value)| (text(name), text(value))).collect());
            let array =
                Wire::Array(pairs.iter().flat_map(|(name, value)| [text(name), text(value)]).collect());
            for config in [map, array] {
                assert_eq!(distrust(&config).as_deref(), says, "{config:?}");
            }
        }
        for nothing in [Wire::Nil, Wire::Array(Vec::new()), Wire::Map(Vec::new())] {
            assert_eq!(distrust(&nothing), None);
        }
    }

    #[test]
    fn why_a_node_waits_is_said_in_words() {
        let at = |seconds: u64| Instant::from_nanos(seconds * 1_000_000_000);
        let first = server("a", 3, -1);
        for (later, expected) in [
            (Some(server("b", 2, -1)), "restarted 2 s ago"),
            (Some(server("b", 21, -1)), "restarted 21 s ago"),
            (Some(server("b", 22, -1)), "another server than before"),
            (Some(server("b", 900, 5)), "its memory is a copy of another's"),
            (None, "does not say who it is (INFO forbidden)"),
        ] {
            let admission =
                Admission::new(RestartProtection::On, Ttl::from_millis(10_000), Drift::DEFAULT, false);
            let mut voter = Voter::new(admission);
            voter.meet("n", at(100), Some(&first), None);
            assert_eq!(&*voter.why(), "started 3 s ago");
            voter.meet("n", at(120), later.as_ref(), None);
            assert_eq!(&*voter.why(), expected);
        }
    }
}
