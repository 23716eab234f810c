//! Who a server says it is, from when its answers are votes, and what the log says of that. It keeps what is known of a
//! node over its connections; who may vote is decided by `protocol/admission.rs`.

use std::sync::Arc;
use std::time::Duration;

use redis::{InfoDict, Value as Wire};

use super::field;
use crate::node::ServerInfo;
use crate::protocol::admission::{Admission, Identity, Introduction, Reason, Standing};
use crate::protocol::command::{Refusal, Unknown};
use crate::protocol::time::Instant;

/// What a server says of itself: `None` if it does not say who it is.
pub(super) fn introduction(info: &InfoDict, distrust: Option<&str>) -> Option<Introduction> {
    let told = |name: &str| info.get::<String>(name);
    let identity = Identity { run_id: told("run_id")?.into(), replication_id: told("master_replid")?.into() };
    let is_master = told("role").as_deref() == Some("master");
    Some(Introduction {
        identity,
        uptime: Duration::from_secs(info.get("uptime_in_seconds").unwrap_or(0)),
        // A server that was a replica remembers where it left its master.
        always_master: is_master && told("second_repl_offset").as_deref() == Some("-1"),
        durable: distrust.is_none(),
    })
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
pub(super) fn server_info(replies: Vec<Wire>) -> Result<ServerInfo, String> {
    let mut replies = replies.into_iter();
    let info = match replies.next() {
        Some(Wire::ServerError(error)) => {
            return Err(Unknown::Refused(Refusal::from_code(error.code())).to_string());
        }
        Some(info) => redis::from_redis_value::<InfoDict>(info).map_err(|_| Unknown::Nonsense.to_string())?,
        None => return Err(Unknown::Nonsense.to_string()),
    };
    let config = replies.next().unwrap_or(Wire::Nil);
    let told = |name: &str| info.get::<String>(name);
    let number = |name: &str| info.get::<u64>(name);
    let version = match told("valkey_version") {
        Some(version) => Some(format!("valkey {version}")),
        None => told("redis_version").map(|version| format!("redis {version}")),
    };
    let appendfsync = field(&config, "appendfsync");
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
        let standing = self.admission.admit(now, introduction);
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
