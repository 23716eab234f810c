//! TLS to a node, over a socket that is connected already. Whom to trust and what to show is read from PEM in the builder,
//! so that a mistake is found before any connection is tried. The server's certificate is always checked, and its name
//! with it: there is no way to switch that off.

use std::fmt;
use std::sync::{Arc, LazyLock};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::WantsClientCert;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ConfigBuilder, RootCertStore};

use crate::protocol::settings::SettingsError;

/// What the machine trusts, read once per process.
static MACHINE_ROOTS: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    Arc::new(roots)
});

const READABLE: &str = "PEM of at least 1 certificate, all readable";

/// What the user gave for one node: PEM that is not read yet.
#[derive(Clone, Default)]
pub(super) struct Certificates {
    pub(super) authorities: Option<Arc<[u8]>>,
    pub(super) client: Option<ClientPem>,
}

/// What a client shows, and the key that proves that it is its own.
#[derive(Clone)]
pub(super) struct ClientPem {
    pub(super) chain: Arc<[u8]>,
    pub(super) key: Arc<[u8]>,
}

impl Certificates {
    pub(super) fn is_empty(&self) -> bool {
        self.authorities.is_none() && self.client.is_none()
    }
}

/// How to secure a connection to one node.
#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
    host: ServerName<'static>,
}

impl Tls {
    /// For the node on `host`. A refusal shows the `address`, and of the PEM only its size.
    pub(super) fn read(host: &str, address: &str, given: &Certificates) -> Result<Tls, SettingsError> {
        let named = ServerName::try_from(host.to_owned()).map_err(|_| {
            SettingsError::new("nodes", address, format_args!("at a host name or an IP address"))
        })?;
        // The provider is named: the default of the process may be another one, or none.
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider speaks the versions that are compiled in")
            .with_root_certificates(trusted(address, given.authorities.as_deref())?);
        let config = match &given.client {
            Some(client) => client.shown_by(config, address)?,
            None => config.with_no_client_auth(),
        };
        Ok(Tls { connector: TlsConnector::from(Arc::new(config)), host: named })
    }

    /// Shakes hands. The reason of a failure is for people.
    pub(super) async fn over<S>(&self, stream: S) -> Result<TlsStream<S>, String>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let secured = self.connector.connect(self.host.clone(), stream).await;
        secured.map_err(|error| format!("TLS: {error}"))
    }
}

impl ClientPem {
    fn shown_by(
        &self,
        config: ConfigBuilder<ClientConfig, WantsClientCert>,
        address: &str,
    ) -> Result<ClientConfig, SettingsError> {
        let refused = |bound: fmt::Arguments<'_>| refused("client_certificate", &self.chain, address, bound);
        let chain = certificates(&self.chain).ok_or_else(|| refused(format_args!("{READABLE}")))?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| refused(format_args!("given with PEM of a private key")))?;
        config.with_client_auth_cert(chain, key).map_err(|error| {
            refused(format_args!("given with the private key that belongs to it, both readable ({error})"))
        })
    }
}

/// The authorities that the user gave, or else those of the machine.
fn trusted(address: &str, given: Option<&[u8]>) -> Result<Arc<RootCertStore>, SettingsError> {
    if let Some(pem) = given {
        let roots =
            roots(pem).ok_or_else(|| refused("ca_certificate", pem, address, format_args!("{READABLE}")))?;
        return Ok(Arc::new(roots));
    }
    if MACHINE_ROOTS.is_empty() {
        let bound = format_args!("given a ca_certificate, since this machine trusts none");
        return Err(SettingsError::new("nodes", address, bound));
    }
    Ok(MACHINE_ROOTS.clone())
}

fn roots(pem: &[u8]) -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    certificates(pem)?.into_iter().try_for_each(|certificate| roots.add(certificate).ok())?;
    Some(roots)
}

/// All certificates in a PEM: at least one, and none of which the form is broken.
fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()?;
    (!certificates.is_empty()).then_some(certificates)
}

/// Somebody may have mixed up a certificate and a key, so nothing of a PEM is shown.
fn refused(field: &'static str, pem: &[u8], address: &str, bound: fmt::Arguments<'_>) -> SettingsError {
    SettingsError::new(field, format!("{} bytes for {address}", pem.len()), bound)
}
