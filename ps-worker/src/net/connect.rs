//! How a server is reached: its URL, TCP, TLS, the token on every call.
//!
//! Knows no calls and no retries: a [`Route`] tries once.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use ps_common::exit::ExitError;
use ps_common::secrets::{
    ALPN_HTTP2, AUTHORIZATION, Token, cryptography, read_authorities, read_certificates, read_key,
};
use ps_common::transport::{Socket, Transport};
use ps_common::wire::status::to_status;
use ps_common::{dtype, transport, url};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::version::TLS13;
use tonic::body::Body;
use tonic::codegen::http::{HeaderValue, Request, Response};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::Service;

use super::lesson::Lesson;
use super::surroundings::Surroundings;
use crate::credentials::CredentialArgs;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Full enough to keep the connection busy, small enough that chunks are used while in cache.
const WINDOW_BYTES: u32 = 2 << 20;
/// One chunk with its headers is one frame.
const FRAME_BYTES_MAX: u32 = dtype::CHUNK_BYTES as u32 + (64 << 10);

/// The first byte of a TLS record that carries an alert, and the first of its version.
const TLS_ALERT: [u8; 2] = [21, 3];

/// Who one is and whom one trusts. The default: plaintext, no token.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    tls: Option<Tls>,
    token: Option<HeaderValue>,
}

#[derive(Debug, Clone)]
struct Tls {
    config: Arc<ClientConfig>,
    /// Of the server, where it is not the URL's host.
    name: Option<ServerName<'static>>,
}

impl Credentials {
    /// Reads the files that `args` names, for servers at `urls`.
    ///
    /// # Errors
    /// Configuration or I/O, naming flag and file.
    pub fn load(args: &CredentialArgs, urls: &[impl AsRef<str>]) -> Result<Self, ExitError> {
        let tls = if args.check(urls)? { Some(Tls::load(args)?) } else { None };
        let token = args.token_file.as_deref();
        let token = token.map(|path| Token::read("--token-file", path)).transpose()?;
        for url in urls.iter().map(AsRef::as_ref) {
            if token.is_some() && tls.is_none() && !url::is_loopback(&url::parse("--server", url)?)
            {
                tracing::warn!(url, "the token goes over the network in the clear; use https://");
            }
        }
        let token = token.map(|token| {
            let mut value =
                HeaderValue::try_from(token.header()).expect("a token is visible ASCII");
            value.set_sensitive(true);
            value
        });
        Ok(Self { tls, token })
    }
}

impl Tls {
    fn load(args: &CredentialArgs) -> Result<Self, ExitError> {
        let path = args.tls_ca.as_deref().expect("checked: https wants a CA");
        let roots = read_authorities("--tls-ca", path)?;
        let builder = ClientConfig::builder_with_provider(cryptography())
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| ExitError::config("TLS 1.3 is not to be had").because(e))?
            .with_root_certificates(roots);
        let mut config = match (&args.tls_cert, &args.tls_key) {
            (Some(cert), Some(key)) => {
                let certificates = read_certificates("--tls-cert", cert)?;
                let key = read_key("--tls-key", key)?;
                builder.with_client_auth_cert(certificates, key).map_err(|e| {
                    let what = format!(
                        "--tls-cert {} and its --tls-key do not go together",
                        cert.display()
                    );
                    ExitError::config(what).because(e)
                })?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols.push(ALPN_HTTP2.to_vec());
        let name = args.tls_name.as_deref().map(|name| {
            ServerName::try_from(name.to_owned()).map_err(|e| {
                ExitError::config(format!("--tls-name {name}: no name of a host")).because(e)
            })
        });
        Ok(Self { config: Arc::new(config), name: name.transpose()? })
    }
}

/// How a server is approached.
#[derive(Debug, Clone, Default)]
pub struct Approach {
    /// TCP congestion control by the kernel's name; none: the system's.
    pub congestion: Option<String>,
    /// TLS and the token.
    pub credentials: Credentials,
    /// By which network, with which pauses.
    pub surroundings: Surroundings,
}

/// Why there is no connection.
#[derive(Debug)]
pub enum NoConnection {
    /// Trying again cannot help: the reason, and what to do.
    Hopeless(ExitError),
    /// Not this time.
    Failed(tonic::transport::Error),
}

/// The way to one server.
#[derive(Debug, Clone)]
pub struct Route {
    endpoint: Endpoint,
    dial: Dial,
    url: String,
}

impl Route {
    /// The way to `url` (`http://HOST:PORT`, `https://HOST:PORT`, or `HOST:PORT`).
    ///
    /// # Errors
    /// Configuration where `url` is none, or wants TLS that `approach` does not have.
    pub fn new(url: &str, approach: &Approach) -> Result<Self, ExitError> {
        let uri = url::parse("--server", url)?;
        let tls = match (uri.scheme_str(), &approach.credentials.tls) {
            (Some("https"), None) => {
                return Err(ExitError::config(format!("--server {url} needs --tls-ca")));
            }
            (Some("https"), tls) => tls.clone(),
            _ => None,
        };
        let dial = Dial {
            congestion: approach.congestion.clone(),
            dialer: approach.surroundings.dialer.clone(),
            tls,
            token: approach.credentials.token.clone(),
            lesson: Lesson::default(),
        };
        Ok(Self { endpoint: endpoint(&uri), dial, url: url.to_owned() })
    }

    /// Connects, once.
    ///
    /// # Errors
    /// What came in between.
    pub async fn connect(&self) -> Result<Line, NoConnection> {
        let dial = self.dial.clone();
        let connector = tower::service_fn(move |uri: Uri| {
            let dial = dial.clone();
            async move { dial.connect(&uri).await }
        });
        match self.endpoint.connect_with_connector(connector).await {
            Ok(channel) => {
                let Dial { token, lesson, .. } = self.dial.clone();
                Ok(Line { channel, token, lesson })
            }
            Err(error) => Err(match self.dial.lesson.learned() {
                Some(lesson) => {
                    let what = format!("server {}: {}", self.url, lesson.message);
                    NoConnection::Hopeless(ExitError::config(what).because(error))
                }
                None => NoConnection::Failed(error),
            }),
        }
    }
}

fn endpoint(uri: &Uri) -> Endpoint {
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(tonic::codegen::http::uri::Scheme::HTTP);
    let dialled = Uri::from_parts(parts).expect("another scheme leaves a URI valid");
    // TLS is made where TCP is (`Dial`), so that tonic need not know of it.
    Endpoint::from(dialled)
        .origin(uri.clone())
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
}

/// Opens connections, again whenever one was cut.
#[derive(Debug, Clone)]
struct Dial {
    congestion: Option<String>,
    dialer: Option<Arc<dyn transport::Dial>>,
    tls: Option<Tls>,
    token: Option<HeaderValue>,
    lesson: Lesson,
}

impl Dial {
    async fn connect(&self, uri: &Uri) -> io::Result<TokioIo<Watched>> {
        self.lesson.forget();
        let host = uri.host().expect("parsed URLs have one");
        let port = uri.port_u16().expect("parsed URLs have one");
        // An IPv6 address stands in brackets.
        let host = host.trim_matches(['[', ']']);
        let socket = match &self.dialer {
            None => Socket::Tcp(self.tcp(host, port).await?),
            Some(dialer) => Socket::Other(dialer.dial(host, port).await?),
        };
        let transport = match &self.tls {
            None => Transport::Plain(socket),
            Some(tls) => self.handshake(tls, host, socket).await?,
        };
        Ok(TokioIo::new(Watched { transport, lesson: self.lesson.clone(), is_first: true }))
    }

    async fn tcp(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let tcp = TcpStream::connect((host, port)).await?;
        // With a connector of our own tonic leaves this to us; without it a small step takes 88 ms.
        tcp.set_nodelay(true)?;
        if let Some(name) = &self.congestion {
            ps_common::congestion::set((&tcp).into(), name)?;
        }
        Ok(tcp)
    }

    async fn handshake(&self, tls: &Tls, host: &str, socket: Socket) -> io::Result<Transport> {
        let name = match &tls.name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(io::Error::other)?,
        };
        match TlsConnector::from(Arc::clone(&tls.config)).connect(name, socket).await {
            Ok(stream) => Ok(Transport::Tls(Box::new(stream.into()))),
            Err(error) => {
                self.lesson.note_tls(&error);
                Err(match error.kind() {
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                        let what = "the server closed the connection in the TLS handshake; does it \
                                    serve TLS?";
                        io::Error::new(error.kind(), what)
                    }
                    _ => error,
                })
            }
        }
    }
}

/// A connection that notes why it fails, where that is for good.
#[derive(Debug)]
struct Watched {
    transport: Transport,
    lesson: Lesson,
    /// Nothing has been read.
    is_first: bool,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n_before = buffer.filled().len();
        let read = Pin::new(&mut self.transport).poll_read(cx, buffer);
        match &read {
            Poll::Ready(Ok(())) if self.is_first => {
                self.is_first = false;
                // Inside TLS this cannot stand: it would be a frame of 1.4 MB.
                if buffer.filled()[n_before..].starts_with(&TLS_ALERT) {
                    self.lesson.speaks_tls();
                }
            }
            // A server looks at a certificate when its peer believes the handshake done.
            Poll::Ready(Err(error)) => self.lesson.note_tls(error),
            _ => {}
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}

/// An open connection that presents the token with every call. Clones share it; it reconnects by
/// itself at the next call after it was cut.
#[derive(Debug, Clone)]
pub struct Line {
    channel: Channel,
    token: Option<HeaderValue>,
    lesson: Lesson,
}

impl From<Channel> for Line {
    fn from(channel: Channel) -> Self {
        Self { channel, token: None, lesson: Lesson::default() }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

impl Service<Request<Body>> for Line {
    type Response = Response<Body>;
    /// A status where the connection has failed for good.
    type Error = BoxError;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.channel.poll_ready(cx).map_err(|error| explained(&self.lesson, error))
    }

    fn call(&mut self, mut request: Request<Body>) -> Answer {
        if let Some(token) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
        }
        let (lesson, answer) = (self.lesson.clone(), self.channel.call(request));
        Box::pin(async move { answer.await.map_err(|error| explained(&lesson, error)) })
    }
}

fn explained(lesson: &Lesson, error: tonic::transport::Error) -> BoxError {
    match lesson.learned() {
        Some(lesson) => to_status(&lesson).into(),
        None => error.into(),
    }
}
