//! The least of an HTTP client: plain text, loopback, one GET. It asks health endpoints, and nothing else.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

const WITHIN: Duration = Duration::from_secs(2);

/// `Ok` when the answer is 200, else what it was, for a message.
pub(crate) fn is_ok(address: SocketAddr, path: &str) -> Result<(), String> {
    match get(address, path) {
        Ok(answer) if answer.split(' ').nth(1) == Some("200") => Ok(()),
        Ok(answer) => Err(format!("http://{address}{path} answers {:?}", answer.trim())),
        Err(error) => Err(format!("http://{address}{path}: {error}")),
    }
}

/// The whole answer, head and body. HTTP/1.0, so that the body comes in one piece and its end is the end of the connection.
fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, WITHIN)?;
    stream.set_read_timeout(Some(WITHIN))?;
    stream.set_write_timeout(Some(WITHIN))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
