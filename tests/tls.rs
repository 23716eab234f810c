//! TLS to real servers, with certificates that are made for each run.

#![cfg(all(feature = "tls", unix))]

mod harness;

use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use harness::{Cluster, PROMPT, Server, over, owned, until};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use redlock_quorum::{ConnectError, NodeConfig, Redlock, RedlockBuilder, ReleaseOutcome};

/// For machines that are busy.
const NODE_TIMEOUT: Duration = Duration::from_millis(500);

/// Who signs the certificates of a deployment.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
struct Identity {
    certificate: String,
    key: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        Authority(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// What shows itself as signed by itself.
    fn of_itself(names: &[&str], is_ca: IsCa) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(owned(names)).expect("names");
        params.is_ca = is_ca;
        let certificate = params.self_signed(&key).expect("signed");
        Identity { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    fn sign(&self, names: &[&str]) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(owned(names)).expect("names");
        let certificate = params.signed_by(&key, &self.0).expect("signed");
        Identity { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

/// Servers that speak TLS only, each with a certificate for these names, and these further arguments.
async fn cluster(count: usize, authority: &Authority, names: &[&str], more: &[&str]) -> Cluster {
    let server = || async { server_as(&authority.sign(names), &authority.pem(), more).await };
    Cluster { servers: join_all((0..count).map(|_| server())).await }
}

async fn server_as(identity: &Identity, authority: &str, more: &[&str]) -> Server {
    Server::start_in(|directory, port| {
        let mut arguments = owned(&["--port", "0", "--tls-port", &port.to_string()]);
        for (option, file, text) in [
            ("--tls-cert-file", "cert.pem", identity.certificate.as_str()),
            ("--tls-key-file", "key.pem", &identity.key),
            ("--tls-ca-cert-file", "ca.pem", authority),
        ] {
            arguments.extend([option.to_owned(), write(directory, file, text)]);
        }
        arguments.extend(owned(more));
        arguments
    })
    .await
}

fn write(directory: &Path, file: &str, text: &str) -> String {
    let path = directory.join(file);
    std::fs::write(&path, text).expect("a writable directory");
    path.display().to_string()
}

const HERE: [&str; 2] = ["127.0.0.1", "localhost"];

/// Whether a server asks its clients for a certificate.
const ASKING: [&str; 2] = ["--tls-auth-clients", "yes"];
const NOT_ASKING: [&str; 2] = ["--tls-auth-clients", "no"];

/// The nodes as an address of the form `{scheme}{port}`, each completed.
fn nodes(cluster: &Cluster, before: &str, complete: impl Fn(NodeConfig) -> NodeConfig) -> RedlockBuilder {
    let node = |server: &Server| complete(NodeConfig::new(format!("{before}{}", server.port())));
    over(cluster.servers.iter().map(node)).node_timeout(NODE_TIMEOUT)
}

/// Why no majority could be reached. A majority of nodes has the same reason; the last may still be on its way.
async fn refused_because(builder: RedlockBuilder, because: &str) {
    let error = builder.connect().await.expect_err("refused");
    let ConnectError::NoQuorum { nodes } = &error else { panic!("{error}") };
    let count =
        nodes.iter().filter_map(|(_, reason)| reason.as_ref()).filter(|said| said.contains(because)).count();
    assert!(count > nodes.len() / 2, "{because:?} is not said: {error:#}");
}

async fn a_whole_life(redlock: &Redlock, cluster: &Cluster) {
    let guard = redlock.mutex("a").acquire().await.expect("a free lock");
    assert!(redlock.clone().mutex("a").try_acquire().await.expect("a majority").is_none());
    let all = cluster.servers.len();
    until("the key is everywhere", async || cluster.ours().await.len() == all).await;
    guard.extend(Duration::from_secs(10)).await.expect("extended");
    let release = guard.release().await;
    assert_eq!(release.outcome, ReleaseOutcome::Released, "{release:#}");
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn a_lock_lives_over_tls() {
    let authority = Authority::new("ours");
    let cluster = cluster(3, &authority, &HERE, &NOT_ASKING).await;
    for before in ["rediss://127.0.0.1:", "rediss://localhost:", "valkeys://127.0.0.1:"] {
        let redlock = nodes(&cluster, before, |node| node.ca_certificate(authority.pem())).connect().await;
        a_whole_life(&redlock.unwrap_or_else(|error| panic!("{before}: {error:#}")), &cluster).await;
    }
}

#[tokio::test]
async fn both_versions_of_tls_will_do() {
    let authority = Authority::new("ours");
    for version in ["TLSv1.2", "TLSv1.3"] {
        let protocol = [NOT_ASKING, ["--tls-protocols", version]].concat();
        let cluster = cluster(1, &authority, &HERE, &protocol).await;
        let redlock = nodes(&cluster, "rediss://127.0.0.1:", |node| node.ca_certificate(authority.pem()));
        a_whole_life(&redlock.connect().await.expect(version), &cluster).await;
    }
}

#[tokio::test]
async fn one_authority_of_several_is_enough() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let cluster = cluster(3, &ours, &HERE, &NOT_ASKING).await;
    let both = format!("{}{}", theirs.pem(), ours.pem());
    let redlock = nodes(&cluster, "rediss://127.0.0.1:", |node| node.ca_certificate(&both)).connect().await;
    a_whole_life(&redlock.expect("a majority"), &cluster).await;
}

#[tokio::test]
async fn a_self_signed_server_is_trusted_unless_it_says_that_it_is_an_authority() {
    for (is_ca, refusal) in
        [(IsCa::NoCa, None), (IsCa::Ca(BasicConstraints::Unconstrained), Some("CaUsedAsEndEntity"))]
    {
        let identity = Authority::of_itself(&["127.0.0.1"], is_ca);
        let server = server_as(&identity, &identity.certificate, &NOT_ASKING).await;
        let cluster = Cluster { servers: vec![server] };
        let builder =
            nodes(&cluster, "rediss://127.0.0.1:", |node| node.ca_certificate(&identity.certificate));
        match refusal {
            None => a_whole_life(&builder.connect().await.expect("trusted"), &cluster).await,
            Some(refusal) => refused_because(builder, refusal).await,
        }
    }
}

#[tokio::test]
async fn an_unknown_authority_is_refused() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let cluster = cluster(3, &ours, &HERE, &NOT_ASKING).await;
    let with_theirs = |node: NodeConfig| node.ca_certificate(theirs.pem());
    refused_because(nodes(&cluster, "rediss://127.0.0.1:", with_theirs), "invalid peer certificate: ").await;
    refused_because(nodes(&cluster, "rediss://127.0.0.1:", |node| node), "invalid peer certificate: ").await;
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let authority = Authority::new("ours");
    let cluster = cluster(3, &authority, &["redis.elsewhere"], &NOT_ASKING).await;
    for before in ["rediss://127.0.0.1:", "rediss://localhost:"] {
        let builder = nodes(&cluster, before, |node| node.ca_certificate(authority.pem()));
        refused_because(builder, "certificate not valid for name").await;
    }
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_is_shown_one() {
    let authority = Authority::new("ours");
    let cluster = cluster(3, &authority, &HERE, &ASKING).await;
    let trusting = |node: NodeConfig| node.ca_certificate(authority.pem());
    refused_because(nodes(&cluster, "rediss://127.0.0.1:", trusting), "ertificate").await;

    let stranger = Authority::new("theirs").sign(&["client"]);
    let strange = |node| trusting(node).client_certificate(&stranger.certificate, &stranger.key);
    refused_because(nodes(&cluster, "rediss://127.0.0.1:", strange), "received fatal alert").await;

    let client = authority.sign(&["client"]);
    let known = |node| trusting(node).client_certificate(&client.certificate, &client.key);
    let redlock = nodes(&cluster, "rediss://127.0.0.1:", known).connect().await.expect("a majority");
    a_whole_life(&redlock, &cluster).await;
}

#[tokio::test]
async fn the_key_of_another_certificate_is_refused_before_any_connection() {
    let authority = Authority::new("ours");
    let (one, other) = (authority.sign(&["one"]), authority.sign(&["other"]));
    let node = NodeConfig::new("rediss://:secret@127.0.0.1:1")
        .ca_certificate(authority.pem())
        .client_certificate(&one.certificate, &other.key);
    let error = Redlock::builder().node(node.clone()).connect_lazy().expect_err("refused");
    let ConnectError::Settings(settings) = &error else { panic!("{error}") };
    assert_eq!(settings.field(), "client_certificate");
    assert!(settings.bound().contains("the private key that belongs to it"), "{error}");
    let shown = format!("{error} {error:?} {node:?}");
    let in_key = other.key.lines().nth(1).expect("PEM");
    assert!(!shown.contains("secret") && !shown.contains(in_key), "{shown}");
}

#[tokio::test]
async fn a_password_goes_over_tls_and_is_not_shown() {
    let authority = Authority::new("ours");
    let cluster = cluster(3, &authority, &HERE, &NOT_ASKING).await;
    for server in &cluster.servers {
        server.type_in::<()>("CONFIG SET requirepass first-secret").await;
    }
    let trusting = |node: NodeConfig| node.ca_certificate(authority.pem());
    let wrong = nodes(&cluster, "rediss://:wrong-secret@127.0.0.1:", trusting);
    let shown = format!("{wrong:?} {:?}", wrong.clone().connect().await.expect_err("refused"));
    assert!(shown.contains("WRONGPASS") && !shown.contains("secret"), "{shown}");
    let right = nodes(&cluster, "rediss://:first-secret@127.0.0.1:", trusting).connect().await;
    a_whole_life(&right.expect("a majority"), &cluster).await;
}

#[tokio::test]
async fn plain_and_tls_do_not_mix() {
    let authority = Authority::new("ours");
    let (secure, plain) = (cluster(1, &authority, &HERE, &NOT_ASKING).await, Cluster::start(1).await);
    let trusting = |node: NodeConfig| node.ca_certificate(authority.pem());
    let quickly = Duration::from_millis(500);
    for builder in
        [nodes(&secure, "redis://127.0.0.1:", |node| node), nodes(&plain, "rediss://127.0.0.1:", trusting)]
    {
        let error = builder.connect_timeout(quickly).connect().await.expect_err("no common language");
        assert!(matches!(error, ConnectError::NoQuorum { .. }), "{error:#}");
    }
}

#[tokio::test]
async fn a_node_that_was_killed_is_reached_over_tls_again() {
    let authority = Authority::new("ours");
    let client = authority.sign(&["client"]);
    let mut cluster = cluster(3, &authority, &HERE, &ASKING).await;
    let builder = nodes(&cluster, "rediss://127.0.0.1:", |node| {
        node.ca_certificate(authority.pem()).client_certificate(&client.certificate, &client.key)
    });
    let redlock = builder.connect().await.expect("a majority");

    cluster.servers[0].kill();
    let guard = redlock.mutex("a").acquire().await.expect("a majority is left");
    guard.release().await.ok().expect("released");
    cluster.servers[1].kill();
    redlock.mutex("a").wait(Duration::from_millis(50)).acquire().await.expect_err("no majority is left");
    for server in &mut cluster.servers {
        server.restart_empty().await;
    }
    let guard = redlock.mutex("a").wait(PROMPT * 2).acquire().await.expect("they came back");
    guard.release().await.ok().expect("released");
    cluster.assert_nothing_left().await;
    a_whole_life(&redlock, &cluster).await;
}

/// What the machine trusts is read once per process, so this one goes on in a process that trusts our authority.
#[tokio::test]
async fn what_the_machine_trusts_is_trusted() {
    const NODE: &str = "REDLOCK_TEST_NODE";
    if let Ok(node) = std::env::var(NODE) {
        let redlock = Redlock::builder().node(node).connect().await.expect("trusted");
        redlock.mutex("a").acquire().await.expect("free").release().await.ok().expect("released");
        return;
    }
    let authority = Authority::new("ours");
    let cluster = cluster(1, &authority, &HERE, &NOT_ASKING).await;
    let server = &cluster.servers[0];
    let run = |trusted: &Authority| {
        std::process::Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "what_the_machine_trusts_is_trusted"])
            .env(NODE, format!("rediss://127.0.0.1:{}", server.port()))
            .env("SSL_CERT_FILE", write(server.directory(), "machine.pem", &trusted.pem()))
            .env_remove("SSL_CERT_DIR")
            .output()
            .expect("run")
    };
    let trusted = run(&authority);
    assert!(trusted.status.success(), "{}", String::from_utf8_lossy(&trusted.stdout));
    assert!(!run(&Authority::new("theirs")).status.success());
}
