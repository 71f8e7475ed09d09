//! How `keelblock node stop|start` reaches the running `up` of a data directory: a Unix socket in it, one line of JSON each way.
use crate::failure::{Failure, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// Longest line that either side takes.
const LINE_LIMIT: u64 = 64 << 10;
/// How long a caller may take to say what it wants.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// How long a node may take to stop or to serve again, as seen by the caller.
const ANSWER_LIMIT: Duration = Duration::from_secs(90);

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Id of the node.
    pub node: String,
    /// Whether it shall run.
    pub run: bool,
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reply {
    /// Whether it was done.
    pub done: bool,
    /// For the person who asked.
    pub said: String,
}

/// The side of `up`.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Listens at `path`. The caller holds the data directory's lock, so what is there is a leftover.
    pub fn bind(path: &Path) -> Result<Server> {
        let what = || format!("listen on {}", path.display());
        let _ = std::fs::remove_file(path);
        let listener = through_directory(path, |short| UnixListener::bind(short));
        let listener = listener.map_err(|e| Failure::local(what(), super::layout::advice(&e)))?;
        Ok(Server {
            listener,
            path: path.into(),
        })
    }

    /// The next request, and where its answer goes. One that says nothing sensible is dropped. May be cancelled.
    pub async fn next(&self) -> (Request, UnixStream) {
        loop {
            let Ok((mut stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(ASK_LIMIT).await;
                continue;
            };
            if let Ok(Ok(request)) = tokio::time::timeout(ASK_LIMIT, read_line(&mut stream)).await {
                return (request, stream);
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Answers a request. A caller that has gone is not an error.
pub async fn answer(mut stream: UnixStream, reply: &Reply) {
    let _ = stream.write_all(&line(reply)).await;
}

/// Asks the `up` that runs on the data directory `data`.
pub async fn ask(data: &Path, request: &Request) -> Result<Reply> {
    let what = format!(
        "{} node {}",
        if request.run { "start" } else { "stop" },
        request.node
    );
    let path = data.join("up.sock");
    let mut stream = through_directory(&path, std::os::unix::net::UnixStream::connect)
        .and_then(|s| s.set_nonblocking(true).map(|()| s))
        .and_then(UnixStream::from_std)
        .map_err(|e| {
            let why = format!(
                "no `keelblock up` runs on {} ({e}). --data names its directory",
                data.display()
            );
            Failure::local(what.clone(), why)
        })?;
    stream
        .write_all(&line(request))
        .await
        .map_err(|e| Failure::local(what.clone(), e))?;
    match tokio::time::timeout(ANSWER_LIMIT, read_line(&mut stream)).await {
        Ok(reply) => {
            reply.map_err(|e| Failure::local(what, format!("`keelblock up` did not answer: {e}")))
        }
        Err(_) => Err(Failure::local(
            what,
            format!("no answer within {} s", ANSWER_LIMIT.as_secs()),
        )),
    }
}

async fn read_line<T: serde::de::DeserializeOwned>(stream: &mut UnixStream) -> std::io::Result<T> {
    let mut text = String::new();
    BufReader::new(stream.take(LINE_LIMIT))
        .read_line(&mut text)
        .await?;
    serde_json::from_str(&text).map_err(Into::into)
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec(value).expect("our own structs serialize");
    text.push(b'\n');
    text
}

/// Does something with a socket's path by way of its opened directory: names of sockets are limited to 107 bytes, paths of
/// directories are not.
fn through_directory<T>(
    path: &Path,
    act: impl FnOnce(PathBuf) -> std::io::Result<T>,
) -> std::io::Result<T> {
    let dir = File::open(path.parent().unwrap_or(Path::new(".")))?;
    let name = path.file_name().unwrap_or_default();
    act(Path::new("/proc/self/fd")
        .join(dir.as_raw_fd().to_string())
        .join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn asked_and_answered_in_a_deep_directory() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir
            .path()
            .join("a-directory-with-quite-a-long-name/".repeat(5));
        std::fs::create_dir_all(&deep).unwrap();
        let server = Server::bind(&deep.join("up.sock")).unwrap();
        let serve = async {
            let (request, stream) = server.next().await;
            answer(
                stream,
                &Reply {
                    done: !request.run,
                    said: request.node,
                },
            )
            .await;
        };
        let request = Request {
            node: "node-1".into(),
            run: false,
        };
        let (reply, ()) = tokio::join!(ask(&deep, &request), serve);
        let reply = reply.unwrap();
        assert!(reply.done && reply.said == "node-1");
    }

    #[tokio::test]
    async fn nobody_there_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let request = Request {
            node: "node-1".into(),
            run: true,
        };
        assert!(
            ask(dir.path(), &request)
                .await
                .unwrap_err()
                .to_string()
                .contains("no `keelblock up` runs")
        );
    }
}
