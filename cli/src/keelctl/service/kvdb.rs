//! `keelctl service kvdb …`: the key-value database, its backup and its restore.
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::render::{Answer, facts, table};
use crate::size::show_size;
use crate::time::show_time;
use clap::Subcommand;
use keelblock_api::admin;
use serde_json::json;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes of a message of a restore.
const PART_BYTES: usize = 1 << 20;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Where it is, how it is, and the cluster's generation.
    Status,
    /// Its servers.
    Members,
    /// Write everything of the cluster that is in it into a file. Keys of encrypted volumes are in it as they are there: wrapped by the cluster key.
    Backup {
        /// A file that is not there yet.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Make it what a backup says. All volumes must be detached; what was made since is forgotten, and replicated volumes are not served until
    /// `keelctl volume decide-replicas` says which of their replicas count.
    Restore {
        /// The backup.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// That this is meant.
        #[arg(long)]
        yes: bool,
    },
}

pub async fn run(client: &mut Client, command: Command) -> Result<Answer> {
    match command {
        Command::Status => status(client).await,
        Command::Members => members(client).await,
        Command::Backup { file } => backup(client, &file).await,
        Command::Restore { yes: false, .. } => Err(Failure::Usage(
            "a restore replaces what the cluster knows of its volumes: say --yes if that is meant, and take a backup of how it is before".into(),
        )),
        Command::Restore { file, yes: true } => restore(client, &file).await,
    }
}

async fn look(client: &mut Client) -> Result<admin::KvdbStatusReply> {
    let reply = client.admin.kvdb_status(admin::KvdbStatusRequest {}).await;
    Ok(reply
        .map_err(|s| Failure::from_status("look at the KVDB", &s))?
        .into_inner())
}

async fn status(client: &mut Client) -> Result<Answer> {
    let reply = look(client).await?;
    let kind = match reply.embedded {
        true => "embedded",
        false => "elsewhere",
    };
    let data = json!({
        "endpoints": reply.endpoints, "embedded": reply.embedded, "version": reply.version, "size_bytes": reply.size_bytes,
        "revision": reply.revision, "members": reply.members.len(), "generation": reply.generation, "restoring": reply.restoring,
    });
    let mut text = facts(&[
        ("KVDB", format!("{} ({kind})", reply.endpoints)),
        ("Version", reply.version.clone()),
        ("Size", show_size(reply.size_bytes)),
        ("Revision", reply.revision.to_string()),
        ("Members", reply.members.len().to_string()),
        ("Cluster generation", reply.generation.to_string()),
    ]);
    if !reply.restoring.is_empty() {
        text += &format!("\n{}\n", reply.restoring);
    }
    Ok(Answer::new(data, text))
}

async fn members(client: &mut Client) -> Result<Answer> {
    let reply = look(client).await?;
    let rows = |m: &admin::KvdbMember| {
        let leads = if m.leader { "leader" } else { "" };
        vec![
            m.name.clone(),
            format!("{:x}", m.id),
            m.client_urls.join(" "),
            leads.into(),
        ]
    };
    let data: Vec<_> = reply
        .members
        .iter()
        .map(|m| json!({ "id": format!("{:x}", m.id), "name": m.name, "client_urls": m.client_urls, "leader": m.leader }))
        .collect();
    let text = table(
        &["NAME", "ID", "CLIENTS", "LEADS"],
        reply.members.iter().map(rows),
    );
    Ok(Answer::new(data, text))
}

fn of_file(path: &Path, error: &std::io::Error) -> Failure {
    let hint = match error.kind() {
        ErrorKind::AlreadyExists => ": give the name of a file that is not there",
        _ => "",
    };
    Failure::local(format!("file {}", path.display()), format!("{error}{hint}"))
}

async fn backup(client: &mut Client, file: &Path) -> Result<Answer> {
    let request = admin::BackupKvdbRequest {};
    let failed = |s: tonic::Status| Failure::from_status("back the KVDB up", &s);
    let mut parts = client
        .admin
        .backup_kvdb(request)
        .await
        .map_err(failed)?
        .into_inner();
    let mut bytes = Vec::new();
    while let Some(part) = parts.message().await.map_err(failed)? {
        bytes.extend_from_slice(&part.bytes);
    }
    // Nobody but its owner reads it: it has the keys of encrypted volumes, if wrapped ones.
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let written = options.open(file).and_then(|mut opened| {
        let written = opened.write_all(&bytes).and_then(|()| opened.sync_all());
        if written.is_err() {
            // Half of one is of no use; if it cannot be deleted either, its checksum tells.
            let _ = fs::remove_file(file);
        }
        written
    });
    written.map_err(|e| of_file(file, &e))?;
    let data = json!({ "file": file, "bytes": bytes.len() });
    let text = format!(
        "The KVDB is in {} ({}).",
        file.display(),
        show_size(bytes.len() as u64)
    );
    Ok(Answer::new(data, text))
}

async fn restore(client: &mut Client, file: &Path) -> Result<Answer> {
    let bytes = fs::read(file).map_err(|e| of_file(file, &e))?;
    let parts: Vec<_> = bytes
        .chunks(PART_BYTES)
        .map(|part| admin::KvdbPart {
            bytes: part.to_vec(),
        })
        .collect();
    let reply = client.admin.restore_kvdb(tokio_stream::iter(parts)).await;
    let reply = reply
        .map_err(|s| Failure::from_status("restore the KVDB", &s))?
        .into_inner();
    let data = json!({
        "generation": reply.generation, "put": reply.put, "deleted": reply.deleted, "taken_unix_ms": reply.taken_unix_ms,
        "unverified": reply.unverified,
    });
    let mut text = format!(
        "The KVDB is as it was at {} UTC ({} keys put, {} deleted); the cluster is of generation {} now.",
        show_time(reply.taken_unix_ms),
        reply.put,
        reply.deleted,
        reply.generation
    );
    if !reply.unverified.is_empty() {
        text += &format!(
            "\nNobody knows which replicas of these volumes have everything, so they are not served until you say so with `keelctl volume decide-replicas VOLUME --node NODE …`:\n  {}",
            reply.unverified.join("\n  ")
        );
    }
    Ok(Answer::new(data, text))
}
