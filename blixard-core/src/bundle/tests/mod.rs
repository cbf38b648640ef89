//! Whole bundles: the golden files of `testdata/bundles`, the examples, and what holds of any text.

mod compose;
mod generate;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use self::generate::{fragments, sent, specs};
use super::*;
use crate::cluster::snapshot::encoded_len;
use crate::limits::SPEC_BYTES_MAX;
use crate::limits::{BUNDLE_BYTES_MAX, BUNDLE_DEPTH_MAX, BUNDLE_FAULTS_MAX, BUNDLE_NODES_MAX};
use crate::spec::*;

/// Set to write the expected files anew instead of comparing with them.
const UPDATE: &str = "BLIXARD_UPDATE_GOLDEN";

fn read(source: impl AsRef<[u8]>) -> Parsed {
    let env_files = |path: &str| match path {
        "app.env" => Ok("# Shared settings.\nTOKEN=abc=def\n\n  REGION=eu \nLOG_LEVEL=debug\n".to_owned()),
        "bad.env" => Ok("GOOD=1\nexport BAD=2\nQUOTED=\"x\"\nalone\n".to_owned()),
        _ => Err("no such file".to_owned()),
    };
    let context = Context {
        file_name: "test.bun",
        name: None,
        default_name: Some("test"),
        base_dir: Some("/srv/bundles"),
        env_files: &env_files,
    };
    parse(source.as_ref(), &context)
}

fn shown(parsed: &Parsed) -> String {
    let mut text: String = parsed.diagnostics.iter().map(|fault| format!("{fault}\n")).collect();
    for draft in &parsed.drafts {
        text.push_str(&format!("--- {}\n{}", draft.file, draft.text));
    }
    if let Some(spec) = &parsed.spec {
        text.push_str(&format!("---\n{}", to_bundle(spec)));
    }
    text
}

fn spec(source: &str) -> ServiceSpec {
    let parsed = read(source);
    parsed.spec.clone().unwrap_or_else(|| panic!("{source}\n{}", shown(&parsed)))
}

fn files(directory: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let entries = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|end| end == "bun")).collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no bundles", directory.display());
    files
}

#[test]
fn bundles_read_as_their_golden_files_say() {
    for path in files("testdata/bundles") {
        let got = shown(&read(fs::read(&path).unwrap()));
        let expected = path.with_extension("txt");
        if std::env::var_os(UPDATE).is_some() {
            fs::write(&expected, got).unwrap();
            continue;
        }
        let expect = fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(got, expect, "{}: set {UPDATE}=1 if that is right", path.display());
    }
}

#[test]
fn every_example_is_without_errors_and_reads_back_as_printed() {
    for path in files("../examples") {
        let parsed = read(fs::read(&path).unwrap());
        let spec = parsed.spec.clone().unwrap_or_else(|| panic!("{}\n{}", path.display(), shown(&parsed)));
        assert_eq!(read(to_bundle(&spec)).spec, Some(spec));
    }
}

#[test]
fn every_block_of_the_reference_is_as_valid_as_it_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/bundle.md");
    let text = fs::read_to_string(path).unwrap();
    let blocks: Vec<&str> =
        text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() > 10);
    for block in blocks {
        let whole = if block.contains("image:") {
            block.to_owned()
        } else {
            format!("{block}image: {{docker_image: a}}\n")
        };
        let ports = if whole.contains("healthcheck:") && !whole.contains("ports:") {
            "ports: [{container_port: 80}]\n"
        } else {
            ""
        };
        let parsed = read(format!("{whole}{ports}"));
        assert!(parsed.spec.is_some(), "{}", shown(&parsed));
        assert!(
            parsed.diagnostics.iter().all(|fault| !fault.message.contains("unknown")),
            "{}",
            shown(&parsed)
        );
    }
}

#[test]
fn values_mean_what_other_readers_of_yaml_might_take_otherwise() {
    let check = |line: &str, has: fn(&ServiceSpec) -> bool| {
        let spec = spec(&format!("image: {{docker_image: a}}\n{line}\n"));
        assert!(has(&spec), "{line}: {spec:?}");
    };
    let no = |spec: &ServiceSpec| spec.restart.policy == RestartPolicy::Never;
    check("version: 1.0", |_| true);
    check("version: \"1.0\"", |_| true);
    check("restart_policy: {name: no}", no);
    check("", |s| s.restart.policy == RestartPolicy::Unsaid);
    check("min_healthy_time: 0s", |s| s.min_healthy_ms == Some(0));
    check("min_healthy_time: 1m30s", |s| s.min_healthy_ms == Some(90_000));
    check("min_healthy_time: 5s", |s| s.min_healthy_ms.is_none());
    check("security: {read_only: true, user: \"1000:1000\"}", |s| {
        s.security.read_only
            && !s.security.no_new_privileges
            && s.security.user.as_deref() == Some("1000:1000")
    });
    check("security: {cap_drop: [all], cap_add: [cap_net_raw, CHOWN, chown]}", |s| {
        s.security.cap_drop == ["ALL"] && s.security.cap_add == ["NET_RAW", "CHOWN"]
    });
    check("restart_policy: {name: \"no\"}", no);
    check("restart_policy: {name: false}", no);
    check("restart_policy: {name: on-failure, maximum_retry_count: 0}", |s| {
        s.restart.maximum_retry_count.is_none()
    });
    check("environment: {DEBUG: yes, N: 010, F: 1.10, E: ''}", |s| {
        s.environment.values().map(String::as_str).eq(["yes", "", "1.10", "010"])
    });
    check("environment: [A=b=c, B=]", |s| s.environment["A"] == "b=c" && s.environment["B"].is_empty());
    check("env_file: app.env\nenvironment: [LOG_LEVEL=info]", |s| {
        s.environment["TOKEN"] == "abc=def"
            && s.environment["REGION"] == "eu "
            && s.environment["LOG_LEVEL"] == "info"
    });
    check("ports: [{container_port: \"80\"}]", |s| {
        s.ports[0].container_port == 80 && s.ports[0].host_port.is_none()
    });
    check("replicas: {min: 2}", |s| s.replicas == ReplicaBounds { min: 2, max: 2 });
    check("replicas: {max: 2}", |s| s.replicas == ReplicaBounds { min: 1, max: 2 });
    check("resources: {cpu_quota: 0, memory_limit: 0, pids_limit: 0, blkio_weight: 0, cpu_shares: 0}", |s| {
        s.limits == ResourceLimits::default()
    });
    check("volumes: [{source: ./data, target: /data}]", |s| s.volumes[0].source == "/srv/bundles/data");
    check("volumes: [{source: db_data.1, target: /data, mode: ro}]", |s| {
        let name = "db_data.1".parse().expect("a name");
        s.volumes == [crate::spec::MountSpec::volume(name, "/data".to_owned(), true)] && !s.is_pinned()
    });
    check("volumes: [{source: ../x//y/., target: /data/}]", |s| {
        s.volumes[0].source == "/srv/x/y" && s.volumes[0].target == "/data" && !s.volumes[0].read_only
    });
    check("x: &p {min: 3}\nreplicas: *p", |s| s.replicas.min == 3);
    assert_eq!(spec("\u{feff}stop_timeout: 30\nimage: {docker_image: a}\n").stop_timeout_s, 30);
}

#[test]
fn a_service_is_named_by_the_caller_the_bundle_or_the_file() {
    let check = |text: &str, given: Option<&str>, file: Option<&str>, expect: Option<&str>| {
        let given: Option<ServiceName> = given.map(|name| name.parse().unwrap());
        let context = Context {
            file_name: "f",
            name: given.as_ref(),
            default_name: file,
            base_dir: None,
            env_files: &|_| Err("none".to_owned()),
        };
        let parsed = parse(format!("image: {{docker_image: a}}\n{text}").as_bytes(), &context);
        assert_eq!(parsed.spec.as_ref().map(|spec| spec.name.as_str()), expect, "{}", shown(&parsed));
    };
    check("name: web", None, Some("file"), Some("web"));
    check("name: web", Some("shop"), Some("file"), Some("shop"));
    check("", Some("shop"), None, Some("shop"));
    check("", None, Some("My_App.v2"), Some("my-app-v2"));
    check("", None, Some("--"), None);
    check("", None, None, None);
    check("name: Web", Some("shop"), None, None);
    check("depends_on: [shop]", Some("shop"), None, None);
    check("depends_on: [web]\nname: web", Some("shop"), None, Some("shop"));
}

#[test]
fn a_name_that_is_not_the_files_own_is_told() {
    let check = |file: &str, expect: Option<&str>| {
        let context = Context {
            file_name: "f",
            name: None,
            default_name: Some(file),
            base_dir: None,
            env_files: &|_| Err("none".to_owned()),
        };
        let parsed = parse(b"version: '1.0'\nimage: {docker_image: a}\n", &context);
        let said: Vec<_> = parsed.diagnostics.iter().map(|fault| fault.message.as_str()).collect();
        assert_eq!(said, expect.into_iter().collect::<Vec<_>>(), "{file}");
    };
    check("web", None);
    check("My_App.v2", Some("`name` is missing: the file's name, `My_App.v2`, is changed to `my-app-v2`"));
    let (long, cut) = ("a".repeat(70), "a".repeat(63));
    check(
        &long,
        Some(&format!("`name` is missing: the file's name, `{long}`, is cut and changed to `{cut}`")),
    );
}

#[test]
fn what_is_no_text_is_refused_with_its_place() {
    let check = |bytes: &[u8], place: (usize, usize), why: &str| {
        let parsed = read(bytes);
        assert_eq!(parsed.spec, None);
        let [fault] = parsed.diagnostics.as_slice() else { panic!("{}", shown(&parsed)) };
        assert_eq!((fault.line, fault.column), place, "{fault}");
        assert!(fault.message.contains(why), "{fault}");
    };
    check(b"", (1, 1), "empty");
    check(b"# only this\n", (1, 1), "empty");
    check(b"name: a\nimage: \xff\n", (2, 8), "not UTF-8");
    check("name: ä\0b".as_bytes(), (1, 8), "U+0000");
    check(b"a: b\r\n\x1b[31m", (2, 1), "U+001B");
    check(b"just words", (1, 1), "keys and values");
    check(b"a: b\n---\na: c\n", (2, 1), "one YAML document");
    check(b"a: [b\n", (1, 6), "not YAML");
    check(b"a:\n\tb: c\n", (2, 2), "not YAML");
    check(b"a:\tb\n", (1, 4), "not YAML");
    check(&vec![b'a'; BUNDLE_BYTES_MAX + 1], (1, 1), "more than 1048576 bytes");
}

#[test]
fn a_tab_that_yaml_does_not_take_is_named() {
    for text in ["a:\n\tb: c\n", "a:\tb\n", "image:\tnginx\n", "a:\n  b:\t-1\n", "-\t- a\n", "?\ta\n"] {
        let parsed = read(text);
        let hint = parsed.diagnostics[0].hint.as_deref().unwrap_or_default();
        assert!(hint.contains("YAML does not allow tabs there"), "{text:?}: {}", shown(&parsed));
    }
}

#[test]
fn a_bomb_is_refused_quickly() {
    let check = |text: String, why: &str| {
        let parsed = read(&text);
        assert_eq!(parsed.spec, None);
        let found = parsed.diagnostics.iter().any(|fault| fault.message.contains(why));
        assert!(found, "{}", shown(&parsed).chars().take(2_000).collect::<String>());
    };
    let depth = format!("nested more than {BUNDLE_DEPTH_MAX}");
    for start in ["[", "{a: ", "- ", "a: &a [", "- - "] {
        check(start.repeat(BUNDLE_BYTES_MAX / start.len()), &depth);
    }
    check("? ".repeat(BUNDLE_BYTES_MAX / 2), "a key is a single value");
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let items = vec![format!("*a{}", level - 1); 9].join(", ");
        laughs.push_str(&format!("a{level}: &a{level} [{items}]\n"));
    }
    check(laughs, &format!("more than {BUNDLE_NODES_MAX} values"));
    let long = "x".repeat(BUNDLE_BYTES_MAX / 4);
    check(format!("a: &a {long}\nb: [*a, *a, *a, *a]\n"), "bytes, aliases written out");
    let open = "${a".repeat(BUNDLE_BYTES_MAX / 4);
    check(format!("environment: {{A: '{open}'}}"), "`image` is missing");
    check(format!("services: {{a: {{image: '{open}'}}}}"), "a Compose file");
    check("a: &a [*a]\n".to_owned(), "stands for something that holds it");
    check(format!("ports: [{}]", "{container_port: 0},".repeat(5_000)), "more are not shown");
}

#[test]
fn no_more_faults_are_kept_than_can_be_read() {
    let parsed = read(format!("ports: [{}]", "{container_port: 0},".repeat(5_000)));
    assert_eq!(parsed.diagnostics.len(), BUNDLE_FAULTS_MAX);
    assert!(shown(&parsed).len() < BUNDLE_FAULTS_MAX * 1_000);
}

fn holds(parsed: &Parsed, source: &[u8]) {
    let errors = parsed.diagnostics.iter().filter(|fault| fault.severity == Severity::Error).count();
    assert_eq!(parsed.spec.is_some(), errors == 0, "{}", shown(parsed));
    let places: Vec<_> = parsed.diagnostics.iter().map(|fault| (fault.line, fault.column)).collect();
    assert!(places.iter().all(|(line, column)| *line >= 1 && *column >= 1), "{}", shown(parsed));
    assert!(!shown(parsed).contains(|c: char| c.is_control() && c != '\n'));
    let lines = 1 + source.iter().filter(|b| matches!(b, b'\n' | b'\r')).count();
    assert!(places.iter().all(|(line, _)| *line <= lines), "{}", shown(parsed));
}

/// What the API refuses, by the value it names.
#[test]
fn a_specification_from_elsewhere_is_held_to_the_readers_rules() {
    let refuse = |line: &str, change: fn(&mut ServiceSpec), expect: &str| {
        let mut sent = spec(&format!("image: {{docker_image: a}}\n{line}\n"));
        assert_eq!(check(&sent), [], "{line}");
        change(&mut sent);
        let faults = check(&sent);
        let [fault] = faults.as_slice() else { panic!("{expect}: {faults:?}") };
        assert!(fault.message.contains(expect), "`{fault}` lacks `{expect}`");
    };
    let volume = "volumes: [{source: /a, target: /b}]";
    refuse(volume, |s| s.volumes[0].source = "relative/../../etc".into(), "no directory it counts from");
    refuse(
        volume,
        |s| s.volumes[0].source = "/srv/../etc".into(),
        "`volumes[0].source` is `/srv/../etc`, which stands",
    );
    refuse(
        "volumes: [{source: data, target: /b}]",
        |s| s.volumes[0].source = "other".into(),
        "volume `data`",
    );
    refuse(volume, |s| s.volumes[0].target = "/".into(), "`volumes[0].target` cannot be `/`");
    refuse(volume, |s| s.volumes[0].target = "/a/..".into(), "without `..`");
    refuse(volume, |s| s.volumes[0].source = "/a\0".into(), "NUL");
    refuse(volume, |s| s.volumes[0].source = "/\u{202e}a".into(), "not seen");
    refuse(volume, |s| s.volumes.push(s.volumes[0].clone()), "as is `volumes[0].target`");
    refuse("", |s| s.image.digest = Some("sha256:../../x".into()), "`image.digest` takes sha256:");
    refuse("", |s| s.image.reference = "a b".into(), "`image.docker_image` takes an image");
    refuse("", |s| s.image.command = Some(vec![]), "names no program");
    refuse("", |s| s.image.command = Some(vec!["a".into(), "b\0".into()]), "`image.command[1]` holds a NUL");
    refuse("", |s| drop(s.environment.insert("A\nB".into(), "x".into())), "no variable called `A\\nB`");
    refuse("", |s| drop(s.environment.insert("x".repeat(256), "x".into())), "longer than 255 bytes");
    refuse("", |s| drop(s.environment.insert("A".into(), "\0".into())), "`environment.A` holds a NUL");
    refuse(
        "",
        |s| s.stop_timeout_s = u32::MAX,
        "`stop_timeout` takes a whole number from 1 to 3600, not `4294967295`",
    );
    refuse("", |s| s.min_healthy_ms = Some(u64::MAX), "`min_healthy_time` takes a time");
    refuse(
        "",
        |s| s.limits.memory_bytes = Some(u64::MAX),
        "`resources.memory_limit` takes an amount of memory",
    );
    refuse("", |s| s.limits.cpu_quota_us = Some(-2), "`resources.cpu_quota` takes a whole number");
    refuse("", |s| s.reservations.cpu_millis = u64::MAX, "too large");
    refuse("", |s| s.placement.spread = Some("a\u{1b}".into()), "no label called `a\\x1b`");
    refuse(
        "ports: [{container_port: 80, host_port: 80}]",
        |s| s.ports.push(s.ports[0].clone()),
        "which `ports[0].host_port` takes already",
    );
    let drop_all = "security: {cap_drop: [ALL]}";
    refuse(drop_all, |s| s.security.user = Some("a b".into()), "`security.user` takes a user");
    refuse(
        drop_all,
        |s| s.security.cap_drop.push("ALL".into()),
        "`security.cap_drop[1]` is `ALL`, as another",
    );
    refuse(drop_all, |s| s.security.cap_add.push("ALL".into()), "`security.cap_add[0]` takes capabilities");
    refuse(drop_all, |s| s.security.cap_add.push("cap_chown".into()), "takes for something else");
    refuse(drop_all, |s| s.security.cap_drop = vec!["ALL".into(); 43], "more names than there are");
    refuse("depends_on: [db]", |s| s.depends_on.push(s.depends_on[0].clone()), "names `db` again");
    refuse("", |s| s.image.command = Some(vec!["a".into(); 30_000]), "values");
    refuse("", |s| drop(s.environment.insert("A".into(), "\u{1}".repeat(200_000))), "bytes as a bundle");
}

proptest! {
    #[test]
    fn a_printed_specification_reads_back_as_itself(spec in specs()) {
        let text = to_bundle(&spec);
        let parsed = read(&text);
        prop_assert_eq!(parsed.spec.as_ref(), Some(&spec), "{}\n{}", text, shown(&parsed));
    }

    #[test]
    fn what_is_accepted_is_what_the_reader_takes(spec in sent()) {
        let faults = check(&spec);
        let said: Vec<String> = faults.iter().map(ToString::to_string).collect();
        prop_assert!(!said.concat().contains(crate::text::is_unseen), "{said:?}");
        let text = to_bundle(&spec);
        let parsed = read(&text);
        let plain = ServiceSpec { image: ImageSpec { digest: None, ..spec.image.clone() }, ..spec.clone() };
        let reads_back = parsed.spec.as_ref() == Some(&plain);
        let digest_fits = spec.image.digest.as_deref().is_none_or(crate::image_reference::is_digest);
        let fits = encoded_len(&spec) <= SPEC_BYTES_MAX;
        prop_assert_eq!(faults.is_empty(), reads_back && digest_fits && fits, "{:?}\n{}", said, shown(&parsed));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        holds(&read(&bytes), &bytes);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,120}") {
        holds(&read(&text), text.as_bytes());
    }

    #[test]
    fn any_near_bundle_is_read_or_refused(text in fragments()) {
        holds(&read(&text), text.as_bytes());
    }

    #[test]
    fn a_bundle_cut_or_changed_anywhere_is_read_or_refused(
        spec in specs(), at in any::<prop::sample::Index>(), change in option::of(any::<u8>()),
    ) {
        let mut bytes = to_bundle(&spec).into_bytes();
        let at = at.index(bytes.len());
        match change {
            Some(byte) => bytes[at] = byte,
            None => bytes.truncate(at),
        }
        holds(&read(&bytes), &bytes);
    }
}

#[test]
fn what_the_environment_file_says_wrong_is_told_with_its_own_place() {
    let parsed = read("image: {docker_image: a}\nenv_file: bad.env\nnetwork: none\n");
    let places: BTreeMap<_, _> =
        parsed.diagnostics.iter().map(|fault| ((fault.file.as_str(), fault.line), fault.severity)).collect();
    let expect = [
        (("bad.env", 2), Severity::Error),
        (("bad.env", 3), Severity::Warning),
        (("bad.env", 4), Severity::Error),
        (("test.bun", 1), Severity::Warning),
        (("test.bun", 3), Severity::Error),
    ];
    assert_eq!(places, expect.into());
    assert_eq!(parsed.diagnostics.last().map(|fault| fault.line), Some(3), "{}", shown(&parsed));
}
