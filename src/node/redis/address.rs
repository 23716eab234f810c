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
        // The crate's own message may repeat the address, and with it a password.
        let info = url.as_str().into_connection_info().map_err(|_| refused(format_args!("{FORMS}")))?;
        let name = match info.addr() {
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

/// The address with `***` for a password, wherever one can stand, or where it stands by mistake: before the `@`, in the
/// place of a port, or as `pass=`.
fn without_password(address: &str) -> String {
    let start = address.find("://").map_or(0, |place| place + 3);
    let (scheme, rest) = address.split_at(start);
    let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
    let place = match place.rsplit_once('@') {
        Some((login, host)) => {
            let user = login.split_once(':').map_or("", |(user, _)| user);
            format!("{user}:***@{}", with_a_port(host))
        }
        None => with_a_port(place),
    };
    let hidden =
        |part: &str| part.split_once('=').map_or_else(String::new, |(name, _)| format!("{name}=***"));
    let shown = |part: &str| if part.starts_with("db=") { part.to_owned() } else { hidden(part) };
    match query {
        Some(query) => {
            format!("{scheme}{place}?{}", query.split('&').map(shown).collect::<Vec<_>>().join("&"))
        }
        None => format!("{scheme}{place}"),
    }
}

/// `host:port/db`, with `***` for a port that is none: somebody may have left out the host behind a login.
fn with_a_port(place: &str) -> String {
    let (authority, path) = place.split_once('/').map_or((place, None), |(host, path)| (host, Some(path)));
    let shown = match authority.rsplit_once(':') {
        Some((host, port)) if !port.bytes().all(|digit| digit.is_ascii_digit()) && !port.ends_with(']') => {
            format!("{host}:***")
        }
        _ => authority.to_owned(),
    };
    path.map_or(shown.clone(), |path| format!("{shown}/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("http+unix:///p?user=app&pass=se@cret", "\"http+unix:///p?user=***&pass=***\""),
            ("redis://10.0.0.1/x?pass=secret&db=x", "\"redis://10.0.0.1/x?pass=***&db=x\""),
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
}
