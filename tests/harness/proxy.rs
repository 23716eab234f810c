//! A TCP proxy before a server, on which goes wrong what can go wrong on the way: lateness, silence, and connections that
//! end. Within a connection nothing is lost or reordered unless it ends, as with TCP itself; between connections it is.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

/// Whither bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToServer,
    ToClient,
}

impl Way {
    pub const BOTH: [Way; 2] = [Way::ToServer, Way::ToClient];
}

/// Forwards connections to one port. Dropped, it ends them all.
pub struct Proxy {
    address: SocketAddr,
    road: Arc<Road>,
    listening: JoinHandle<()>,
}

/// What the connections have in common. Of two, the first is of the way to the server.
struct Road {
    /// Of the server to which new connections lead.
    port: AtomicU16,
    weather: [watch::Sender<Weather>; 2],
    /// New connections carry nothing this way.
    swallows: [AtomicBool; 2],
    /// After so many more bytes the connection ends that carried the last of them.
    ends_after: [Mutex<Option<usize>>; 2],
    connections: Mutex<Vec<Weak<Connection>>>,
}

/// What befalls all bytes that go one way.
#[derive(Clone, Copy, Default)]
struct Weather {
    delay: Duration,
    bytes_per_second: Option<usize>,
    held: bool,
}

struct Connection {
    /// Whether what goes this way is thrown away: from then on for ever, since what follows would make no sense.
    swallows: [AtomicBool; 2],
    stranded: watch::Sender<bool>,
    end: watch::Sender<Option<End>>,
}

#[derive(Clone, Copy)]
enum End {
    Closed,
    Reset,
}

impl Proxy {
    pub async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let road = Arc::new(Road {
            port: AtomicU16::new(port),
            weather: Default::default(),
            swallows: Default::default(),
            ends_after: Default::default(),
            connections: Mutex::default(),
        });
        let listening = tokio::spawn(listen(listener, road.clone()));
        Proxy { address, road, listening }
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// From now on new connections lead to the server on another port.
    pub fn lead_to(&self, port: u16) {
        self.road.port.store(port, Ordering::Release);
    }

    /// From now on what sets out arrives so much later.
    pub fn delay(&self, ways: impl IntoIterator<Item = Way>, delay: Duration) {
        self.change(ways, |weather| weather.delay = delay);
    }

    /// From now on so many bytes of a connection arrive in a second.
    pub fn throttle(&self, ways: impl IntoIterator<Item = Way>, bytes_per_second: usize) {
        self.change(ways, |weather| weather.bytes_per_second = Some(bytes_per_second));
    }

    /// From now on nothing arrives, and nothing is lost: a partition that will heal.
    pub fn hold(&self, ways: impl IntoIterator<Item = Way>) {
        self.change(ways, |weather| weather.held = true);
    }

    /// What was held arrives, also of connections that the other side has given up since.
    pub fn release(&self, ways: impl IntoIterator<Item = Way>) {
        self.change(ways, |weather| weather.held = false);
    }

    /// The connections that there are carry nothing for a while. New ones do: so what is older may arrive later.
    pub fn strand(&self) {
        self.each(|connection| {
            connection.stranded.send_replace(true);
        });
    }

    /// What was stranded arrives.
    pub fn set_afloat(&self) {
        self.each(|connection| {
            connection.stranded.send_replace(false);
        });
    }

    /// From now on what sets out is lost, on connections that there are and on new ones. Nobody is told.
    pub fn swallow(&self, ways: impl IntoIterator<Item = Way>) {
        for way in ways {
            self.road.swallows[way as usize].store(true, Ordering::Release);
            self.each(|connection| connection.swallows[way as usize].store(true, Ordering::Release));
        }
    }

    /// The connections that there are stay open, and carry nothing any more. New ones do.
    pub fn cut_in_the_middle(&self) {
        self.each(|connection| {
            connection.swallows.iter().for_each(|way| way.store(true, Ordering::Release));
        });
    }

    /// The connections that there are end, and both sides are told that they were reset.
    pub fn reset(&self) {
        self.each(|connection| {
            connection.end.send_replace(Some(End::Reset));
        });
    }

    /// After so many more bytes the connection is closed on which the last of them went.
    pub fn close_after(&self, way: Way, bytes: usize) {
        *self.road.ends_after[way as usize].lock().expect("whole") = Some(bytes);
    }

    /// From now on new connections are as if nothing had been, and so are those that lost nothing.
    pub fn heal(&self) {
        self.change(Way::BOTH, |weather| *weather = Weather::default());
        self.road.swallows.iter().for_each(|way| way.store(false, Ordering::Release));
        self.road.ends_after.iter().for_each(|way| *way.lock().expect("whole") = None);
    }

    fn change(&self, ways: impl IntoIterator<Item = Way>, change: impl Fn(&mut Weather)) {
        ways.into_iter().for_each(|way| self.road.weather[way as usize].send_modify(&change));
    }

    fn each(&self, act: impl Fn(&Connection)) {
        let connections = self.road.connections.lock().expect("whole");
        connections.iter().filter_map(Weak::upgrade).for_each(|connection| act(&connection));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Road {
    fn opened(&self) -> Arc<Connection> {
        let swallows = self.swallows.each_ref().map(|way| AtomicBool::new(way.load(Ordering::Acquire)));
        let connection = Arc::new(Connection {
            swallows,
            stranded: watch::Sender::default(),
            end: watch::Sender::default(),
        });
        let mut connections = self.connections.lock().expect("whole");
        connections.retain(|connection| connection.strong_count() > 0);
        connections.push(Arc::downgrade(&connection));
        connection
    }

    /// How many of so many bytes pass, and whether the connection ends then.
    fn pass(&self, way: Way, bytes: usize) -> (usize, bool) {
        let mut left = self.ends_after[way as usize].lock().expect("whole");
        match *left {
            Some(last) if last <= bytes => {
                *left = None;
                (last, true)
            }
            Some(more) => {
                *left = Some(more - bytes);
                (bytes, false)
            }
            None => (bytes, false),
        }
    }
}

async fn listen(listener: TcpListener, road: Arc<Road>) {
    let mut forwarding = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while forwarding.try_join_next().is_some() {}
        forwarding.spawn(forward(client, road.clone(), road.opened()));
    }
}

async fn forward(mut client: TcpStream, road: Arc<Road>, connection: Arc<Connection>) {
    let port = road.port.load(Ordering::Acquire);
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let mut end = connection.end.subscribe();
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let both = async {
        tokio::join!(
            carry(Way::ToServer, from_client, to_server, &road, &connection),
            carry(Way::ToClient, from_server, to_client, &road, &connection),
        );
    };
    let ended = tokio::select! {
        () = both => return,
        ended = end.wait_for(Option::is_some) => ended.is_ok_and(|end| matches!(*end, Some(End::Reset))),
    };
    if ended {
        // Closed with a linger of zero, a socket says that it was reset.
        let _ = set_socket_linger(&client, Some(Duration::ZERO));
        let _ = set_socket_linger(&server, Some(Duration::ZERO));
    }
}

/// Takes in what comes, whatever becomes of it, and lets it arrive in its order.
async fn carry(
    way: Way,
    mut from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    road: &Road,
    connection: &Connection,
) {
    let (sets_out, on_its_way) = mpsc::unbounded_channel();
    let take_in = async move {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            if sets_out.send((Instant::now(), buffer[..length].to_vec())).is_err() {
                return;
            }
        }
    };
    tokio::join!(take_in, arrive(way, on_its_way, to, road, connection));
}

async fn arrive(
    way: Way,
    mut on_its_way: mpsc::UnboundedReceiver<(Instant, Vec<u8>)>,
    mut to: impl AsyncWrite + Unpin,
    road: &Road,
    connection: &Connection,
) {
    let mut weather = road.weather[way as usize].subscribe();
    let mut stranded = connection.stranded.subscribe();
    let mut waits = async |weather: &mut watch::Receiver<Weather>| {
        let _ = stranded.wait_for(|stranded| !stranded).await;
        let _ = weather.wait_for(|weather| !weather.held).await;
    };
    while let Some((set_out, bytes)) = on_its_way.recv().await {
        let delay = weather.borrow().delay;
        sleep_until(set_out + delay).await;
        waits(&mut weather).await;
        if connection.swallows[way as usize].load(Ordering::Acquire) {
            continue;
        }
        let (passing, ends) = road.pass(way, bytes.len());
        let rate = weather.borrow().bytes_per_second;
        if write(&mut to, &bytes[..passing], rate).await.is_err() {
            return;
        }
        if ends {
            connection.end.send_replace(Some(End::Closed));
        }
    }
    waits(&mut weather).await;
    let _ = to.shutdown().await;
}

/// At a rate: piece by piece.
async fn write(
    to: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    bytes_per_second: Option<usize>,
) -> std::io::Result<()> {
    const PIECES_PER_SECOND: usize = 100;
    let Some(rate) = bytes_per_second else { return to.write_all(bytes).await };
    for piece in bytes.chunks((rate / PIECES_PER_SECOND).max(1)) {
        sleep(
            Duration::from_secs(1) * u32::try_from(piece.len()).expect("small")
                / u32::try_from(rate).expect("slow"),
        )
        .await;
        to.write_all(piece).await?;
    }
    Ok(())
}
