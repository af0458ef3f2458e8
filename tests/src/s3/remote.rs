//! A server elsewhere: requests are passed on as they came, so that their signatures stay true, and answers come back as they
//! are.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::TRANSFER_ENCODING;
use hyper::http::request::Parts;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use s3s::Body;
use tokio::net::TcpStream;
use url::Url;

/// Where it is.
pub(super) struct Remote {
    address: SocketAddr,
}

impl Remote {
    /// The server at this `http:` URL.
    ///
    /// # Errors
    /// When it is none, or its name is not known.
    pub(super) fn new(endpoint: &str) -> Result<Self> {
        let url = Url::parse(endpoint).with_context(|| endpoint.to_owned())?;
        ensure!(url.scheme() == "http", "{endpoint}: only http: servers can be put behind faults");
        let place = (url.host_str().context("no host")?, url.port_or_known_default().context("no port")?);
        let address = place.to_socket_addrs()?.next().with_context(|| format!("{endpoint} is not known"))?;
        Ok(Self { address })
    }

    /// Passes a request on, over a connection of its own. `Host` stays what the client signed.
    pub(super) async fn ask(&self, mut head: Parts, body: Bytes) -> io::Result<Response<Body>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let connection = tokio::spawn(connection);
        // The body is here as a whole.
        head.headers.remove(TRANSFER_ENCODING);
        let answer = sender.send_request(Request::from_parts(head, Full::new(body))).await.map_err(io::Error::other)?;
        let (mut head, body) = answer.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        connection.abort();
        head.headers.remove(TRANSFER_ENCODING);
        Ok(Response::from_parts(head, Body::from(body)))
    }
}
