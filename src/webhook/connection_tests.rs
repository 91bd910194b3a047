//! Tests of the webhook's connections and of its shutdown, by a client over TLS.

use super::limits::Limits;
use super::test_server::{TestServer, all, is_closed_in_order, last, next, next_line, request, send};
use futures::FutureExt;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

#[tokio::test]
async fn slow_client_is_disconnected_or_answered_408_at_every_stage() {
    let read = Duration::from_millis(200);
    let served = TestServer::start(Limits { read, ..Limits::default() }).await;
    let mut silent = TcpStream::connect(served.address).await.unwrap();
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0, "no handshake");
    assert_eq!(served.ask("P").await, "", "the first byte of a header");
    assert_eq!(served.ask("POST /admit HTTP/1.1\r\nHost:").await, "", "half a header");
    let mut second = served.connect().await;
    send(&mut second, request("else").as_bytes()).await;
    next(&mut second).await;
    send(&mut second, b"POST").await;
    assert_eq!(all(&mut second).await, "", "a part of the second header");
    assert!(served.ask("PRI * HTTP/2.0\r\n\r\n").await.starts_with("HTTP/1.1 400 "), "HTTP/2");
    let answer = served.ask(&last("body").replace("body", "bo")).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "half a body: {answer}");
    assert!(served.has_counted(r#"switchboard_admission_requests_total{outcome="too_slow",code="408"} 1"#));
    assert!(served.has_counted(r#"switchboard_webhook_connections_closed_total{reason="handshake_timeout"} 1"#));
    assert!(served.has_counted(r#"switchboard_webhook_connections_closed_total{reason="header_timeout"} 3"#));
    // A connection without a request is idle, and has a longer timeout.
    let served = TestServer::start(Limits { idle: read, ..Limits::default() }).await;
    assert!(is_closed_in_order(&mut served.connect().await).await, "no request");
    assert!(served.has_counted(r#"switchboard_webhook_connections_closed_total{reason="idle_timeout"} 1"#));
}

#[tokio::test]
async fn idle_connection_survives_the_api_servers_90_seconds() {
    let served = TestServer::start(Limits::default()).await;
    let (mut used, mut unused) = (served.connect().await, served.connect().await);
    send(&mut used, request("else").as_bytes()).await;
    next(&mut used).await;
    served.until_counted("switchboard_webhook_connections 2").await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(100)).await;
    for _ in 0..100 {
        // Give the server time to close connections.
        tokio::task::yield_now().await;
    }
    tokio::time::resume();
    for idle in [&mut used, &mut unused] {
        send(idle, request("else").as_bytes()).await;
        assert!(next(idle).await.starts_with("HTTP/1.1 200 "));
    }
    tokio::time::pause();
    tokio::time::advance(Limits::default().idle).await;
    tokio::time::resume();
    assert!(is_closed_in_order(&mut used).await && is_closed_in_order(&mut unused).await);
    served.until_counted("switchboard_webhook_connections 0").await;
    assert!(served.has_counted(r#"switchboard_webhook_connections_closed_total{reason="idle_timeout"} 2"#));
}

#[tokio::test]
async fn connection_above_the_limit_is_accepted_and_idle_one_closed() {
    let served = TestServer::start(Limits { connections: 2, concurrency: 1, ..Limits::default() }).await;
    let mut idle = served.connect().await;
    send(&mut idle, request("else").as_bytes()).await;
    next(&mut idle).await;
    let mut in_flight = served.connect().await;
    send(&mut in_flight, last("wait").as_bytes()).await;
    // It has the permit before another connection is made.
    let is_refused = async {
        loop {
            send(&mut idle, request("else").as_bytes()).await;
            if !next_line(&mut idle).await.starts_with("HTTP/1.1 200 ") {
                break;
            }
            next(&mut idle).await;
        }
    };
    timeout(Duration::from_secs(30), is_refused).await.expect("the request in flight has the permit");
    let mut newcomer = served.connect().await;
    send(&mut newcomer, request("else").as_bytes()).await;
    assert!(next_line(&mut newcomer).await.starts_with("HTTP/1.1 429 "));
    all(&mut idle).await;
    assert!(served.has_counted(r#"switchboard_webhook_connections_closed_total{reason="evicted"} 1"#));
    served.release.notify_one();
    assert!(all(&mut in_flight).await.starts_with("HTTP/1.1 200 "), "the request in flight is answered");
}

/// The API server does not repeat a request whose connection is closed. The runtime learns of its bytes later than of the shutdown.
#[tokio::test]
async fn request_that_arrived_before_the_close_is_answered() {
    let served = TestServer::start(Limits::default()).await;
    let (mut used, mut unused) = (served.connect().await, served.connect().await);
    send(&mut used, request("else").as_bytes()).await;
    next(&mut used).await;
    served.until_counted("switchboard_webhook_connections 2").await;
    for idle in [&mut used, &mut unused] {
        send(idle, request("else").as_bytes()).await;
    }
    served.shutdown.closing.cancel();
    for idle in [&mut used, &mut unused] {
        let answer = all(idle).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("fine"), "{answer:?}");
    }
}

#[tokio::test]
async fn every_answer_while_draining_closes_its_connection() {
    let served = TestServer::start(Limits::default()).await;
    let mut open = served.connect().await;
    send(&mut open, request("else").as_bytes()).await;
    assert!(!next(&mut open).await.to_lowercase().contains("connection:"));
    let mut idle = served.connect().await;
    served.shutdown.draining.cancel();
    let mut new = served.connect().await;
    for stream in [&mut open, &mut new] {
        send(stream, request("else").as_bytes()).await;
        let answer = next(stream).await.to_lowercase();
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        assert!(is_closed_in_order(stream).await);
    }
    let not_found = served.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.to_lowercase();
    assert!(not_found.contains("\r\nconnection: close\r\n"), "{not_found}");
    assert!(idle.read(&mut [0]).now_or_never().is_none(), "idle connections stay open while draining");
    served.shutdown.closing.cancel();
    assert!(is_closed_in_order(&mut idle).await);
    served.ended.await.unwrap();
}

#[tokio::test]
async fn shutdown_answers_requests_in_flight_and_accepts_no_others() {
    let served = TestServer::start(Limits { concurrency: 1, ..Limits::default() }).await;
    let mut in_flight = served.in_flight().await;
    let mut idle = served.connect().await;
    send(&mut idle, request("else").as_bytes()).await;
    idle.read_exact(&mut [0]).await.unwrap();
    served.shutdown.draining.cancel();
    served.shutdown.closing.cancel();
    // The idle connection is closed immediately, so the server is closing.
    all(&mut idle).await;
    assert!(TcpStream::connect(served.address).await.is_err(), "no new connections are accepted");
    served.release.notify_one();
    let answer = all(&mut in_flight).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("fine"), "{answer}");
    served.ended.await.unwrap();
}
