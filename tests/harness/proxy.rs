//! A TCP proxy before a server whose connections can be cut in the middle, without either side being told.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Forwards connections to one port. Dropped, it ends them all.
pub struct Proxy {
    address: SocketAddr,
    /// Of the server to which new connections lead.
    port: Arc<AtomicU16>,
    /// One for each connection: set, what comes is thrown away.
    swallowing: Arc<Mutex<Vec<Arc<AtomicBool>>>>,
    /// Whether what comes from the server waits.
    holding: watch::Sender<bool>,
    listening: JoinHandle<()>,
}

impl Proxy {
    pub async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let swallowing: Arc<Mutex<Vec<Arc<AtomicBool>>>> = Arc::default();
        let connections = swallowing.clone();
        let (holding, held) = watch::channel(false);
        let port = Arc::new(AtomicU16::new(port));
        let leads_to = port.clone();
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let swallows = Arc::new(AtomicBool::new(false));
                connections.lock().expect("whole").push(swallows.clone());
                tokio::spawn(forward(client, leads_to.load(Ordering::Acquire), swallows, held.clone()));
            }
        });
        Proxy { address, port, swallowing, holding, listening }
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// From now on new connections lead to the server on another port.
    pub fn lead_to(&self, port: u16) {
        self.port.store(port, Ordering::Release);
    }

    /// From now on replies wait, or go on.
    pub fn hold_replies(&self, hold: bool) {
        self.holding.send_replace(hold);
    }

    /// The connections that there are stay open, and carry nothing any more. New ones do.
    pub fn cut_in_the_middle(&self) {
        let connections = self.swallowing.lock().expect("whole");
        connections.iter().for_each(|swallows| swallows.store(true, Ordering::Release));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn forward(client: TcpStream, port: u16, swallows: Arc<AtomicBool>, held: watch::Receiver<bool>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (_never, not_held) = watch::channel(false);
    tokio::join!(
        pass_on(from_client, to_server, &swallows, not_held),
        pass_on(from_server, to_client, &swallows, held),
    );
}

async fn pass_on(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    swallows: &AtomicBool,
    mut held: watch::Receiver<bool>,
) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let _ = held.wait_for(|held| !held).await;
        if !swallows.load(Ordering::Acquire) && to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
