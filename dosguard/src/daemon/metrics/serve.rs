//! The smallest HTTP server that Prometheus is content with.

use std::convert::Infallible;
use std::future::Future;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::TEXT_FORMAT;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How many may be served at once. Others wait in the kernel.
const MAX_CONNECTIONS: usize = 8;
/// How long a request may take to arrive: who says nothing must not keep out those who ask.
const REQUEST: Duration = Duration::from_secs(1);
/// How long all of it may take: who reads slowly must not keep others away for long.
const ALL: Duration = Duration::from_secs(10);

type Answer = Response<Full<Bytes>>;

/// Serves what `source` says until `stop` completes.
pub(super) async fn until(
    listener: TcpListener,
    source: impl FnMut() -> Result<String, String> + Send + 'static,
    stop: impl Future,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return log::warn!("metrics are not served: {error}"),
    };
    let source = Arc::new(Mutex::new(source));
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            _ = &mut stop => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(timeout(ALL, serve_one(stream, Arc::clone(&source))));
                }
                Err(error) => {
                    log::warn!("a request for metrics could not be accepted: {error}");
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

async fn serve_one(
    stream: TcpStream,
    source: Arc<Mutex<impl FnMut() -> Result<String, String> + Send + 'static>>,
) {
    let service = service_fn(|request: Request<Incoming>| {
        let answer = answer(&request, || {
            // One that panicked says what it says the next time.
            (source.lock().unwrap_or_else(PoisonError::into_inner))()
        });
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(REQUEST).keep_alive(false).max_buf_size(16 * 1024);
    // Whoever sends nonsense or goes away has no answer to get.
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

fn answer(request: &Request<Incoming>, text: impl FnOnce() -> Result<String, String>) -> Answer {
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n".to_owned());
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "metrics are only read\n".to_owned());
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    match text() {
        Ok(text) => {
            let mut answer = plain(StatusCode::OK, text);
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT_FORMAT));
            answer
        }
        Err(error) => plain(StatusCode::SERVICE_UNAVAILABLE, error + "\n"),
    }
}

fn plain(status: StatusCode, text: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpStream};
    use std::time::Instant;

    use super::super::{Exporter, MetricsError};
    use super::*;

    fn exporter(source: impl FnMut() -> Result<String, String> + Send + 'static) -> Exporter {
        Exporter::serve("127.0.0.1:0".parse().unwrap(), source).unwrap()
    }

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        // What is refused before it was read ends with a reset.
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    fn get(address: SocketAddr, path: &str) -> String {
        ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
    }

    #[test]
    fn only_what_is_asked_for_as_it_should_be_is_answered() {
        let mut asked = 0;
        let exporter = exporter(move || {
            asked += 1;
            if asked == 2 { Err("no instance".to_owned()) } else { Ok(format!("asked {asked}\n")) }
        });
        let to = exporter.address();
        let answer = get(to, "/metrics");
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nasked 1\n"),
            "{answer}"
        );
        assert!(answer.contains("content-type: text/plain; version=0.0.4\r\n"), "{answer}");
        let answer = get(to, "/metrics?x=y");
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("\r\n\r\nno instance\n"), "{answer}");
        assert!(get(to, "/").starts_with("HTTP/1.1 404 "));
        assert!(get(to, "/metrics/../etc/passwd").starts_with("HTTP/1.1 404 "));
        let answer = ask(to, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
        assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET, HEAD\r\n"), "{answer}");
        let answer = ask(to, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
        assert!(ask(to, "\u{1}\u{2}garbage\r\n\r\n").starts_with("HTTP/1.1 400 "));
        let long = ask(to, &format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(16_384)));
        assert!(!long.contains("200 OK"), "{long}");
        assert!(get(to, "/metrics").ends_with("asked 4\n"), "those that were refused cost nothing");
    }

    #[test]
    fn those_who_ask_for_nothing_are_not_waited_for_without_end() {
        let exporter = exporter(|| Ok("text\n".to_owned()));
        let silent: Vec<_> =
            (0..MAX_CONNECTIONS).map(|_| TcpStream::connect(exporter.address()).unwrap()).collect();
        let began = Instant::now();
        assert!(get(exporter.address(), "/metrics").ends_with("text\n"));
        assert!(began.elapsed() < REQUEST * 4, "{:?}", began.elapsed());
        drop(silent);
    }

    #[test]
    fn an_address_that_is_taken_is_an_error_and_a_dropped_exporter_gives_it_back() {
        let first = exporter(|| Ok(String::new()));
        let taken = first.address();
        let error = Exporter::serve(taken, || Ok(String::new())).unwrap_err();
        assert!(matches!(error, MetricsError::Listen { .. }));
        let text = error.to_string();
        assert!(text.contains(&taken.to_string()) && text.contains("Address already in use"), "{text}");
        drop(first);
        let end = Instant::now() + Duration::from_secs(20);
        while Exporter::serve(taken, || Ok(String::new())).is_err() {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
