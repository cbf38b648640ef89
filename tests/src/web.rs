//! A web server on a test's LAN that gives files.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::http::get;
use crate::lan::Lan;
use crate::{process, wait};

const PORT: u16 = 8000;

/// busybox's httpd at 10.77.0.254:8000; stopped when dropped.
#[derive(Debug)]
pub struct Web {
    mark: String,
}

impl Web {
    /// Gives what is in `directory`.
    ///
    /// # Errors
    /// When Debian's busybox-static is not installed or does not answer.
    pub fn start(lan: &Arc<Lan>, directory: &Path) -> Result<Self> {
        let mark = format!("{}-web", lan.namespace());
        let address = format!("{}:{PORT}", Lan::gateway());
        Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", lan.namespace()))
            .args(["busybox", "httpd", "-f", "-p", &address, "-h"])
            .arg(directory)
            .env(process::MARK, &mark)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start nsenter")?;
        let web = Self { mark };
        wait::until("the web server to answer", Duration::from_secs(10), || {
            get(lan.namespace(), (Lan::gateway(), PORT).into(), "/")
        })
        .context("is the Debian package busybox-static installed?")?;
        Ok(web)
    }

    /// The URL of a file.
    pub fn url(&self, file: &str) -> String {
        format!("http://{}:{PORT}/{file}", Lan::gateway())
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        process::power_off(&self.mark);
    }
}
