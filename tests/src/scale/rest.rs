//! The SDK by way of its REST gateway, over one connection: what a call takes without a program being started for it.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longer than any call may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A connection.
#[derive(Debug)]
pub struct Rest {
    address: SocketAddr,
    stream: BufReader<TcpStream>,
}

impl Rest {
    /// Connects.
    ///
    /// # Errors
    /// It cannot.
    pub fn connect(address: SocketAddr) -> Result<Self, String> {
        let connect = || {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(ANSWER_LIMIT))?;
            Ok(stream)
        };
        let stream = connect().map_err(|e: std::io::Error| format!("{address}: {e}"))?;
        Ok(Self {
            address,
            stream: BufReader::new(stream),
        })
    }

    /// Calls a method, and gives what it answers.
    ///
    /// # Errors
    /// The connection ends, or the answer is not 200.
    pub fn call(&mut self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let (status, body) = self
            .exchange(method, path, &body.to_string())
            .map_err(|e| format!("{method} {path}: {e}"))?;
        let text = String::from_utf8_lossy(&body).into_owned();
        match status.contains(" 200 ") {
            true => {
                serde_json::from_str(&text).map_err(|e| format!("{method} {path}: {e}: {text}"))
            }
            false => Err(format!("{method} {path}: {status}: {text}")),
        }
    }

    fn exchange(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
    ) -> std::io::Result<(String, Vec<u8>)> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (mut status, mut bytes) = (String::new(), None);
        self.stream.read_line(&mut status)?;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            if name.eq_ignore_ascii_case("content-length") {
                bytes = value.trim().parse::<usize>().ok();
            }
        }
        let bytes = bytes.ok_or(std::io::ErrorKind::InvalidData)?;
        let mut body = vec![0; bytes];
        self.stream.read_exact(&mut body)?;
        Ok((status.trim().to_owned() + " ", body))
    }
}
