//! Requests to an agent's unix socket.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// What an agent answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is not.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body)
            .with_context(|| format!("the agent answered {:?}, which is not JSON", self.body))
    }

    /// Itself if the status is 2xx.
    ///
    /// # Errors
    /// Otherwise: with the agent's own words.
    pub fn accepted(self) -> Result<Self> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        let told = self.json().unwrap_or_default();
        let part = |name: &str| told.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        if part("error").is_empty() {
            bail!("the agent answered {}: {}", self.status, self.body);
        }
        bail!(
            "the agent answered {}: {} (field {:?}; {})",
            self.status,
            part("error"),
            part("field"),
            part("remedy")
        );
    }
}

/// One request. HTTP/1.0, so that the answer is not chunked and ends with the connection.
pub fn request(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
    let mut stream = open(socket, method, path, body)?;
    stream.set_read_timeout(Some(super::stretched(Duration::from_secs(30))))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("the agent did not answer to the end")?;
    parse(&String::from_utf8_lossy(&answer))
}

/// A request whose answer does not end: the stream, from the first byte of the answer's head.
pub fn open(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Result<UnixStream> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("no agent answers at {}", socket.display()))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: heddle\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    Ok(stream)
}

fn parse(text: &str) -> Result<Answer> {
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("{text:?} is no HTTP answer"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Answer {
        status: status.with_context(|| format!("{head:?} has no HTTP status"))?,
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn an_error_is_told_in_the_agents_words() {
        let answer = parse("HTTP/1.0 403 Forbidden\r\na: b\r\n\r\n{\"error\":\"no such pod\",\"field\":\"name\",\"remedy\":\"add it\"}").unwrap();
        assert_eq!(answer.status, 403);
        let told = answer.accepted().unwrap_err().to_string();
        assert!(told.contains("no such pod") && told.contains("add it"), "{told}");
    }

    #[test]
    fn half_an_answer_is_an_error() {
        assert!(parse("HTTP/1.0 200 OK\r\n").is_err());
        assert!(parse("garbage\r\n\r\n").is_err());
    }
}
