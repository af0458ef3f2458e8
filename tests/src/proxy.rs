//! A TCP proxy on 127.0.0.1 that can cut, stall and throttle what goes through it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Result;

/// How long a pump waits for bytes before it looks for another mode.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Most bytes that wait in a pump.
const CHUNK_BYTES: usize = 16 << 10;

/// What a proxy does to connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Passes everything on.
    Pass,
    /// Passes at most so many bytes per second, each way of each connection.
    Throttle(u32),
    /// Takes connections and bytes, and passes nothing on.
    Stall,
    /// Closes every connection, new ones as soon as they are made.
    Cut,
    /// Ends with the proxy.
    Stopped,
}

/// A running proxy. Dropped, it closes every connection.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
    bytes: AtomicU64,
}

struct State {
    mode: Mode,
    /// Both ends of every connection that was not closed yet.
    open: Vec<TcpStream>,
}

impl Proxy {
    /// Starts a proxy on a free port.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let state = Mutex::new(State { mode: Mode::Pass, open: Vec::new() });
        let shared = Arc::new(Shared { target, state, changed: Condvar::new(), bytes: AtomicU64::new(0) });
        let accepting = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if accepting.lock().mode == Mode::Stopped {
                    break;
                }
                // A connection that cannot be made is closed: that is what its client sees.
                let _ = Shared::connect(&accepting, stream);
            }
        });
        Ok(Self { address, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what it does, to the connections there are as well.
    pub fn set(&self, mode: Mode) {
        let mut state = self.shared.lock();
        state.mode = mode;
        if matches!(mode, Mode::Cut | Mode::Stopped) {
            state.close_all();
        }
        self.shared.changed.notify_all();
    }

    /// Closes every connection that there is now; new ones pass.
    pub fn cut_once(&self) {
        self.shared.lock().close_all();
    }

    /// Bytes passed on so far, both ways.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Mode::Stopped);
        // The thread waits in `accept`: a last connection wakes it.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
    }
}

impl State {
    fn close_all(&mut self) {
        for stream in self.open.drain(..) {
            // One that is closed already is as good.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(shared: &Arc<Self>, client: TcpStream) -> io::Result<()> {
        if shared.lock().mode == Mode::Cut {
            return client.shutdown(Shutdown::Both);
        }
        let server = TcpStream::connect_timeout(&shared.target, Duration::from_secs(5))?;
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(LOOK_INTERVAL))?;
        }
        let ways = [(client.try_clone()?, server.try_clone()?), (server.try_clone()?, client.try_clone()?)];
        {
            let mut state = shared.lock();
            state.open.retain(|stream| stream.peer_addr().is_ok());
            state.open.extend([client, server]);
            if matches!(state.mode, Mode::Cut | Mode::Stopped) {
                state.close_all();
            }
        }
        for (from, to) in ways {
            let shared = shared.clone();
            thread::spawn(move || {
                // However one way ends, the other ends with it.
                let _ = shared.pump(&from, &to);
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
        Ok(())
    }

    /// Passes bytes on in one direction until the end.
    fn pump(&self, mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            // Small bites while throttled, so that the rate is even.
            let bite = match self.allowed() {
                Mode::Cut | Mode::Stopped => return Ok(()),
                Mode::Throttle(rate) => (rate as usize / 20).clamp(1, CHUNK_BYTES),
                Mode::Pass | Mode::Stall => CHUNK_BYTES,
            };
            let count = match from.read(&mut chunk[..bite]) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                Err(error) => return Err(error),
            };
            match self.allowed() {
                Mode::Cut | Mode::Stopped => return Ok(()),
                Mode::Throttle(rate) => thread::sleep(Duration::from_secs(1) * count as u32 / rate.max(1)),
                Mode::Pass | Mode::Stall => {}
            }
            // Counted first: who has got them may look at once.
            self.bytes.fetch_add(count as u64, Ordering::Relaxed);
            to.write_all(&chunk[..count])?;
        }
    }

    /// The mode, as soon as it is not [`Mode::Stall`].
    fn allowed(&self) -> Mode {
        let state = self.lock();
        let waited = self.changed.wait_while(state, |state| state.mode == Mode::Stall);
        waited.unwrap_or_else(PoisonError::into_inner).mode
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// Answers every byte with itself.
    fn echo() -> Result<SocketAddr> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || io::copy(&mut &stream, &mut &stream));
            }
        });
        Ok(address)
    }

    fn call(stream: &mut TcpStream, bytes: usize) -> io::Result<()> {
        stream.write_all(&vec![7; bytes])?;
        stream.read_exact(&mut vec![0; bytes])
    }

    fn client(proxy: &Proxy) -> Result<TcpStream> {
        let stream = TcpStream::connect(proxy.address())?;
        stream.set_read_timeout(Some(Duration::from_millis(300)))?;
        Ok(stream)
    }

    #[test]
    fn each_mode_does_what_it_says() -> Result<()> {
        let proxy = Proxy::start(echo()?)?;
        let mut stream = client(&proxy)?;
        call(&mut stream, 1000)?;
        assert_eq!(proxy.bytes(), 2000);

        proxy.set(Mode::Stall);
        assert!(matches!(call(&mut stream, 10), Err(error) if error.kind() == ErrorKind::WouldBlock));
        assert_eq!(proxy.bytes(), 2000, "nothing passes");
        proxy.set(Mode::Pass);
        stream.read_exact(&mut [0; 10])?;

        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        proxy.set(Mode::Throttle(10_000));
        let before = Instant::now();
        call(&mut stream, 5000)?;
        assert!((400..3000).contains(&before.elapsed().as_millis()), "{:?}", before.elapsed());

        proxy.set(Mode::Cut);
        assert!(call(&mut stream, 1).is_err());
        assert!(client(&proxy).and_then(|mut stream| Ok(call(&mut stream, 1)?)).is_err());
        proxy.set(Mode::Pass);
        let mut stream = client(&proxy)?;
        call(&mut stream, 1)?;
        proxy.cut_once();
        assert!(call(&mut stream, 1).is_err());
        Ok(call(&mut client(&proxy)?, 1)?)
    }
}
