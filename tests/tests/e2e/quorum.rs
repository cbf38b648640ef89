//! A cluster without a quorum.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use blixard_core::limits::WRITE_DEADLINE;
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::{image, wait};

#[test]
fn without_a_quorum_reads_answer_and_say_they_may_be_old_and_writes_name_who_is_missing() -> Result<()> {
    Cluster::formed(3)?.check(|cluster| {
        let web = image::web()?;
        cluster.hosts[0].import(&web)?;
        let bundle = Bundle::new("web", &web).replicas(3, 3).port(80, 8080);
        cluster.hosts[0].run(&bundle)?;
        cluster.hosts[1].power_off()?;
        cluster.hosts[2].power_off()?;
        let host = &cluster.hosts[0];
        wait::until("reads to say that they may be old", Duration::from_secs(30), || {
            let output = host.cli_output(&["ps"])?;
            let text = blixard_tests::command::printed(&output);
            ensure!(output.status.success() && text.contains("web-0"), "ps does not answer: {text}");
            wait::ensure(text.contains("old"), format!("nothing is said: {text}"))
        })?;
        let status = host.cli(&["cluster", "status"])?;
        ensure!(status.contains("nothing more"), "it still promises to survive something: {status}");
        let start = Instant::now();
        let drained = host.cli_output(&["node", "drain", "2"])?;
        let (took, text) = (start.elapsed(), blixard_tests::command::printed(&drained));
        ensure!(took < WRITE_DEADLINE + Duration::from_secs(3), "the refusal took {took:?}");
        ensure!(!drained.status.success() && text.contains("node 3"), "{text}");
        let start = Instant::now();
        let text = host.run_refused(&Bundle::new("more", &web), 5)?;
        let took = start.elapsed();
        ensure!(took < WRITE_DEADLINE + Duration::from_secs(2), "the refusal took {took:?}");
        ensure!(
            text.contains("node 2") && text.contains("node 3"),
            "the missing nodes are not named: {text}"
        );
        let start = Instant::now();
        let scaled = host.cli_output(&["service", "scale", "web", "3"])?;
        let (took, text) = (start.elapsed(), blixard_tests::command::printed(&scaled));
        ensure!(took < WRITE_DEADLINE + Duration::from_secs(2), "the refusal took {took:?}");
        ensure!(!scaled.status.success() && text.contains("node 2"), "{text}");
        ensure!(host.get(8080, "/")?.0 == 200, "the container on the node stopped");

        cluster.hosts[1].power_on()?;
        cluster.hosts[1].start(&[])?;
        wait::until("writes to work again", Duration::from_secs(30), || {
            cluster.hosts[0].submit(&Bundle::new("more", &web).replicas(1, 2)).map(drop)
        })?;
        cluster.wait_ready(1, "more", 1, Duration::from_secs(60))?;
        Ok(())
    })
}
