//! Options as they are checked.

use blixard_core::discovery::target::JoinTarget;

use super::{Announce, Containerd, HttpListen, JoinToken, LOG, LogFormat, NodeOptions};

fn options(edit: impl FnOnce(&mut NodeOptions)) -> NodeOptions {
    let mut options = NodeOptions::default();
    edit(&mut options);
    options
}

#[test]
fn nothing_said_gives_the_defaults() {
    let config = NodeOptions::default().check(true).unwrap();
    assert_eq!(config.data_dir.to_str(), Some("/var/lib/blixard"));
    assert_eq!(config.http, HttpListen::Default("127.0.0.1:8082".parse().unwrap()));
    assert_eq!(config.containerd, Containerd::Auto);
    assert_eq!(config.log_format, LogFormat::Text);
    assert_eq!((config.bind, config.id), (None, None));
    let as_user = |id| options(|o| o.id = id).check(false).unwrap().data_dir;
    assert_eq!(as_user(Some(3)).to_str(), Some("./data/node3"));
    assert_eq!(as_user(None).to_str(), Some("./data/node"));
}

#[test]
fn faults_name_the_option_its_value_and_what_to_write() {
    let check = |edit: fn(&mut NodeOptions), expect: &str| {
        let faults = options(edit).check(true).expect_err(expect);
        let text = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(text.contains(expect), "`{expect}` in `{text}`");
    };
    let several =
        |o: &mut NodeOptions| o.join = ["box:99999", "web.json", "bxt1bad"].map(String::from).into();
    check(several, "--join box:99999: not a host and a port");
    check(several, "--join: the ticket");
    check(|o| o.id = Some(0), "--id: `0` is not a node's number");
    check(|o| o.bind = Some("eth0".into()), "--bind: `eth0` is not an address");
    check(|o| o.bind = Some("10.0.0.1:99999".into()), "--bind: `10.0.0.1:99999` is not an address");
    check(|o| o.bind = Some("0.0.0.0:7001".into()), "add --advertise");
    check(|o| o.advertise = vec!["10.0.0.1".into()], "--advertise: `10.0.0.1` is not an address");
    check(|o| o.advertise = vec!["0.0.0.0:1".into()], "cannot be reached");
    check(|o| o.http = Some("http".into()), "neither a port nor an address");
    check(|o| o.labels = vec!["ssd".into()], "--label: `ssd` has no `=`");
    check(|o| o.labels = vec!["node.id=3".into()], "blixard sets itself");
    check(|o| o.labels = vec!["=3".into()], "has a key with characters");
    check(|o| o.subnets = Some("10.0.0.0".into()), "has no prefix length");
    check(|o| o.subnets = Some("10.0.0.0/25".into()), "8 to 24");
    check(|o| o.subnets = Some("10.1.2.3/16".into()), "host bits");
    check(|o| o.containerd = Some("docker".into()), "--containerd: `docker`");
    check(|o| o.log_format = Some("xml".into()), "--log-format: `xml`");
    check(|o| o.log = Some("inf".into()), "--log (BLIXARD_LOG): `inf` has `inf`, which is no level");
    check(|o| o.log = Some("verbose".into()), "which is no level; give error, warn");
    check(|o| o.log = Some("info,blixard_node=loud".into()), "cannot be read");
    check(|o| o.log = Some("blixard=debug".into()), "has `blixard`, which is no module");
    check(|o| o.log = Some("info, debgu".into()), "has `debgu`");
}

#[test]
fn what_is_logged_is_levels_and_modules_with_levels() {
    let check = |log: &str| {
        assert_eq!(options(|o| o.log = Some(log.into())).check(true).map(|c| c.log), Ok(log.to_owned()));
    };
    check("debug");
    check("WARN");
    check("off");
    check("info,blixard_node::raft=debug");
    check("info,openraft=error,blixard_node[span{field=1}]=trace");
    check(LOG);
}

#[test]
fn all_faults_are_reported_at_once() {
    let faults = options(|o| {
        o.id = Some(0);
        o.bind = Some("x".into());
        o.labels = vec!["a".into(), "b".into()];
    })
    .check(true)
    .unwrap_err();
    assert_eq!(faults.len(), 4, "{faults:?}");
}

#[test]
fn good_options_are_taken() {
    let config = options(|o| {
        o.bind = Some("10.77.0.1".into());
        o.http = Some("9000".into());
        o.labels = vec!["disk=ssd".into(), "zone=a=b".into()];
        o.subnets = Some("172.16.0.0/12".into());
        o.containerd = Some("/run/containerd/containerd.sock".into());
    })
    .check(true)
    .unwrap();
    assert_eq!(config.bind, Some("10.77.0.1:7001".parse().unwrap()));
    assert_eq!(config.http, HttpListen::Asked("127.0.0.1:9000".parse().unwrap()));
    assert_eq!(config.labels["zone"], "a=b");
    assert_eq!(config.subnets.prefix, 12);
    let http = |text: &str| options(|o| o.http = Some(text.into())).check(true).unwrap().http;
    assert_eq!(http("off"), HttpListen::Off);
    assert_eq!(http("127.0.0.2:80"), HttpListen::Asked("127.0.0.2:80".parse().unwrap()));
}

#[test]
fn flags_win_over_the_environment() {
    let var = |name: &str| match name {
        "HTTP_PORT" => Some("9001".to_owned()),
        "NAME" => Some("from-env".to_owned()),
        "BLIXARD_DATA_DIR" => Some("/env".to_owned()),
        "BLIXARD_NODE_REGISTRIES" => Some("a.json, b.json,".to_owned()),
        "BLIXARD_LOG" => Some(" ".to_owned()),
        _ => None,
    };
    let mut flags = options(|o| {
        o.name = Some("from-flag".into());
        o.join = vec!["first.json".into()];
    });
    flags.merge_env(var);
    let config = flags.check(true).unwrap();
    assert_eq!(config.name.as_deref(), Some("from-flag"));
    assert_eq!(config.http, HttpListen::Asked("127.0.0.1:9001".parse().unwrap()));
    assert_eq!(config.data_dir.to_str(), Some("/env"));
    assert_eq!(config.join, ["first.json", "a.json", "b.json"].map(|path| JoinTarget::File(path.into())));
    assert_eq!(config.log, LOG);
}

#[test]
fn announcing_is_on_unless_it_is_said_otherwise() {
    let check = |text: Option<&str>, expect: Option<Announce>| {
        let config = options(|o| o.announce = text.map(str::to_owned)).check(true);
        assert_eq!(config.ok().map(|config| config.announce), expect, "{text:?}");
    };
    check(None, Some(Announce::On));
    check(Some("on"), Some(Announce::On));
    check(Some("off"), Some(Announce::Off));
    let named = |names: &[&str]| Announce::Interfaces(names.iter().map(ToString::to_string).collect());
    check(Some("eth0, wlan0"), Some(named(&["eth0", "wlan0"])));
    for wrong in ["", "eth0,,eth1", "a-name-that-is-too-long", "../x", "a b"] {
        check(Some(wrong), None);
    }
}

#[test]
fn a_token_comes_from_the_environment_or_a_file_and_is_never_repeated() {
    let token = format!("{}.{}", "01".repeat(8), "02".repeat(32));
    let from = |text: &str, file: Option<&str>| {
        let mut flags = options(|o| o.token_file = file.map(Into::into));
        flags.merge_env(|name| (name == "BLIXARD_JOIN_TOKEN").then(|| text.to_owned()));
        flags.check(true)
    };
    assert_eq!(from(&token, None).unwrap().token, Some(JoinToken::Given(token.parse().unwrap())));
    assert_eq!(from(&token, Some("/t")).unwrap().token, Some(JoinToken::File("/t".into())));
    for wrong in ["secret", &format!("{token}0"), "bxt1secret"] {
        let faults = from(wrong, None).unwrap_err();
        let said = faults[0].to_string();
        assert!(said.contains("BLIXARD_JOIN_TOKEN") && !said.contains(wrong), "{said}");
    }
    assert_eq!(from("", None).unwrap().token, None);
}

#[test]
fn http_off_loopback_takes_tls() {
    let check = |http: &str, tls: bool, expect: bool| {
        let config = options(|options| {
            options.http = Some(http.into());
            options.http_cert = tls.then(|| "c.pem".into());
            options.http_key = tls.then(|| "k.pem".into());
        });
        let checked = config.check(true);
        assert_eq!(checked.is_ok(), expect, "{http} {tls}: {checked:?}");
        if let Err(faults) = checked {
            assert!(faults[0].to_string().contains("--http-cert"), "{faults:?}");
        }
    };
    for local in ["8083", "127.0.0.1:80", "127.9.9.9:80", "[::1]:80", "[::ffff:127.0.0.1]:80", "off"] {
        check(local, false, true);
        check(local, true, true);
    }
    for open in ["0.0.0.0:80", "[::]:80", "10.77.0.1:8082", "[::ffff:10.0.0.1]:80", "[fe80::1]:80"] {
        check(open, false, false);
        check(open, true, true);
    }
}

#[test]
fn a_certificate_comes_with_its_key() {
    let check = |cert: bool, key: bool, expect: bool| {
        let config = options(|options| {
            options.http_cert = cert.then(|| "c.pem".into());
            options.http_key = key.then(|| "k.pem".into());
        });
        assert_eq!(config.check(true).is_ok(), expect, "{cert} {key}");
    };
    check(true, true, true);
    check(false, false, true);
    check(true, false, false);
    check(false, true, false);
}

#[test]
fn options_survive_every_damage() {
    let check = |name: &str, seed: &str, set: fn(&mut NodeOptions, String)| {
        damage::survives(name, &[seed.as_bytes().to_vec()], |input| {
            let text = String::from_utf8_lossy(input).into_owned();
            let checked = options(|options| set(options, text)).check(true);
            checked.map(drop).map_err(|faults| faults[0].to_string())
        });
    };
    check("--bind", "10.77.0.1:7001", |options, text| options.bind = Some(text));
    check("--http", "127.0.0.1:8082", |options, text| options.http = Some(text));
    check("--label", "disk=ssd", |options, text| options.labels = vec![text]);
    check("--subnets", "10.210.0.0/16", |options, text| options.subnets = Some(text));
    check("--announce", "eth0,wlan0", |options, text| options.announce = Some(text));
    let token = format!("{}.{}", "01".repeat(8), "02".repeat(32));
    check("BLIXARD_JOIN_TOKEN", &token, |options, text| options.join_token = Some(text));
}
