//! The terms of a claim. They can only be built consistent: a ttl, a drift and a timeout that do not fit together are
//! refused here, with the field, the value and the bound, and nowhere else.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::quorum::Quorum;
use super::time::{Drift, Ttl};
use super::wait::{Backoff, WakeBy};

/// The longest ttl that is accepted: a year. Whatever is longer is a mistake, and a server refuses absurd values.
pub const LONGEST_TTL: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The longest resource name, in bytes.
pub const LONGEST_RESOURCE: usize = 64 * 1024;

/// The longest holder and metadata together, in bytes.
pub const LONGEST_SIGNATURE: usize = 512;

/// What one claim goes by, checked.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The names of the nodes, for reports.
    pub nodes: Arc<[Arc<str>]>,
    /// Of how many nodes a majority is needed.
    pub quorum: Quorum,
    /// How long a key lives.
    pub ttl: Ttl,
    /// The longest ttl that any client of the namespace asks for.
    pub max_ttl: Ttl,
    /// The allowance for clocks at different rates.
    pub drift: Drift,
    /// How long before the end of the validity the loss is signalled.
    pub margin: Duration,
    /// How long a node is waited for.
    pub node_timeout: Duration,
    /// The rest between attempts.
    pub backoff: Backoff,
    /// How whoever waits learns that a holder is done.
    pub wake_by: WakeBy,
    /// When a held lock is extended.
    pub renewal: Renewal,
    /// The bound on the whole hold; `Duration::MAX` for none.
    pub hold_at_most: Duration,
    /// For how long others are excluded even if the holder is done sooner; zero for no longer than it takes.
    pub hold_at_least: Duration,
}

/// When a held lock is extended by itself.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use redlock_quorum::{MemoryNodes, Renewal};
///
/// let redlock = MemoryNodes::new(3).redlock();
/// let once = redlock.mutex("a").renewal(Renewal::Never); // ends with its ttl, unless it is extended by hand
/// let often = redlock.mutex("b").renewal(Renewal::Every(Duration::from_secs(1)));
/// let (_once, _often) = (once.acquire().await?, often.acquire().await?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Renewal {
    /// While the guard lives, whenever less than two thirds of the ttl remain.
    #[default]
    WhileHeld,
    /// Never: the lock ends with its ttl unless it is extended by hand.
    Never,
    /// While the guard lives, this long after the last extension began: at least 1 ms, and so short that the answers
    /// are there before the loss would be signalled.
    Every(Duration),
}

/// What was asked for, before it is checked against each other.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// How long a key lives.
    pub ttl: Duration,
    /// The longest ttl of any client of the namespace; the ttl itself if not given.
    pub max_ttl: Option<Duration>,
    /// The allowance for clocks at different rates.
    pub drift: Drift,
    /// How long before the end of the validity the loss is signalled.
    pub margin: Duration,
    /// How long a node is waited for; `min(200 ms, ttl / 4)` if not given.
    pub node_timeout: Option<Duration>,
    /// The rest between attempts.
    pub backoff: Backoff,
    /// How whoever waits learns that a holder is done.
    pub wake_by: WakeBy,
    /// When a held lock is extended.
    pub renewal: Renewal,
    /// The bound on the whole hold; `Duration::MAX` for none.
    pub hold_at_most: Duration,
    /// For how long others are excluded even if the holder is done sooner; zero for no longer than it takes.
    pub hold_at_least: Duration,
}

impl Default for Wishes {
    fn default() -> Self {
        Wishes {
            ttl: Duration::from_secs(10),
            max_ttl: None,
            drift: Drift::DEFAULT,
            margin: Duration::from_millis(5),
            node_timeout: None,
            backoff: Backoff::DEFAULT,
            wake_by: WakeBy::default(),
            renewal: Renewal::default(),
            hold_at_most: Duration::MAX,
            hold_at_least: Duration::ZERO,
        }
    }
}

impl Wishes {
    /// The terms over these nodes, if the wishes agree with each other.
    pub fn check(&self, nodes: &Arc<[Arc<str>]>) -> Result<Terms, SettingsError> {
        let max_ttl = self.max_ttl.unwrap_or(self.ttl);
        check_ttl("ttl", self.ttl, max_ttl, self.drift, self.margin)?;
        if max_ttl > LONGEST_TTL {
            return Err(SettingsError::new("max_ttl", max_ttl, format_args!("at most {LONGEST_TTL:?}")));
        }
        let node_timeout = self.node_timeout.unwrap_or_else(|| Duration::from_millis(200).min(self.ttl / 4));
        if node_timeout < Duration::from_millis(1) || node_timeout > self.ttl {
            let bound = format_args!("at least 1ms and at most the ttl of {:?}", self.ttl);
            return Err(SettingsError::new("node_timeout", node_timeout, bound));
        }
        self.backoff.check()?;
        self.wake_by.check()?;
        self.check_renewal(node_timeout)?;
        if self.hold_at_most <= self.margin {
            let bound = format_args!("above the margin of {:?}", self.margin);
            return Err(SettingsError::new("hold_at_most", self.hold_at_most, bound));
        }
        if self.hold_at_least > max_ttl {
            let bound = format_args!("at most the max_ttl of {max_ttl:?}");
            return Err(SettingsError::new("hold_at_least", self.hold_at_least, bound));
        }
        Ok(Terms {
            nodes: nodes.clone(),
            quorum: Quorum::of(nodes.len()),
            ttl: Ttl::from_duration(self.ttl),
            max_ttl: Ttl::from_duration(max_ttl),
            drift: self.drift,
            margin: self.margin,
            node_timeout,
            backoff: self.backoff.clone(),
            wake_by: self.wake_by,
            renewal: self.renewal,
            hold_at_most: self.hold_at_most,
            hold_at_least: self.hold_at_least,
        })
    }

    /// A renewal must have been answered before the loss would be signalled.
    fn check_renewal(&self, node_timeout: Duration) -> Result<(), SettingsError> {
        let lost_to_clocks = self.drift.allowance(Ttl::from_duration(self.ttl)).saturating_add(self.margin);
        let latest = self.ttl.saturating_sub(lost_to_clocks).saturating_sub(node_timeout);
        match self.renewal {
            Renewal::Every(pause) if pause < Duration::from_millis(1) || pause > latest => {
                let bound = format_args!(
                    "at least 1ms and at most {latest:?}: ttl less drift, margin and node_timeout"
                );
                Err(SettingsError::new("renewal", pause, bound))
            }
            Renewal::Every(_) | Renewal::WhileHeld | Renewal::Never => Ok(()),
        }
    }
}

impl Terms {
    /// How long a key that is set for `ttl` stands at most, by our clock: a node's may run more slowly.
    pub fn longest_life(&self, ttl: Ttl) -> Duration {
        ttl.as_duration().saturating_add(self.drift.allowance(ttl))
    }

    /// A ttl for one extension, under these terms.
    pub fn check_extension(&self, ttl: Duration) -> Result<Ttl, SettingsError> {
        check_ttl("ttl", ttl, self.max_ttl.as_duration(), self.drift, self.margin)?;
        Ok(Ttl::from_duration(ttl))
    }
}

/// `1 ms <= drift + margin < ttl <= max_ttl`.
fn check_ttl(
    field: &'static str,
    ttl: Duration,
    max_ttl: Duration,
    drift: Drift,
    margin: Duration,
) -> Result<(), SettingsError> {
    const ONE: Duration = Duration::from_millis(1);
    if ttl < ONE {
        return Err(SettingsError::new(field, ttl, format_args!("at least {ONE:?}")));
    }
    if ttl > max_ttl {
        return Err(SettingsError::new(field, ttl, format_args!("at most the max_ttl of {max_ttl:?}")));
    }
    let whole = Ttl::from_duration(ttl);
    let lost_to_clocks = drift.allowance(whole).saturating_add(margin);
    if lost_to_clocks < ONE {
        return Err(SettingsError::new(
            "drift",
            lost_to_clocks,
            format_args!("with the margin, at least {ONE:?}"),
        ));
    }
    if whole.as_duration() <= lost_to_clocks {
        let bound = format_args!("above drift plus margin, {lost_to_clocks:?}");
        return Err(SettingsError::new(field, ttl, bound));
    }
    Ok(())
}

/// Checks what is locked: 1 byte to 64 KiB, any bytes.
pub fn check_resource(resource: &[u8]) -> Result<(), SettingsError> {
    if resource.is_empty() {
        return Err(SettingsError::new("resource", "", format_args!("at least 1 byte")));
    }
    if resource.len() > LONGEST_RESOURCE {
        let value = format_args!("{} bytes", resource.len()).to_string();
        return Err(SettingsError::new("resource", value, format_args!("at most {LONGEST_RESOURCE} bytes")));
    }
    Ok(())
}

/// Checks a namespace: no `#`, which separates our own keys from the locks.
pub fn check_namespace(namespace: &str) -> Result<(), SettingsError> {
    if namespace.contains('#') {
        return Err(SettingsError::new("namespace", namespace.to_owned(), format_args!("without '#'")));
    }
    Ok(())
}

/// Checks who holds, and the text beside it.
pub fn check_signature(holder: &str, metadata: Option<&str>) -> Result<(), SettingsError> {
    if holder.is_empty() {
        return Err(SettingsError::new("holder", "", format_args!("at least 1 byte")));
    }
    if holder.contains(':') {
        let bound = format_args!("without ':', which separates it from the metadata");
        return Err(SettingsError::new("holder", holder.to_owned(), bound));
    }
    let length = holder.len() + metadata.map_or(0, str::len);
    if length > LONGEST_SIGNATURE {
        let value = format!("{length} bytes");
        let bound = format_args!("with the holder at most {LONGEST_SIGNATURE} bytes");
        return Err(SettingsError::new("metadata", value, bound));
    }
    Ok(())
}

/// Checks a time to wait.
pub fn check_wait(wait: Duration) -> Result<(), SettingsError> {
    if wait.is_zero() {
        let bound = format_args!("above zero; to ask without waiting, use try_acquire");
        return Err(SettingsError::new("wait", wait, bound));
    }
    Ok(())
}

/// A setting that was refused before anything was sent: which field, its value, and the bound.
#[derive(Clone, PartialEq, Eq)]
pub struct SettingsError {
    field: &'static str,
    value: String,
    bound: String,
}

impl SettingsError {
    pub(crate) fn new(field: &'static str, value: impl Shown, bound: fmt::Arguments<'_>) -> Self {
        SettingsError { field, value: value.shown(), bound: bound.to_string() }
    }

    /// The setting's name, as in the builder.
    pub fn field(&self) -> &str {
        self.field
    }

    /// The value that was given. A password in it is hidden.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// What is accepted.
    pub fn bound(&self) -> &str {
        &self.bound
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, but must be {}", self.field, self.value, self.bound)
    }
}

impl fmt::Debug for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SettingsError({self})")
    }
}

impl std::error::Error for SettingsError {}

/// How a refused value is printed: texts in quotes, lengths of time with their unit.
pub(crate) trait Shown {
    fn shown(self) -> String;
}

impl Shown for Duration {
    fn shown(self) -> String {
        format!("{self:?}")
    }
}

impl Shown for &str {
    fn shown(self) -> String {
        format!("{self:?}")
    }
}

impl Shown for String {
    fn shown(self) -> String {
        format!("{self:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn refusal(wishes: &Wishes) -> String {
        let nodes: Arc<[Arc<str>]> = Arc::new(["n1".into()]);
        wishes.check(&nodes).err().map_or_else(String::new, |error| error.to_string())
    }

    #[test]
    fn the_defaults_agree_with_each_other() {
        assert_eq!(refusal(&Wishes::default()), "");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_field_value_and_bound() {
        let good = Wishes::default;
        let backoff = |shortest, longest| Backoff::exponential(ms(shortest), ms(longest));
        for (wishes, message) in [
            (Wishes { ttl: ms(0), ..good() }, "ttl is 0ns, but must be at least 1ms"),
            (Wishes { ttl: Duration::from_micros(999), ..good() }, "ttl is 999µs, but must be at least 1ms"),
            (Wishes { ttl: ms(7), ..good() }, "ttl is 7ms, but must be above drift plus margin, 7.07ms"),
            (
                Wishes { max_ttl: Some(ms(9_999)), ..good() },
                "ttl is 10s, but must be at most the max_ttl of 9.999s",
            ),
            (
                Wishes { ttl: Duration::MAX, ..good() },
                "max_ttl is 18446744073709551615.999999999s, but must be at most 31536000s",
            ),
            (
                Wishes { drift: Drift { parts_per_million: 0, constant: ms(0) }, margin: ms(0), ..good() },
                "drift is 0ns, but must be with the margin, at least 1ms",
            ),
            (
                Wishes { node_timeout: Some(ms(0)), ..good() },
                "node_timeout is 0ns, but must be at least 1ms and at most the ttl of 10s",
            ),
            (
                Wishes { node_timeout: Some(ms(10_001)), ..good() },
                "node_timeout is 10.001s, but must be at least 1ms and at most the ttl of 10s",
            ),
            (Wishes { backoff: backoff(0, 10), ..good() }, "backoff is 0ns, but must be above zero"),
            (
                Wishes { backoff: Backoff::constant(ms(0)), ..good() },
                "backoff is 0ns, but must be above zero",
            ),
            (
                Wishes { backoff: Backoff::DEFAULT.attempts(0), ..good() },
                "attempts is \"0\", but must be at least 1",
            ),
            (
                Wishes { backoff: backoff(10, 9), ..good() },
                "backoff is 9ms, but must be the longest rest, at least the shortest of 10ms",
            ),
            (
                Wishes { wake_by: WakeBy::Poll(Duration::from_micros(999)), ..good() },
                "wake_by is 999µs, but must be at least 1ms",
            ),
            (
                Wishes { renewal: Renewal::Every(ms(9_694)), ..good() },
                "renewal is 9.694s, but must be at least 1ms and at most 9.693s: ttl less drift, margin and node_timeout",
            ),
            (
                Wishes { hold_at_most: ms(5), ..good() },
                "hold_at_most is 5ms, but must be above the margin of 5ms",
            ),
            (
                Wishes { hold_at_least: ms(10_001), ..good() },
                "hold_at_least is 10.001s, but must be at most the max_ttl of 10s",
            ),
        ] {
            assert_eq!(refusal(&wishes), message);
        }
        assert_eq!(refusal(&Wishes { ttl: ms(8), ..good() }), "", "one millisecond of validity is enough");
    }

    #[test]
    fn names_are_bounded() {
        let message = |result: Result<(), SettingsError>| result.err().map(|error| error.to_string());
        for (result, expected) in [
            (check_resource(b""), "resource is \"\", but must be at least 1 byte"),
            (
                check_resource(&[b'x'; LONGEST_RESOURCE + 1]),
                "resource is \"65537 bytes\", but must be at most 65536 bytes",
            ),
            (check_namespace("a#b"), "namespace is \"a#b\", but must be without '#'"),
            (check_signature("", None), "holder is \"\", but must be at least 1 byte"),
            (
                check_signature("a:b", None),
                "holder is \"a:b\", but must be without ':', which separates it from the metadata",
            ),
            (
                check_signature("a", Some(&"x".repeat(512))),
                "metadata is \"513 bytes\", but must be with the holder at most 512 bytes",
            ),
            (
                check_wait(Duration::ZERO),
                "wait is 0ns, but must be above zero; to ask without waiting, use try_acquire",
            ),
        ] {
            assert_eq!(message(result).as_deref(), Some(expected));
        }
        assert!(check_resource(&[0xff; LONGEST_RESOURCE]).is_ok(), "any bytes, up to the bound");
        assert!(check_signature("a", Some("with: colons")).is_ok());
    }
}
