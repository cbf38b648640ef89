//! `blixard inspect`

use std::process::ExitCode;

use blixard_core::api::replica::ReplicaDetail;
use blixard_core::api::service::ServiceDetail;
use http::StatusCode;

use crate::client::{Client, segment};
use crate::failure::{self, Cause};
use crate::render;

/// Show everything known of a container or service, as JSON
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blixard inspect web\n  blixard inspect web-0\n  blixard inspect 3f2a9c")]
pub(crate) struct Args {
    /// A service, a replica such as web-0, or a container id or prefix of at least 4 digits
    #[arg(value_name = "NAME|ID")]
    target: String,
}

pub(crate) async fn inspect(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let target = segment(&args.target);
    match client.get::<ServiceDetail>(&format!("/v1/services/{target}")).await {
        Ok(detail) => render::json(&detail)?,
        Err(error) if failure::cause(&error) == Some(Cause::Refused(StatusCode::NOT_FOUND)) => {
            let detail: ReplicaDetail = client.get(&format!("/v1/replicas/{target}")).await?;
            render::json(&detail)?;
        }
        Err(error) => return Err(error),
    }
    Ok(ExitCode::SUCCESS)
}
