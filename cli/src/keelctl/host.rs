//! `keelctl host …`: attach and detach volumes.
use super::view::VolumeView;
use super::volume::connect_lines;
use crate::client::Client;
use crate::failure::Result;
use crate::render::Answer;
use clap::Subcommand;

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
            client.detach(&volume).await?;
            let view = VolumeView::new(&client.volume(&volume.id).await?);
            let text = format!("Volume {} is detached.", view.name);
            Ok(Answer::new(view, text))
        }
    }
}
