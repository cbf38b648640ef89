//! A private containerd in a temporary directory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tonic::transport::Channel;

/// A running containerd; stopped when dropped.
pub struct TestContainerd {
    child: Child,
    dir: TempDir,
    pub channel: Channel,
}

impl TestContainerd {
    pub async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("bx-ctd").tempdir().expect("temporary directory");
        let config = dir.path().join("config.toml");
        let at = |name: &str| dir.path().join(name).display().to_string();
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.snapshotter.v1.aufs\", \
             \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.devmapper\", \
             \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.tracing.processor.v1.otlp\", \
             \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\n  address = {:?}\n[ttrpc]\n  address = {:?}\n",
            at("root"),
            at("state"),
            at("c.sock"),
            at("t.sock"),
        );
        std::fs::write(&config, text).expect("write config");
        let log = std::fs::File::create(dir.path().join("log")).expect("log file");
        let child = Command::new("containerd")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("containerd starts: install the package containerd");
        let socket = dir.path().join("c.sock");
        let mut channel = None;
        super::wait_until("containerd answers", async || {
            let Ok(connected) = containerd_client::connect(&socket).await else { return false };
            let client = containerd_client::Client::from(connected.clone());
            let answers = client.version().version(()).await.is_ok();
            channel = Some(connected);
            answers
        })
        .await;
        Self { child, channel: channel.expect("connected"), dir }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("c.sock")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for TestContainerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
