//! `keelctl service diags`: what whoever looks into a failure wants to have, of all nodes, in one file: a gzipped tar.
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::render::{Answer, table};
use crate::size::{parse_size, show_size};
use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use keelblock_api::admin::CollectDiagsRequest;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// Most bytes of everything, as nodes have it.
const BYTES_MAX: u64 = 64 << 20;
/// Of a tar archive.
const BLOCK: usize = 512;

#[derive(Debug, Args)]
pub struct Diags {
    /// The file, which must not be there yet.
    file: PathBuf,
    /// Most bytes of everything, before it is made smaller; up to 64M, which it is without this.
    #[arg(long, value_parser = parse_size, default_value = "64M", value_name = "SIZE")]
    max: u64,
    /// Only of the node that answers.
    #[arg(long)]
    here: bool,
}

/// Files by node and name, and whether each is whole.
type Files = BTreeMap<(String, String), (Vec<u8>, bool)>;

pub async fn collect(client: &mut Client, args: Diags) -> Result<Answer> {
    let failed = |s: tonic::Status| Failure::from_status("collect diagnostics", &s);
    let request = CollectDiagsRequest {
        here: args.here,
        bytes_max: args.max,
    };
    let stream = client.admin.collect_diags(request).await;
    let mut stream = stream.map_err(failed)?.into_inner();
    let most = match args.max {
        0 => BYTES_MAX,
        most => most.min(BYTES_MAX),
    };
    let (mut files, mut total) = (Files::new(), 0);
    while let Some(part) = stream.message().await.map_err(failed)? {
        total += part.bytes.len() as u64;
        if total > most {
            let why = "the node sends more than it was asked for: is it of another version?";
            return Err(Failure::local("collect diagnostics", why));
        }
        let file = files.entry((part.node_id, part.name)).or_default();
        file.0.extend(part.bytes);
        file.1 |= part.truncated;
    }
    let of_file = |e: io::Error| {
        let hint = match e.kind() {
            io::ErrorKind::AlreadyExists => ": give the name of a file that is not there",
            _ => "",
        };
        Failure::local(
            format!("file {}", args.file.display()),
            format!("{e}{hint}"),
        )
    };
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let opened = options.open(&args.file).map_err(of_file)?;
    let written = pack(opened, &files).and_then(|file| file.sync_all());
    if written.is_err() {
        // Half of one is of no use.
        let _ = fs::remove_file(&args.file);
    }
    written.map_err(of_file)?;
    let size = fs::metadata(&args.file).map_err(of_file)?.len();
    let rows = files.iter().map(|((node, name), (bytes, cut))| {
        let whole = if *cut { "cut off" } else { "" };
        vec![
            node.clone(),
            name.clone(),
            show_size(bytes.len() as u64),
            whole.to_owned(),
        ]
    });
    let text = format!(
        "{}\nEverything is in {} ({}). There are no keys in it, but names of volumes, hosts and addresses.",
        table(&["NODE", "FILE", "SIZE>", ""], rows),
        args.file.display(),
        show_size(size)
    );
    let all: Vec<_> = files
        .iter()
        .map(|((node, name), (bytes, cut))| {
            json!({ "node_id": node, "name": name, "bytes": bytes.len(), "truncated": cut })
        })
        .collect();
    let data = json!({ "file": args.file, "bytes": size, "files": all });
    Ok(Answer::new(data, text))
}

/// Writes the archive.
fn pack<W: Write>(to: W, files: &Files) -> io::Result<W> {
    let mut gz = GzEncoder::new(to, Compression::default());
    for ((node, name), (bytes, _)) in files {
        // Whatever a node calls itself and its files: each is one part of a path, and none leads elsewhere.
        let part = |text: &str| text.replace(['/', '\0'], "_").replace("..", "__");
        let folder = format!("diags/{}", part(node));
        gz.write_all(&header(&folder, &part(name), bytes.len()))?;
        gz.write_all(bytes)?;
        let padding = bytes.len().next_multiple_of(BLOCK) - bytes.len();
        gz.write_all(&[0; BLOCK][..padding])?;
    }
    gz.write_all(&[0; 2 * BLOCK])?;
    gz.finish()
}

/// As many bytes of a text as there is room for.
fn beginning(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The header of a file (POSIX ustar): name at 0, mode at 100, size at 124, checksum at 148, kind at 156, magic at 257, the beginning of a long name at 345.
fn header(folder: &str, name: &str, size: usize) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, beginning(name, 99));
    put(100, "0000600\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    put(345, beginning(folder, 154));
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn tar_reads_what_is_packed() {
        let name = |node: &str, name: &str| (node.to_owned(), name.to_owned());
        let files = Files::from([
            (name("n1", "status.json"), (b"{}".to_vec(), false)),
            (
                name(&"n".repeat(64), "control.log"),
                (vec![b'x'; 1000], true),
            ),
            (name("n1", "empty"), (Vec::new(), false)),
        ]);
        let packed = pack(Vec::new(), &files).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut tar = Command::new("tar")
            .args(["-xzf", "-", "-C"])
            .arg(dir.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("tar is there");
        tar.stdin.take().unwrap().write_all(&packed).unwrap();
        assert!(tar.wait().unwrap().success());
        for ((node, name), (bytes, _)) in &files {
            let path = dir.path().join("diags").join(node).join(name);
            assert_eq!(&fs::read(path).unwrap(), bytes);
        }
    }

    #[test]
    fn whatever_a_node_calls_its_files_fits_a_header() {
        let file = |node: String, name: String| ((node, name), (vec![1_u8], false));
        let files = Files::from([
            file("n".repeat(400), "ü".repeat(200)),
            file("..".into(), "../../etc/passwd".into()),
        ]);
        let packed = pack(Vec::new(), &files).unwrap();
        let listed = Command::new("tar")
            .args(["-tzf", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut listed = listed.expect("tar is there");
        listed.stdin.take().unwrap().write_all(&packed).unwrap();
        let listed = listed.wait_with_output().unwrap();
        assert!(listed.status.success());
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.contains("diags/__/______etc_passwd"), "{listed}");
        assert!(
            listed.lines().count() == 2 && listed.lines().all(|l| l.starts_with("diags/")),
            "{listed}"
        );
    }
}
