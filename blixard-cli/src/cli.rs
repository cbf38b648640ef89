//! What the command line accepts. Every command has an example in its help.

use clap::{Parser, Subcommand};

use crate::args::Connection;
use crate::commands::{
    chirp, cluster, completion, config, cp, discover, events, exec, image, inspect, kill, logs, man, node,
    port, ps, restart, run, service, stop, system, version, volume, wait,
};

/// Runs containers on a few machines and keeps them running.
#[derive(Debug, Parser)]
#[command(
    name = "blixard",
    version,
    arg_required_else_help = true,
    after_help = "Example:\n  blixard node --id 1 --bind 10.77.0.1:7001    start the first node\n  blixard run web.bun                          run a bundle, from any node\n  blixard ps                                   see every container of the cluster"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(run::Args),
    Config(config::Args),
    Ps(ps::Args),
    Port(port::Args),
    Stop(stop::StopArgs),
    Start(stop::StartArgs),
    Restart(restart::Args),
    Rm(stop::RemoveArgs),
    Logs(logs::Args),
    Exec(exec::Args),
    Cp(cp::Args),
    Kill(kill::Args),
    Wait(wait::Args),
    Inspect(inspect::Args),
    Events(events::Args),
    Service(service::Args),
    Image(image::Args),
    Volume(volume::Args),
    System(system::Args),
    Node(Box<node::Args>),
    Cluster(cluster::Args),
    Chirp(chirp::Args),
    Discover(discover::DiscoverArgs),
    Peer(discover::PeerArgs),
    Version(version::Args),
    Completion(completion::Args),
    Man(man::Args),
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Cli, Command};

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example_and_a_description() {
        fn check(command: &clap::Command, path: &str) -> usize {
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("Example:\n  "), "{path} has no example:\n{help}");
            assert!(command.get_about().is_some(), "{path} has no description");
            1 + command
                .get_subcommands()
                .map(|sub| check(sub, &format!("{path} {}", sub.get_name())))
                .sum::<usize>()
        }
        assert!(check(&Cli::command(), "blixard") > 30);
    }

    #[test]
    fn the_commands_of_the_manual_are_accepted() {
        let check = |line: &str| {
            let parsed = Cli::try_parse_from(line.split_whitespace());
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        };
        check("blixard node --id 1 --bind 10.77.0.1:7001");
        check("blixard node --id 2 --bind 10.77.0.2:7001 --join path/to/node-registry.json --join TICKET");
        check("blixard node --data-dir /d --http 8083 --label a=b --label c=d --name n --containerd private");
        check(
            "blixard node --bootstrap --advertise 1.2.3.4:5 --subnets 10.0.0.0/16 --registries f --log-format json",
        );
        check("blixard node");
        check("blixard cluster status");
        check("blixard node ls");
        check("blixard --data-dir /d node ls -o json");
        check("blixard node ls --data-dir /d");
        check("blixard node drain 2");
        check("blixard node leave 2 --timeout 5");
        check("blixard node drain 2 --timeout 1m30s");
        check("blixard run --timeout 90s web.bun");
        check("blixard cluster token create --uses 1 --expires 1h");
        check("blixard node rm 3 --force");
        check("blixard node activate box2");
        check("blixard node down");
        check("blixard node purge --yes");
        check("blixard run web.bun -d --name N2".to_lowercase().as_str());
        check("blixard run -");
        check("blixard config web.bun");
        check("blixard config -n web -");
        check("blixard ps -a -q -o table");
        check("blixard ps --format json");
        check("blixard service ls");
        check("blixard service inspect web");
        check("blixard service scale web 3");
        check("blixard stop web");
        check("blixard start web");
        check("blixard rm web");
        check("blixard logs -f -n 5 web");
        check("blixard logs --tail all --since 10m --until 2026-11-21T08:30:00Z -t web db");
        check("blixard logs --previous web-0");
        check("blixard logs --attempt 3 web-0");
        check("blixard exec -it 3f2a sh -c ls");
        check("blixard exec web-0 ls -la");
        check("blixard inspect 3f2a");
        check("blixard cp web-0:/etc/hosts .");
        check("blixard kill -s HUP web-0 db");
        check("blixard wait web-0 db");
        check("blixard ps web --filter node=2 --filter status=running --no-trunc --watch");
        check("blixard exec -e HOME -e A=b web-0 env");
        check("blixard port web 80");
        check("blixard port web-0 53/udp");
        check("blixard stop web db 3f2a");
        check("blixard start web db");
        check("blixard restart web web-0 --timeout 30");
        check("blixard node rebalance --dry-run");
        check("blixard rm -f web db");
        check("blixard version --client -o json");
        check("blixard completion bash");
        check("blixard man /tmp/man1");
        check("blixard events -f");
        check("blixard events --since 10m --until 2026-11-21T08:30:00Z --filter service=web");
        check("blixard image import f.tar");
        check("blixard image import --name app:1 -");
        check("blixard image pull nginx");
        check("blixard image pull --timeout 1h nginx");
        check("blixard events --filter node=box2");
        check("blixard image ls");
        check("blixard image rm --force app:1 sha256:0123456");
        check("blixard image prune -o json");
        check("blixard system df");
        check("blixard chirp --timeout 10 -o json --interface eth0");
        check("blixard discover -o json");
        check("blixard peer ls");
        check("blixard node --join mdns --token-file /t --announce off");
        check("blixard node --source exec:/bin/members --announce eth0,wlan0");
        check("blixard volume ls -o json");
        check("blixard volume inspect pgdata");
        check("blixard volume sync pgdata --wait --copies 2 --timeout 5");
        check("blixard volume sync pgdata --accept-deletes");
        check("blixard volume rm pgdata cache");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let check = |line: &str| {
            assert!(Cli::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        };
        check("blixard");
        check("blixard node --id 1 ls");
        check("blixard node lss");
        check("blixard run");
        check("blixard run web.bun --name Not_A_Name");
        check("blixard service scale web -1");
        check("blixard exec web-0");
        check("blixard logs");
        check("blixard logs --tail some web");
        check("blixard logs --since yesterday web");
        check("blixard logs --attempt 3 --previous web");
        check("blixard stop");
        check("blixard rm");
        check("blixard port web http");
        check("blixard completion csh");
        check("blixard events --after x");
        check("blixard run --timeout soon web.bun");
        check("blixard run --timeout -5 web.bun");
    }

    #[test]
    fn options_after_an_exec_target_belong_to_the_program() {
        let cli = Cli::try_parse_from(["blixard", "exec", "web-0", "ls", "-t", "--help"]).unwrap();
        assert!(matches!(cli.command, Command::Exec(_)));
        assert!(format!("{:?}", cli.command).contains("tty: false"));
    }
}
