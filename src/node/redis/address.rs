//! Where a node is and how to log in, as users write it. Everything is checked before a connection is tried, and no
//! password is ever printed.

use std::fmt;
use std::time::Duration;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion};

#[cfg(feature = "tls")]
use super::tls::{Certificates, ClientPem, Tls};
use crate::protocol::settings::SettingsError;

/// One node: its address, and what does not belong into a URL. Nothing is checked before the builder connects.
///
/// ```
/// use std::time::Duration;
/// use redlock_quorum::NodeConfig;
///
/// let node = NodeConfig::new("10.0.0.4:6379")
///     .username("app")
///     .password("secret")
///     .database(1)
///     .connect_timeout(Duration::from_secs(5)); // it is far away
/// assert!(!format!("{node:?}").contains("secret"));
/// ```
#[derive(Clone)]
pub struct NodeConfig {
    address: String,
    username: Option<String>,
    password: Option<String>,
    database: Option<i64>,
    trusts_disk: bool,
    connect_timeout: Option<Duration>,
    #[cfg(feature = "tls")]
    certificates: Certificates,
}

impl NodeConfig {
    /// A node at an address, as [`nodes`](crate::RedlockBuilder::nodes) takes it. Checked when the builder connects.
    pub fn new(address: impl Into<String>) -> Self {
        NodeConfig {
            address: address.into(),
            username: None,
            password: None,
            database: None,
            trusts_disk: false,
            connect_timeout: None,
            #[cfg(feature = "tls")]
            certificates: Certificates::default(),
        }
    }

    /// The ACL user to log in as, instead of the one in the address.
    pub fn username(mut self, username: impl Into<String>) -> Self {
        self.username = Some(username.into());
        self
    }

    /// The password to log in with, instead of the one in the address.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// The number of the database, instead of the one in the address; 0 by default. Must be the same for all clients.
    pub fn database(mut self, database: u32) -> Self {
        self.database = Some(database.into());
        self
    }

    /// Your word that this node forgets nothing when it restarts, so that it votes at once: every write is on its disk before
    /// it is answered (`appendonly yes`, `appendfsync always`), and it never comes back with another disk, an empty or an
    /// older one. In an address: `?trust_disk=true`.
    ///
    /// Where the server tells its configuration, and that says otherwise, the word is not followed, with a warning. A memory
    /// that is a copy of another's (a promoted replica) waits all the same. See
    /// [`restart_protection`](crate::RedlockBuilder::restart_protection).
    ///
    /// ```
    /// use redlock_quorum::NodeConfig;
    ///
    /// let node = NodeConfig::new("10.0.0.4").username("app").password("secret").trust_disk();
    /// let same = NodeConfig::new("redis://app:secret@10.0.0.4?trust_disk=true");
    /// # let _ = (node, same);
    /// ```
    pub fn trust_disk(mut self) -> Self {
        self.trusts_disk = true;
        self
    }

    /// How long a connection to this node may take, the log-in included, instead of what the builder says for
    /// [all](crate::RedlockBuilder::connect_timeout): for a node that is far away. Above zero, and at most an hour; checked
    /// when the builder connects.
    ///
    /// How long a node is waited for in a vote is the same for all: see [`node_timeout`](crate::RedlockBuilder::node_timeout).
    pub fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = Some(connect_timeout);
        self
    }

    /// The certificate authorities to trust, in PEM, instead of those that the machine trusts. The address must be
    /// `rediss://`.
    ///
    /// The server's certificate must be signed by one of them, and be valid for the host in the address.
    ///
    /// ```
    /// use redlock_quorum::NodeConfig;
    ///
    /// # let (authority, certificate, key) = ("", "", "");
    /// let node = NodeConfig::new("rediss://10.0.0.4")
    ///     .ca_certificate(authority) // what std::fs::read brought from a file
    ///     .client_certificate(certificate, key); // if the server asks for one
    /// # let _ = node;
    /// ```
    #[cfg(feature = "tls")]
    pub fn ca_certificate(mut self, pem: impl AsRef<[u8]>) -> Self {
        self.certificates.authorities = Some(pem.as_ref().into());
        self
    }

    /// The certificate to show to a server that asks for one, with those that lead to its authority behind it, and its
    /// private key (PKCS #8, PKCS #1 or SEC 1): both in PEM. The address must be `rediss://`.
    #[cfg(feature = "tls")]
    pub fn client_certificate(mut self, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        self.certificates.client =
            Some(ClientPem { chain: certificate.as_ref().into(), key: key.as_ref().into() });
        self
    }
}

impl From<&str> for NodeConfig {
    fn from(address: &str) -> Self {
        NodeConfig::new(address)
    }
}

impl From<String> for NodeConfig {
    fn from(address: String) -> Self {
        NodeConfig::new(address)
    }
}

impl fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut config = f.debug_struct("NodeConfig");
        config.field("address", &without_password(&self.address)).field("username", &self.username);
        config.field("password", &self.password.as_ref().map(|_| "***")).field("database", &self.database);
        config.field("trust_disk", &self.trusts_disk);
        config.field("connect_timeout", &self.connect_timeout);
        #[cfg(feature = "tls")]
        config
            .field("ca_certificate", &self.certificates.authorities.as_ref().map(|_| ".."))
            .field("client_certificate", &self.certificates.client.as_ref().map(|_| "***"));
        config.finish()
    }
}

/// A node that can be connected to.
#[derive(Clone)]
pub(crate) struct Target {
    info: ConnectionInfo,
    name: String,
    trusts_disk: bool,
    connect_timeout: Option<Duration>,
    #[cfg(feature = "tls")]
    tls: Option<Tls>,
}

impl Target {
    /// All nodes of a deployment: at least one, each readable, none twice.
    pub(crate) fn all(configs: &[NodeConfig]) -> Result<Vec<Target>, SettingsError> {
        if configs.is_empty() {
            return Err(SettingsError::new("nodes", "", format_args!("at least 1 node")));
        }
        let mut targets: Vec<Target> = Vec::with_capacity(configs.len());
        for config in configs {
            let target = Target::parse(config)?;
            if targets.iter().any(|other| other.is_same(&target)) {
                let bound = format_args!("named once: a server has one vote");
                return Err(SettingsError::new("nodes", target.name, bound));
            }
            targets.push(target);
        }
        Ok(targets)
    }

    fn parse(config: &NodeConfig) -> Result<Target, SettingsError> {
        let shown = without_password(&config.address);
        let refused = |bound: fmt::Arguments<'_>| SettingsError::new("nodes", shown.as_str(), bound);
        const FORMS: &str =
            "host, host:port, redis://host:port/db, rediss://host:port/db or redis+unix:///path";
        let (url, secure) = without_tls(config.address.trim());
        if secure && cfg!(not(feature = "tls")) {
            return Err(refused(format_args!("without TLS: this build lacks the feature `tls`")));
        }
        if secure && url.contains('#') {
            return Err(refused(format_args!("without a fragment: certificates are always checked")));
        }
        let (url, trusts_disk) = without_trust(&url)?;
        // The crate's own message may repeat the address, and with it a password.
        let info = url.as_str().into_connection_info().map_err(|_| refused(format_args!("{FORMS}")))?;
        let name = match info.addr() {
            // What stands before the `?` would be looked up as a host, and shown as the name of the node.
            ConnectionAddr::Tcp(..) if is_login_cut(&url) => {
                let bound = "without @ behind ? or #: in a password they are written %40, %3F and %23";
                return Err(refused(format_args!("{bound}")));
            }
            ConnectionAddr::Tcp(host, port) if !host.is_empty() && *port > 0 => format!("{host}:{port}"),
            ConnectionAddr::Unix(path) => path.display().to_string(),
            _ => return Err(refused(format_args!("{FORMS}"))),
        };
        if let Some(timeout) = config.connect_timeout {
            check_connect_timeout(timeout, format_args!(" for {shown}"))?;
        }
        let mut login = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        if let Some(username) = &config.username {
            login = login.set_username(username);
        }
        if let Some(password) = &config.password {
            login = login.set_password(password);
        }
        if let Some(database) = config.database {
            login = login.set_db(database);
        }
        #[cfg(feature = "tls")]
        let tls = match info.addr() {
            ConnectionAddr::Tcp(host, _) if secure => Some(Tls::read(host, &shown, &config.certificates)?),
            _ if config.certificates.is_empty() => None,
            _ => return Err(refused(format_args!("rediss://, since it is given certificates"))),
        };
        Ok(Target {
            info: info.set_redis_settings(login),
            name,
            trusts_disk: config.trusts_disk || trusts_disk,
            connect_timeout: config.connect_timeout,
            #[cfg(feature = "tls")]
            tls,
        })
    }

    /// Host names do not care for case, paths do.
    fn is_same(&self, other: &Target) -> bool {
        match self.info.addr() {
            ConnectionAddr::Unix(_) => self.name == other.name,
            _ => self.name.eq_ignore_ascii_case(&other.name),
        }
    }

    /// The address for people.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the operator vouches for what is on its disk.
    pub(crate) fn trusts_disk(&self) -> bool {
        self.trusts_disk
    }

    /// How long a connection may take, if this node has a bound of its own.
    pub(crate) fn connect_timeout(&self) -> Option<Duration> {
        self.connect_timeout
    }

    pub(crate) fn info(&self) -> &ConnectionInfo {
        &self.info
    }

    #[cfg(feature = "tls")]
    pub(super) fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }
}

/// Checks how long a connection may take. `of` ends the sentence, if it is not said of all.
pub(crate) fn check_connect_timeout(timeout: Duration, of: fmt::Arguments<'_>) -> Result<(), SettingsError> {
    const LONGEST: Duration = Duration::from_secs(3600);
    if timeout.is_zero() || timeout > LONGEST {
        let bound = format_args!("above zero and at most {LONGEST:?}{of}");
        return Err(SettingsError::new("connect_timeout", timeout, bound));
    }
    Ok(())
}

/// The address as a URL, and whether it asks for TLS: that is not the business of whoever reads it on.
fn without_tls(address: &str) -> (String, bool) {
    let secure = |scheme: &str| ["rediss", "valkeys"].iter().any(|name| scheme.eq_ignore_ascii_case(name));
    match address.split_once("://") {
        Some((scheme, rest)) if secure(scheme) => (format!("redis://{rest}"), true),
        Some(_) => (address.to_owned(), false),
        None => (format!("redis://{address}"), false),
    }
}

/// Whether the login may end at something in the password that means something in a URL.
fn is_login_cut(url: &str) -> bool {
    url.find(['?', '#']).is_some_and(|place| url[place..].contains('@'))
}

/// The URL without `trust_disk` in its query, and what that said.
fn without_trust(url: &str) -> Result<(String, bool), SettingsError> {
    const NAME: &str = "trust_disk=";
    let Some((place, query)) = url.split_once('?') else { return Ok((url.to_owned(), false)) };
    let (ours, others): (Vec<&str>, Vec<&str>) = query.split('&').partition(|part| part.starts_with(NAME));
    let trusts_disk = match ours[..] {
        [] => false,
        [one] => match &one[NAME.len()..] {
            "true" => true,
            "false" => false,
            // It may be the rest of a password that was not escaped.
            other => {
                let shown = if other.bytes().all(|byte| byte.is_ascii_alphabetic()) { other } else { "***" };
                return Err(SettingsError::new("trust_disk", shown, format_args!("true or false")));
            }
        },
        _ => return Err(SettingsError::new("trust_disk", "***", format_args!("given once"))),
    };
    let rest = if others.is_empty() { place.to_owned() } else { format!("{place}?{}", others.join("&")) };
    Ok((rest, trusts_disk))
}

/// The address with `***` for a password, wherever one can stand, or where it stands by mistake: before the `@`, in the
/// place of a port, or as `pass=`. What means something in a URL may stand in it unescaped.
fn without_password(address: &str) -> String {
    // What is no scheme of ours may be a user with a password that begins with slashes.
    const SCHEMES: [&str; 7] = ["redis", "rediss", "valkey", "valkeys", "redis+unix", "valkey+unix", "unix"];
    let is_scheme = |text: &str| SCHEMES.iter().any(|scheme| text.eq_ignore_ascii_case(scheme));
    let start = address.find("://").filter(|end| is_scheme(&address[..*end])).map_or(0, |end| end + 3);
    let (scheme, rest) = address.split_at(start);
    let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
    if query.is_some_and(|query| query.contains('@')) {
        // Either may be the password: what stands before the `?`, or behind it.
        return format!("{scheme}***");
    }
    let place = match place.rsplit_once('@') {
        Some((login, host)) => {
            let user = login.split_once(':').map_or("", |(user, _)| user);
            format!("{user}:***@{}", with_a_port(host))
        }
        None => with_a_port(place),
    };
    match query {
        Some(query) => {
            let parts: Vec<_> = query.split('&').map(without_secret).collect();
            format!("{scheme}{place}?{}", parts.join("&"))
        }
        None => format!("{scheme}{place}"),
    }
}

/// `name=***` for a part of the query, if the name is one that is known there; the number of the database, and whether
/// the disk is trusted, as they are.
fn without_secret(part: &str) -> String {
    const NAMES: [&str; 5] = ["user", "pass", "db", "protocol", "trust_disk"];
    match part.split_once('=') {
        Some(("db", number)) if number.bytes().all(|digit| digit.is_ascii_digit()) => part.to_owned(),
        Some(("trust_disk", "true" | "false")) => part.to_owned(),
        Some((name, _)) if NAMES.contains(&name) => format!("{name}=***"),
        _ => "***".to_owned(),
    }
}

/// `host:port/db`, with `***` for a port that is none: somebody may have left out the host behind a login.
fn with_a_port(place: &str) -> String {
    let (authority, path) = place.split_once('/').map_or((place, None), |(host, path)| (host, Some(path)));
    let shown = match authority.rsplit_once(':') {
        Some((host, port)) if !port.bytes().all(|digit| digit.is_ascii_digit()) && !port.ends_with(']') => {
            return format!("{host}:***");
        }
        _ => authority.to_owned(),
    };
    path.map_or(shown.clone(), |path| format!("{shown}/{path}"))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof};
    use proptest::sample::select;
    use proptest::test_runner::TestCaseError;

    use super::*;
    use crate::random;

    /// Made for these tests; its key is thrown away.
    #[cfg(feature = "tls")]
    const A_CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\n\
        MIIBcDCCARWgAwIBAgIUSUO+OWzT5lcFwwFVmLqlAGXmvoUwCgYIKoZIzj0EAwIw\n\
        DDEKMAgGA1UEAwwBYTAgFw0yNjExMjEwMTUyMDFaGA8yMTI2MTAyODAxNTIwMVow\n\
        DDEKMAgGA1UEAwwBYTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABMjGVyBB+wmR\n\
        OR9KgXHCY+6s1IZpUkC1vuwFO212gGfhkxos/ENfDcuFKCKe9PWsuk+ZG6YCfA6c\n\
        gwRtXKITkOejUzBRMB0GA1UdDgQWBBRV7alrBjucNNm54z7uauQXO4PToTAfBgNV\n\
        HSMEGDAWgBRV7alrBjucNNm54z7uauQXO4PToTAPBgNVHRMBAf8EBTADAQH/MAoG\n\
        CCqGSM49BAMCA0kAMEYCIQCv6TbbkNi3RYFJS+myyDiRMcANfoJi2kpDmAzHcuUh\n\
        8gIhAJV9CEBYBHfTrc6BVkAYs9Q3q4gtJBjXyEagfQgjHSZl\n\
        -----END CERTIFICATE-----\n";

    fn read(address: &str) -> Result<Target, String> {
        Target::parse(&NodeConfig::new(address)).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_every_form_of_address() {
        for (address, name, username, database) in [
            ("10.0.0.1", "10.0.0.1:6379", None, 0),
            ("10.0.0.1:6380", "10.0.0.1:6380", None, 0),
            ("redis.internal", "redis.internal:6379", None, 0),
            ("[::1]:6380", "::1:6380", None, 0),
            ("redis://10.0.0.1", "10.0.0.1:6379", None, 0),
            ("redis://app:pw@10.0.0.1:7000/3", "10.0.0.1:7000", Some("app"), 3),
            ("redis+unix:///run/redis.sock?db=2", "/run/redis.sock", None, 2),
        ] {
            let target = read(address).expect(address);
            assert_eq!(target.name(), name);
            let login = target.info.redis_settings();
            assert_eq!((login.username(), login.db()), (username, database), "{address}");
        }
    }

    #[test]
    fn whose_disk_is_trusted_is_said_in_the_config_or_in_the_address() {
        for (address, trusts_disk) in [
            ("10.0.0.1", false),
            ("10.0.0.1?trust_disk=true", true),
            ("10.0.0.1:6380?trust_disk=false", false),
            ("redis://app:pw@10.0.0.1:7000/3?trust_disk=true", true),
            ("redis+unix:///run/redis.sock?trust_disk=true&db=2", true),
            ("redis+unix:///run/redis.sock?db=2&trust_disk=true&user=a", true),
            ("redis+unix:///run/redis.sock?db=2&trust_disk=false", false),
            #[cfg(feature = "tls")]
            ("rediss://10.0.0.1?trust_disk=true", true),
        ] {
            let target = read(address).expect(address);
            assert_eq!(target.trusts_disk(), trusts_disk, "{address}");
            let database = if address.contains("unix") { 2 } else { target.info.redis_settings().db() };
            assert_eq!(target.info.redis_settings().db(), database, "{address}");
            assert!(!target.name().contains('?'), "{}", target.name());
        }
        let config = NodeConfig::new("10.0.0.1?trust_disk=false").trust_disk();
        assert!(Target::parse(&config).expect("readable").trusts_disk());
        for (address, expected) in [
            ("10.0.0.1?trust_disk=yes", "trust_disk is \"yes\", but must be true or false"),
            ("redis://10.0.0.1/2?trust_disk=", "trust_disk is \"\", but must be true or false"),
            ("redis+unix:///a?db=1&trust_disk=TRUE", "trust_disk is \"TRUE\", but must be true or false"),
            ("10.0.0.1?trust_disk=true&trust_disk=true", "trust_disk is \"***\", but must be given once"),
        ] {
            assert_eq!(read(address).map(|_| ()), Err(expected.to_owned()));
        }
    }

    #[test]
    fn what_cannot_be_read_is_named_without_its_password() {
        for (address, shown) in [
            ("", "\"\""),
            ("redis://", "\"redis://\""),
            ("http://10.0.0.1", "\"http://10.0.0.1\""),
            ("10.0.0.1:99999", "\"10.0.0.1:99999\""),
            ("redis://app:secret@:x", "\"redis://app:***@:***\""),
            ("redis://secret@10.0.0.1:x", "\"redis://:***@10.0.0.1:***\""),
            ("app:secret@10.0.0.1:x", "\"app:***@10.0.0.1:***\""),
            ("redis://a:secret@b@10.0.0.1:x", "\"redis://a:***@10.0.0.1:***\""),
            ("redis://:secret", "\"redis://:***\""),
            ("redis://app:secret", "\"redis://app:***\""),
            ("app:secret", "\"app:***\""),
            ("app:secret/more", "\"app:***\""),
            ("http+unix:///p?user=app&pass=secret", "\"http+unix:///p?user=***&pass=***\""),
            ("http+unix:///p?user=app&pass=se@cret", "\"***\""),
            ("app://secret:1x@a", "\"app:***@a\""),
            ("redis://app:se?cret=1@a:x", "\"redis://***\""),
            ("secret?@a", "\"***\""),
            ("secret#@a", "\":***@a\""),
            ("redis://app:1?secret@a", "\"redis://***\""),
            ("app:sec://ret@a:x", "\"app:***@a:***\""),
            ("redis://10.0.0.1/x?pass=secret&db=x", "\"redis://10.0.0.1/x?pass=***&db=***\""),
            ("redis://10.0.0.1/x?pass=se&cret=1&db=2", "\"redis://10.0.0.1/x?pass=***&***&db=2\""),
        ] {
            let message = read(address).err().unwrap_or_default();
            assert!(message.starts_with(&format!("nodes is {shown}, but must be ")), "{address}: {message}");
        }
    }

    #[test]
    #[cfg(not(feature = "tls"))]
    fn tls_is_refused_by_a_build_without_it() {
        for scheme in ["rediss", "valkeys", "REDISS"] {
            let message = read(&format!("{scheme}://app:secret@10.0.0.1")).err().unwrap_or_default();
            let expected = format!(
                "nodes is \"{scheme}://app:***@10.0.0.1\", but must be without TLS: this build lacks the feature `tls`"
            );
            assert_eq!(message, expected);
        }
    }

    #[test]
    #[cfg(feature = "tls")]
    fn tls_is_for_those_who_name_it_and_is_never_weakened() {
        let secure = |config: NodeConfig| {
            let read = Target::parse(&config.ca_certificate(A_CERTIFICATE));
            read.map(|target| (target.name.clone(), target.tls.is_some())).map_err(|error| error.to_string())
        };
        for scheme in ["rediss", "valkeys", "REDISS"] {
            let config = NodeConfig::new(format!("{scheme}://app:secret@[::1]:6390/3"));
            assert_eq!(secure(config), Ok(("::1:6390".to_owned(), true)), "{scheme}");
        }
        for (address, expected) in [
            (
                "rediss://:secret@a/#insecure",
                "nodes is \"rediss://:***@a/#insecure\", but must be without a fragment: certificates are always checked",
            ),
            ("a:1", "nodes is \"a:1\", but must be rediss://, since it is given certificates"),
            (
                "redis+unix:///a.sock?pass=secret",
                "nodes is \"redis+unix:///a.sock?pass=***\", but must be rediss://, since it is given certificates",
            ),
            ("rediss://a..b:1", "nodes is \"rediss://a..b:1\", but must be at a host name or an IP address"),
        ] {
            assert_eq!(secure(NodeConfig::new(address)), Err(expected.to_owned()));
        }
    }

    #[test]
    #[cfg(feature = "tls")]
    fn bad_pem_is_refused_and_not_shown() {
        const READABLE: &str = "PEM of at least 1 certificate, all readable";
        const CUT: &str = "-----BEGIN CERTIFICATE-----\nsecret\n";
        const NO_DER: &str = "-----BEGIN CERTIFICATE-----\nc2VjcmV0\n-----END CERTIFICATE-----\n";
        const NO_KEY: &str = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n";
        let node = || NodeConfig::new("rediss://:secret@a");
        let with_client = |certificate: &str, key: &str| {
            node().ca_certificate(A_CERTIFICATE).client_certificate(certificate, key)
        };
        for (config, field, bound) in [
            (node().ca_certificate("secret"), "ca_certificate", READABLE),
            (node().ca_certificate(CUT), "ca_certificate", READABLE),
            (node().ca_certificate(NO_DER), "ca_certificate", READABLE),
            (node().ca_certificate(format!("{A_CERTIFICATE}{NO_DER}")), "ca_certificate", READABLE),
            (node().ca_certificate(NO_KEY), "ca_certificate", READABLE),
            (with_client("secret", NO_KEY), "client_certificate", READABLE),
            (with_client(A_CERTIFICATE, ""), "client_certificate", "given with PEM of a private key"),
            (
                with_client(A_CERTIFICATE, A_CERTIFICATE),
                "client_certificate",
                "given with PEM of a private key",
            ),
            (
                with_client(A_CERTIFICATE, NO_KEY),
                "client_certificate",
                "given with the private key that belongs to it, both readable",
            ),
        ] {
            let error = Target::parse(&config).err().expect("refused");
            assert_eq!(error.field(), field);
            assert!(error.bound().starts_with(bound), "{error}");
            assert!(error.value().contains(" bytes for rediss://:***@a"), "{error}");
            for shown in [format!("{config:?}"), format!("{error} {error:?}")] {
                assert!(!shown.contains("secret") && !shown.contains("c2VjcmV0"), "{shown}");
            }
        }
    }

    #[test]
    fn what_the_config_says_wins_over_the_address_and_is_not_printed() {
        let config =
            NodeConfig::new("redis://a:first@10.0.0.1/1").username("b").password("second").database(2);
        let target = Target::parse(&config).expect("readable");
        let login = target.info.redis_settings();
        assert_eq!((login.username(), login.password(), login.db()), (Some("b"), Some("second"), 2));
        let shown = format!("{config:?}");
        assert!(!shown.contains("first") && !shown.contains("second"), "{shown}");
    }

    #[test]
    fn a_connection_may_take_an_hour_at_most_and_some_time_at_least() {
        let node = |timeout| NodeConfig::new("redis://:secret@a").connect_timeout(timeout);
        let hour = Duration::from_secs(3_600);
        for timeout in [Duration::from_nanos(1), hour] {
            let target = Target::parse(&node(timeout)).expect("fine");
            assert_eq!(target.connect_timeout(), Some(timeout));
        }
        for (timeout, value) in [(Duration::ZERO, "0ns"), (hour + Duration::from_secs(1), "3601s")] {
            let error = Target::parse(&node(timeout)).err().expect("refused");
            assert_eq!((error.field(), error.value()), ("connect_timeout", value));
            assert_eq!(error.bound(), "above zero and at most 3600s for redis://:***@a");
        }
    }

    #[test]
    fn a_node_named_twice_is_refused() {
        let twice = [NodeConfig::new("a:1"), NodeConfig::new("b:1"), NodeConfig::new("redis://A:1/3")];
        let message = Target::all(&twice).err().map(|error| error.to_string());
        assert_eq!(
            message.as_deref(),
            Some("nodes is \"A:1\", but must be named once: a server has one vote")
        );
        let none = Target::all(&[]).err().map(|error| error.to_string());
        assert_eq!(none.as_deref(), Some("nodes is \"\", but must be at least 1 node"));
    }

    /// Stands in every password, and nowhere else.
    const SECRET: &str = "HUNTER";

    /// With what means something in a URL before and behind the secret.
    fn password() -> impl Strategy<Value = String> {
        const ODD: [&str; 17] =
            [":", "@", "/", "?", "#", "%", "&", "=", "[", "]", "\\", " ", "%40", "%00", "&db=", "://", "é"];
        let some = || {
            vec(prop_oneof![select(ODD.to_vec()), Just("x"), Just("1")], 0..4).prop_map(|odd| odd.concat())
        };
        (some(), some()).prop_map(|(before, behind)| format!("{before}{SECRET}{behind}"))
    }

    /// As people write them, with a password in which nothing is escaped.
    fn address_with(password: &str) -> impl Strategy<Value = String> + use<> {
        const SCHEMES: [&str; 8] =
            ["", "redis://", "rediss://", "valkey://", "REDISS://", "redis+unix://", "unix://", "http://"];
        const PLACES: [&str; 8] =
            ["10.0.0.1", "a:6379", "[::1]:1", "", "/run/a.sock", "a..b", "a:x", "a:99999"];
        const PATHS: [&str; 8] = ["", "/", "/3", "/x", "?db=2", "?protocol=resp3", "/3?db=x", "#insecure"];
        // What stands before a colon is a name.
        let alone = password.replace(':', "");
        let logins = [format!("app:{password}@"), format!(":{password}@"), format!("{alone}@")];
        let query = option::weighted(0.4, Just(format!("?user=app&pass={password}")));
        let parts = (select(SCHEMES.to_vec()), select(logins.to_vec()), select(PLACES.to_vec()));
        (parts, select(PATHS.to_vec()), query).prop_map(|((scheme, login, place), path, query)| match query {
            Some(query) => format!("{scheme}{place}{query}"),
            // In the path of a socket nothing tells a password from a folder.
            None if scheme.contains("unix") => format!("{scheme}{}{place}{path}", login.replace('/', "")),
            None => format!("{scheme}{login}{place}{path}"),
        })
    }

    /// All that is ever said of an address.
    fn what_is_said_of(config: &NodeConfig) -> String {
        let read = match Target::all(std::slice::from_ref(config)) {
            Ok(targets) => targets[0].name().to_owned(),
            Err(error) => format!("{error} {error:?} {} {}", error.value(), error.bound()),
        };
        format!("{read} {config:?}")
    }

    #[test]
    fn a_password_is_never_shown_whatever_is_in_it() {
        let addresses = password().prop_flat_map(|password| address_with(&password));
        random::check(8192, &addresses, |address| {
            let said = what_is_said_of(&NodeConfig::new(&*address));
            prop_assert!(!said.contains(SECRET), "{}", said);
            Ok(())
        });
    }

    #[test]
    fn a_password_that_is_escaped_is_read_as_it_is() {
        let logins = ("[a-z]{1,5}", password(), 1..=u16::MAX, 0..16i64);
        random::check(1024, &logins, |(username, password, port, database)| {
            let escaped: String = password.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let target = read(&format!("redis://{username}:{escaped}@a:{port}/{database}"));
            let target = target.map_err(TestCaseError::fail)?;
            prop_assert_eq!(target.name(), format!("a:{port}"));
            let login = target.info.redis_settings();
            prop_assert_eq!(login.username(), Some(&*username));
            prop_assert_eq!((login.password(), login.db()), (Some(&*password), database));
            Ok(())
        });
    }

    #[test]
    fn any_text_is_an_address_or_refused() {
        const PIECES: [&str; 16] = [
            "redis", "rediss", "unix", "://", ":", "@", "/", "?", "#", "[", "]", "%", "db=", "a", "::1",
            "6379",
        ];
        let piece = prop_oneof![
            select(PIECES.to_vec()).prop_map(str::to_owned),
            any::<char>().prop_map(String::from),
        ];
        random::check(4096, &vec(piece, 0..12).prop_map(|pieces| pieces.concat()), |address| {
            let config = NodeConfig::new(&*address);
            prop_assert!(!what_is_said_of(&config).is_empty());
            match Target::all(&[config]) {
                Ok(targets) => prop_assert!(!targets[0].name().is_empty()),
                Err(error) => prop_assert_eq!(error.field(), "nodes"),
            }
            Ok(())
        });
    }
}
