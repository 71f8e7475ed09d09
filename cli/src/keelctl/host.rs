//! `keelctl host …`: attach and detach volumes.
use super::view::VolumeView;
use super::volume::connect_lines;
use crate::client::{Client, Volume};
use crate::failure::{Failure, Result};
use crate::render::Answer;
use clap::Subcommand;
use keelblock_api::openstorage as sdk;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Attach a volume, so that hosts can connect to it.
    Attach {
        /// Name or id.
        volume: String,
        /// Export it as a further namespace of this volume's subsystem instead of in a subsystem of its own.
        #[arg(long, value_name = "VOLUME")]
        with: Option<String>,
    },
    /// Detach a volume: hosts that are connected lose it.
    Detach {
        /// Name or id.
        volume: String,
    },
}

pub async fn run(client: &mut Client, command: Command) -> Result<Answer> {
    match command {
        Command::Attach { volume, with } => {
            let volume = client.volume(&volume).await?;
            let with = match with {
                Some(name) => Some(client.volume(&name).await?.id),
                None => None,
            };
            client.attach(&volume, with.as_deref()).await?;
            let info = client.connection(&volume.id).await?;
            let view = VolumeView::new(&client.volume(&volume.id).await?);
            let text = format!(
                "Volume {} is attached as namespace {}.\n{}",
                view.name,
                info.nsid,
                connect_lines(&info)
            );
            Ok(Answer::new(view, text))
        }
        Command::Detach { volume } => {
            let volume = client.volume(&volume).await?;
            detach_volume(client, &volume).await?;
            let view = VolumeView::new(&client.volume(&volume.id).await?);
            let text = format!("Volume {} is detached.", view.name);
            Ok(Answer::new(view, text))
        }
    }
}

/// Detaches a volume, whoever uses it.
pub async fn detach_volume(client: &mut Client, volume: &Volume) -> Result<()> {
    let request = sdk::SdkVolumeDetachRequest {
        volume_id: volume.id.clone(),
        ..Default::default()
    };
    let reply = client.attach.detach(request).await;
    reply.map_err(|s| Failure::from_status(format!("detach volume {}", volume.name), &s))?;
    Ok(())
}
