//! A TCP proxy on the loopback that is the network between a worker and a server: each way of it
//! passes bytes, stops, or stops after so many. What is held back is delivered once the way is free
//! again, as TCP does after a partition; nobody hears of an end that is held back.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::time::Duration;

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the worker to the server.
    Up,
    /// From the server to the worker.
    Down,
}

/// A proxy; gone with its connections when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: String,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// By [`Way`].
    flows: [Flow; 2],
    open: Vec<TcpStream>,
    /// Connections that the server has ended.
    n_ended_by_server: usize,
    /// Raised by every cut: what was under way is lost.
    era: u64,
}

#[derive(Debug)]
struct Flow {
    came: u64,
    passed: u64,
    /// Bytes that may pass in all.
    limit: u64,
}

impl Default for Flow {
    fn default() -> Self {
        Self { came: 0, passed: 0, limit: u64::MAX }
    }
}

impl Proxy {
    /// A proxy before the server at `upstream` (`host:port`).
    pub fn to(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let address = listener.local_addr().expect("bound").to_string();
        let shared = Arc::new(Shared::default());
        let weak = Arc::downgrade(&shared);
        let upstream = upstream.to_owned();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // The connection of `drop` finds nobody.
                let Some(shared) = weak.upgrade() else { return };
                if let Ok(server) = TcpStream::connect(&upstream) {
                    shared.join(&client, &server);
                }
            }
        });
        Self { address, shared }
    }

    /// Where it listens, as `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The same as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Holds everything back that goes `way`.
    pub fn hold(&self, way: Way) {
        let _ = self.hold_after(way, 0);
    }

    /// Lets `n_bytes` more pass, and holds back the rest; gives what has passed once they have.
    pub fn hold_after(&self, way: Way, n_bytes: u64) -> u64 {
        let mut state = self.shared.lock();
        let flow = &mut state.flows[way as usize];
        flow.limit = flow.passed + n_bytes;
        self.shared.changed.notify_all();
        flow.limit
    }

    /// Lets everything pass, first of all what was held back.
    pub fn pass(&self, way: Way) {
        self.shared.lock().flows[way as usize].limit = u64::MAX;
        self.shared.changed.notify_all();
    }

    /// Holds back both ways: a partition.
    pub fn part(&self) {
        self.hold(Way::Up);
        self.hold(Way::Down);
    }

    /// Lets both ways pass.
    pub fn heal(&self) {
        self.pass(Way::Up);
        self.pass(Way::Down);
    }

    /// Bytes that have gone `way`.
    pub fn passed(&self, way: Way) -> u64 {
        self.shared.lock().flows[way as usize].passed
    }

    /// Bytes that have come and not gone on, `way`.
    pub fn held(&self, way: Way) -> u64 {
        let flow = &self.shared.lock().flows[way as usize];
        flow.came - flow.passed
    }

    /// Connections that the server has ended.
    pub fn n_ended_by_server(&self) -> usize {
        self.shared.lock().n_ended_by_server
    }

    /// Ends all connections; what was held back is lost.
    pub fn cut(&self) {
        self.shared.cut();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.cut();
        let address = self.address.clone();
        // Wakes the listener once `shared` is gone.
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(TcpStream::connect(address));
        });
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics")
    }

    fn cut(&self) {
        let mut state = self.lock();
        state.era += 1;
        for stream in state.open.drain(..) {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.changed.notify_all();
    }

    fn join(self: Arc<Self>, client: &TcpStream, server: &TcpStream) {
        let clone = |stream: &TcpStream| stream.try_clone().expect("file descriptors are left");
        for stream in [client, server] {
            stream.set_nodelay(true).expect("a socket");
        }
        let mut state = self.lock();
        state.open.extend([clone(client), clone(server)]);
        let era = state.era;
        drop(state);
        for (way, from, to) in [(Way::Up, client, server), (Way::Down, server, client)] {
            let (shared, from, to) = (Arc::clone(&self), clone(from), clone(to));
            let (sender, pieces) = mpsc::channel();
            std::thread::spawn(move || shared.take(way, era, from, &sender));
            let shared = Arc::clone(&self);
            std::thread::spawn(move || shared.deliver(way, era, &pieces, to));
        }
    }

    /// Reads on whatever is held back, to see the end.
    fn take(&self, way: Way, era: u64, mut from: TcpStream, pieces: &mpsc::Sender<Vec<u8>>) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            self.lock().flows[way as usize].came += n as u64;
            if pieces.send(buffer[..n].to_vec()).is_err() {
                return;
            }
        }
        let mut state = self.lock();
        let by_server = way == Way::Down && state.era == era;
        state.n_ended_by_server += usize::from(by_server);
    }

    fn deliver(&self, way: Way, era: u64, pieces: &mpsc::Receiver<Vec<u8>>, mut to: TcpStream) {
        for piece in pieces {
            let mut rest = &piece[..];
            while !rest.is_empty() {
                let Some(n) = self.permit(way, era, rest.len()) else { return };
                if to.write_all(&rest[..n]).is_err() {
                    return;
                }
                rest = &rest[n..];
            }
        }
        if self.permit(way, era, 0).is_some() {
            let _ = to.shutdown(Shutdown::Write);
        }
    }

    /// Waits until something may go `way`; of `wanted` bytes, how many.
    fn permit(&self, way: Way, era: u64, wanted: usize) -> Option<usize> {
        let mut state = self.lock();
        loop {
            if state.era != era {
                return None;
            }
            let flow = &mut state.flows[way as usize];
            let room = usize::try_from(flow.limit - flow.passed).unwrap_or(usize::MAX);
            if room > 0 {
                let n = wanted.min(room);
                flow.passed += n as u64;
                return Some(n);
            }
            state = self.changed.wait(state).expect("no thread panics");
        }
    }
}
