//! Compose files: how they are told from bundles, and the bundles that are drafted of them.

use std::fs;
use std::path::Path;

use super::{read, shown};

/// The draft of a Compose file's one service, which has `image: a` and `lines` besides.
fn draft(lines: &str) -> String {
    let lines: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    let parsed = read(format!("services:\n  web:\n    image: a\n{lines}"));
    let [draft] = parsed.drafts.as_slice() else { panic!("{}", shown(&parsed)) };
    draft.text.clone()
}

/// Checks what stands in a draft behind its image, and that it is a bundle.
fn check(lines: &str, expect: &[&str]) {
    let text = draft(lines);
    let found: Vec<&str> = text.lines().skip(3).collect();
    assert_eq!(found, expect, "{lines}\n{text}");
    let parsed = read(&text);
    assert!(parsed.spec.is_some(), "{}", shown(&parsed));
    assert!(!shown(&parsed).contains("unknown"), "{}", shown(&parsed));
}

#[test]
fn the_drafts_of_a_compose_file_are_bundles() {
    let compose = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/bundles/compose.bun"));
    let drafts = read(compose.unwrap()).drafts;
    assert_eq!(drafts.len(), 2);
    for draft in drafts {
        let parsed = read(draft.text.replace("db.env", "app.env"));
        assert!(parsed.spec.is_some(), "{}", shown(&parsed));
    }
}

#[test]
fn a_compose_file_is_told_in_every_form() {
    let check = |text: &str, holds: &str, drafts: &[&str]| {
        let parsed = read(text);
        let [fault] = parsed.diagnostics.as_slice() else { panic!("{}", shown(&parsed)) };
        assert_eq!(fault.message, format!("this is a Compose file, not a bundle: it holds {holds}"));
        let files: Vec<_> = parsed.drafts.iter().map(|draft| draft.file.as_str()).collect();
        assert_eq!(files, drafts, "{text}");
    };
    check("services: {web: {image: nginx}}", "1 service (web)", &["web.bun"]);
    check("version: '3'\nservices: {a: {image: x}, b: {build: .}}", "2 services (a, b)", &["a.bun", "b.bun"]);
    check("name: x\nservices: {}\nvolumes: {}", "no services", &[]);
    // The oldest form has services and nothing else.
    check("web: {image: nginx}\ndb: {build: ./db}", "2 services (web, db)", &["web.bun", "db.bun"]);
    check("x-log: &log {driver: none}\nweb: {image: nginx}", "1 service (web)", &["web.bun"]);
    // A bundle that lacks its image is a bundle.
    for bundle in ["version: '1.0'\nweb: {image: nginx}", "resources: {memory: 1Gi}"] {
        assert!(shown(&read(bundle)).contains("`image` is missing"), "{bundle}");
    }
}

#[test]
fn what_processes_may_do_is_taken_over() {
    check(
        "read_only: true\nuser: 1000:1000\ncap_drop: [ALL]\ncap_add: [cap_net_raw]",
        &[
            "security:",
            "  read_only: true",
            "  user: \"1000:1000\"",
            "  cap_drop: [ALL]",
            "  cap_add: [NET_RAW]",
        ],
    );
    check(
        "read_only: false\nsecurity_opt: [no-new-privileges:true]",
        &["security:", "  no_new_privileges: true"],
    );
    check(
        "security_opt: [no-new-privileges, 'seccomp:unconfined']",
        &[
            "security:",
            "  no_new_privileges: true",
            "# not taken over: security_opt: `seccomp:unconfined`: a bundle has nothing like it",
        ],
    );
    check("security_opt: [no-new-privileges=false]", &[]);
    check(
        "cap_add: [ALL]\nuser: a b",
        &[
            "# not taken over: user: takes a user as NAME, UID, or either with :GROUP, not \"a b\"; for example 1000, www-data or 1000:1000",
            "# not taken over: cap_add: takes capabilities, not `ALL`; capabilities(7) lists them; for example NET_RAW",
        ],
    );
}

#[test]
fn what_a_container_may_use_is_taken_over() {
    check(
        "mem_limit: 512m\nmemswap_limit: 1g",
        &["resources:", "  memory_limit: 512MiB", "  memory_swap: 1GiB"],
    );
    check(
        "mem_limit: 512m\nmemswap_limit: -1",
        &["resources:", "  memory_limit: 512MiB", "  memory_swap: -1"],
    );
    check(
        "memswap_limit: 1g",
        &["# not taken over: memswap_limit: memory_swap needs a memory_limit beside it"],
    );
    check(
        "deploy: {resources: {limits: {pids: 50}, reservations: {devices: []}}}",
        &[
            "resources:",
            "  pids_limit: 50",
            "# not taken over: deploy.resources.reservations.devices: a bundle has nothing like it",
        ],
    );
}

#[test]
fn how_it_is_deployed_is_taken_over_or_told() {
    check(
        "restart: always\ndeploy: {restart_policy: {condition: on-failure, max_attempts: 3}}",
        &["restart_policy: {name: on-failure, maximum_retry_count: 3}"],
    );
    check("deploy: {restart_policy: {condition: none}}", &["restart_policy: {name: no}"]);
    check(
        "deploy: {restart_policy: {delay: 5s, max_attempts: 2, window: 1m}}",
        &[
            "restart_policy: {name: always}",
            "# not taken over: deploy.restart_policy.max_attempts: they are counted with on-failure alone",
            "# not taken over: deploy.restart_policy.delay: starts wait 1, 2, 4 s and so on up to 5 min",
            "# not taken over: deploy.restart_policy.window: a run of 10 s forgives the failures before it",
        ],
    );
    check(
        "deploy:\n  placement:\n    constraints: [node.hostname==box1, node.labels.disk != hdd, node.platform.arch==x86_64, node.role==manager]\n    preferences: [{spread: node.labels.zone}, {spread: node.labels.rack}]\n    max_replicas_per_node: 1",
        &[
            "placement:",
            "  constraints: [node.name==box1, disk!=hdd, node.arch==amd64]",
            "  spread: zone",
            "# not taken over: deploy.placement.constraints: `node.role==manager`: write a label that `blixard node --label` gives, or node.name, node.arch, node.os",
            "# not taken over: deploy.placement.preferences: replicas are spread over one label",
            "# not taken over: deploy.placement.max_replicas_per_node: there is no such bound; replicas are spread over the nodes",
        ],
    );
    check(
        "deploy: {mode: global, labels: {a: b}, update_config: {parallelism: 2}, endpoint_mode: vip}",
        &[
            "# not taken over: deploy.mode: a replica on every node: write replicas: {min: N} for N nodes",
            "# not taken over: deploy.labels: a bundle has nothing like it",
            "# not taken over: deploy.update_config: an update replaces one replica after another; min_healthy_time says how long one must run",
            "# not taken over: deploy.endpoint_mode: a bundle has nothing like it",
        ],
    );
    check("deploy: {mode: replicated, replicas: 2}", &["replicas: {min: 2}"]);
    check("scale: 0", &["# not taken over: replicas: takes a whole number from 1 to 1000, not `0`"]);
}

#[test]
fn a_dollar_that_compose_escapes_is_one() {
    check("entrypoint: [sh, -c, 'echo $$HOME $$$$ 5$']", &["  command: [sh, \"-c\", \"echo $HOME $$ 5$\"]"]);
    check("entrypoint: 'echo $$1'", &["  command: [echo, \"$1\"]"]);
    check(
        "environment: {PRICE: 5$$, HASH: $$2y$$10}",
        &["environment:", "  PRICE: \"5$\"", "  HASH: \"$2y$10\""],
    );
    check("environment: ['A=$$B']", &["environment:", "  A: \"$B\""]);
    check(
        "command: 'run ${MODE:-fast} $$X'",
        &[
            "  # Replaces the image's ENTRYPOINT too: write that before it, if it has one.",
            "  command: [run, \"${MODE:-fast}\", \"$X\"]",
            "# not taken over: command: `${MODE:-fast}` is not replaced: put what it stands for there",
        ],
    );
    check(
        "environment: {A: $B}",
        &[
            "environment:",
            "  A: \"$B\"",
            "# not taken over: environment: `$B` is not replaced: put what it stands for there",
        ],
    );
}

#[test]
fn a_port_is_not_published_wider_than_it_was() {
    let port = |written: &str, expect: &str| check(&format!("ports: [{written}]"), &["ports:", expect]);
    port("'127.0.0.1:81:80'", "  - {container_port: 80, host_port: 81, host_ip: 127.0.0.1}");
    port(
        "'localhost:82:82/udp'",
        "  - {container_port: 82, host_port: 82, protocol: udp, host_ip: 127.0.0.1}",
    );
    port(
        "{target: 80, published: '81', host_ip: localhost}",
        "  - {container_port: 80, host_port: 81, host_ip: 127.0.0.1}",
    );
    port("'0.0.0.0:81:80'", "  - {container_port: 80, host_port: 81}");
    port("{target: 80, published: 81, mode: host}", "  - {container_port: 80, host_port: 81, publish: node}");
    port("{target: 80, published: 81, mode: ingress}", "  - {container_port: 80, host_port: 81}");
    port("{target: 80, mode: host}", "  - {container_port: 80}");
    let none = |written: &str, why: &str| {
        check(&format!("ports: [{written}]"), &[&format!("# not taken over: ports: {why}")]);
    };
    let ipv6 = "takes an IPv4 address, not `::1`; published ports do not answer on IPv6";
    none("'[::1]:6001:6001'", &format!("`[::1]:6001:6001` {ipv6}"));
    none("{target: 80, published: 81, host_ip: '::1'}", &format!("`::1:81:80` {ipv6}"));
    none("'box1:81:80'", "`box1:81:80` takes an IPv4 address such as 127.0.0.1, not `box1`");
    none("'127.0.0.1::80'", "`127.0.0.1::80` has an address of the host and no port of it: write host_port");
    none("'${P}:80'", "`${P}:80` holds a variable, which is not replaced: write the numbers");
    none("'${P:-8080}:80'", "`${P:-8080}:80` holds a variable, which is not replaced: write the numbers");
    none("'70000:80'", "`70000:80` takes a whole number from 1 to 65535, not `70000`");
    none("'-1:80'", "`-1:80` takes a whole number from 1 to 65535, not `-1`");
    none("8000-8010:80", "`8000-8010:80` is a range: write each port by itself");
    none("'80:80/sctp'", "`80:80` is of `sctp`: tcp and udp are what there is");
}

#[test]
fn on_the_hosts_network_ports_are_not_mapped() {
    let port = |written: &str, expect: &[&str]| {
        let expect: Vec<&str> = ["ports:"].iter().chain(expect).copied().collect();
        check(&format!("network_mode: host\nports: [{written}]"), &expect);
    };
    let unmapped = |shown: &str| {
        format!(
            "# not taken over: ports: `{shown}` maps nothing on the host's network, as Docker ignores it there: the program says where it listens"
        )
    };
    let host = "network: host";
    port("80, '443:443'", &["  - {container_port: 80}", "  - {container_port: 443}", host]);
    port("'8443:443'", &["  - {container_port: 443}", host, &unmapped("8443:443")]);
    port(
        "'127.0.0.1:53:53/udp'",
        &["  - {container_port: 53, protocol: udp}", host, &unmapped("127.0.0.1:53:53")],
    );
    port("'[::1]:81:80'", &["  - {container_port: 80}", host, &unmapped("[::1]:81:80")]);
    port("'${P}:80'", &["  - {container_port: 80}", host, &unmapped("${P}:80")]);
    port("{target: 80, published: 80, mode: host}", &["  - {container_port: 80}", host, &unmapped("80:80")]);
    port(
        "{target: 80, published: 81, host_ip: 10.0.0.1}",
        &["  - {container_port: 80}", host, &unmapped("10.0.0.1:81:80")],
    );
    port("'81:80', '82:80'", &["  - {container_port: 80}", host, &unmapped("81:80"), &unmapped("82:80")]);
}

#[test]
fn merge_keys_say_what_they_stand_for() {
    let parsed = read(
        "x-common: &common\n  image: a\n  restart: always\n  environment: &env {A: '1', B: '2'}\nservices:\n  web:\n    <<: *common\n    environment:\n      <<: [*env, {C: '3'}]\n      A: own\n  odd: {image: a, <<: words}\n",
    );
    let [web, odd] = parsed.drafts.as_slice() else { panic!("{}", shown(&parsed)) };
    let expect = "version: \"1.0\"\nimage:\n  docker_image: a\nenvironment:\n  A: own\n  B: \"2\"\n  C: \"3\"\nrestart_policy: {name: always}\n";
    assert_eq!(web.text, expect);
    assert!(odd.text.ends_with("# not taken over: <<: write out here what it stands for\n"), "{}", odd.text);
    // The oldest form has its services by them too.
    let oldest = read("x-a: &a {image: a}\nweb: {<<: *a, restart: always}\n");
    assert!(oldest.drafts[0].text.contains("docker_image: a"), "{}", shown(&oldest));
}

#[test]
fn what_a_draft_leaves_out_is_told_in_its_words() {
    check(
        "volumes: ['$HOME/x:/x', '~/x:/x', '/x']",
        &[
            "# not taken over: volumes: `$HOME` is not replaced: put what it stands for there",
            "# not taken over: volumes: `$HOME/x` holds a variable, which is not replaced: write the path",
            "# not taken over: volumes: `~/x` has no meaning on another machine: write the absolute path",
            "# not taken over: volumes: `/x` has no name: write one, and the cluster keeps it as a volume",
        ],
    );
    check(
        "volumes: [{type: tmpfs, target: /x}, {type: volume, source: data, target: /y}]",
        &[
            "volumes:",
            "  - {source: data, target: /y}",
            "# not taken over: volumes: one of type `tmpfs`: a bundle has nothing like it",
        ],
    );
    check("network_mode: bridge\nx-note: {a: b}", &[]);
    check(
        "container_name: web",
        &[
            "# not taken over: container_name: containers are called by their service: NAME-0, NAME-1 and so on",
        ],
    );
    check("depends_on: [db]", &["depends_on: [db]"]);
    check(
        "depends_on: {db: {condition: service_completed_successfully, required: false}, cache: }",
        &[
            "depends_on: [db, cache]",
            "# not taken over: depends_on.db.condition: it must run, and be healthy where it has a healthcheck, or have ended with code 0",
            "# not taken over: depends_on.db.required: a bundle has nothing like it",
        ],
    );
    check(
        "extends: {service: b}\ncpu_quota: 50000\ntmpfs: /run",
        &[
            "# not taken over: extends: write out here what it stands for",
            "# not taken over: cpu_quota: write resources: {cpu_quota: N}, microseconds for each 100 ms",
            "# not taken over: tmpfs: a bundle has nothing like it",
        ],
    );
}
