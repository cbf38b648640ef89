//! The configuration of an image: what runs in it, as whom and where. Read as leniently as other
//! runtimes read it, within bounds: tools write `null`, leave keys out, or write a text where a list
//! belongs. Pure.

use blixard_core::image_reference::is_digest;
use blixard_core::limits::{
    IMAGE_LIST_BYTES_MAX, IMAGE_LIST_ENTRIES_MAX, IMAGE_PATH_BYTES_MAX, IMAGE_USER_BYTES_MAX,
};
use blixard_core::text::one_line;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use super::manifest::LAYERS_MAX;

/// What an image says of itself. Texts are without NUL and within the bounds of `limits`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// The operating system it is for; empty when not said.
    pub os: String,
    /// The processor it is for, in Go's words; empty when not said.
    pub architecture: String,
    /// `USER`: `user[:group]`, each a name or a number; empty is root.
    pub user: String,
    /// `ENV`: settings `NAME=value`, the name not empty.
    pub env: Vec<String>,
    /// `ENTRYPOINT`; empty when there is none.
    pub entrypoint: Vec<String>,
    /// `CMD`; empty when there is none.
    pub cmd: Vec<String>,
    /// `WORKDIR`, absolute; empty when not said.
    pub working_dir: String,
    /// `STOPSIGNAL`; empty when not said.
    pub stop_signal: String,
    /// The digests of its layers when unpacked, the lowest first.
    pub diff_ids: Vec<String>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default, deserialize_with = "or_default")]
    os: String,
    #[serde(default, deserialize_with = "or_default")]
    architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    config: RawConfig,
    #[serde(default, deserialize_with = "or_default")]
    rootfs: RawRootfs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawConfig {
    #[serde(default, deserialize_with = "or_default")]
    user: String,
    #[serde(default, deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    entrypoint: Words,
    #[serde(default, deserialize_with = "or_default")]
    cmd: Words,
    #[serde(default, deserialize_with = "or_default")]
    working_dir: String,
    #[serde(default, deserialize_with = "or_default")]
    stop_signal: String,
}

#[derive(Default, Deserialize)]
struct RawRootfs {
    #[serde(default, deserialize_with = "or_default")]
    diff_ids: Vec<String>,
}

/// A list of arguments; one text stands for a list of one, as Docker reads it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    List(Vec<String>),
    One(String),
}

impl Default for Words {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

impl From<Words> for Vec<String> {
    fn from(words: Words) -> Self {
        match words {
            Words::List(list) => list,
            Words::One(word) if word.is_empty() => Self::new(),
            Words::One(word) => vec![word],
        }
    }
}

/// Reads `null` as what is left out.
pub(super) fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Reads JSON, also behind the byte order mark that some editors write.
pub(super) fn read_json<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes))
}

impl ImageConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// In words, when it is none, or out of bounds.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let raw: Raw = read_json(bytes).map_err(|err| one_line(&err))?;
        let RawConfig { user, env, entrypoint, cmd, working_dir, stop_signal } = raw.config;
        let mut entrypoint = Vec::from(entrypoint);
        // `ENTRYPOINT [""]` takes a base image's entrypoint away.
        if entrypoint == [""] {
            entrypoint.clear();
        }
        let config = Self {
            os: raw.os,
            architecture: raw.architecture,
            user,
            env: env.into_iter().filter(|setting| is_setting(setting)).collect(),
            entrypoint,
            cmd: cmd.into(),
            working_dir: absolute(working_dir),
            stop_signal,
            diff_ids: raw.rootfs.diff_ids,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let texts = [
            ("os", &self.os, IMAGE_USER_BYTES_MAX),
            ("architecture", &self.architecture, IMAGE_USER_BYTES_MAX),
            ("User", &self.user, IMAGE_USER_BYTES_MAX),
            ("StopSignal", &self.stop_signal, IMAGE_USER_BYTES_MAX),
            ("WorkingDir", &self.working_dir, IMAGE_PATH_BYTES_MAX),
        ];
        for (key, text, bytes_max) in texts {
            if text.len() > bytes_max {
                return Err(format!("its {key} is {} bytes long, at most {bytes_max} work", text.len()));
            }
            if text.contains('\0') {
                return Err(format!("its {key} holds a NUL"));
            }
        }
        for (key, list) in [("Env", &self.env), ("Entrypoint", &self.entrypoint), ("Cmd", &self.cmd)] {
            let bytes: usize = list.iter().map(String::len).sum();
            if list.len() > IMAGE_LIST_ENTRIES_MAX || bytes > IMAGE_LIST_BYTES_MAX {
                return Err(format!(
                    "its {key} has {} entries of {bytes} bytes together, at most {IMAGE_LIST_ENTRIES_MAX} of {IMAGE_LIST_BYTES_MAX} work",
                    list.len()
                ));
            }
            if list.iter().any(|text| text.contains('\0')) {
                return Err(format!("its {key} holds a NUL"));
            }
        }
        if self.diff_ids.len() > LAYERS_MAX {
            return Err(format!("it names {} layers, at most {LAYERS_MAX} work", self.diff_ids.len()));
        }
        match self.diff_ids.iter().find(|diff| !is_digest(diff)) {
            Some(diff) => Err(format!("it names a layer {:?}", diff.chars().take(100).collect::<String>())),
            None => Ok(()),
        }
    }
}

/// Whether an entry of `Env` sets something: one without `=`, or without a name, is passed over.
fn is_setting(entry: &str) -> bool {
    entry.split_once('=').is_some_and(|(name, _)| !name.is_empty())
}

/// A working directory from the root, as Docker reads a relative one.
fn absolute(path: String) -> String {
    if path.is_empty() || path.starts_with('/') { path } else { format!("/{path}") }
}

#[cfg(test)]
mod tests {
    use super::ImageConfig;

    fn parse(config: &str) -> Result<ImageConfig, String> {
        ImageConfig::parse(format!(r#"{{"config": {config}}}"#).as_bytes())
    }

    #[test]
    fn commands_are_read_in_every_form_tools_write() {
        let check = |config: &str, entrypoint: &[&str], cmd: &[&str]| {
            let parsed = parse(config).expect(config);
            assert_eq!((parsed.entrypoint, parsed.cmd), (words(entrypoint), words(cmd)), "{config}");
        };
        fn words(words: &[&str]) -> Vec<String> {
            words.iter().map(|word| (*word).to_owned()).collect()
        }
        check(r#"{"Entrypoint": ["/e"], "Cmd": ["a", ""]}"#, &["/e"], &["a", ""]);
        check(r#"{"Entrypoint": [""], "Cmd": ["sleep", "1"]}"#, &[], &["sleep", "1"]);
        check(r#"{"Entrypoint": ["", ""], "Cmd": null}"#, &["", ""], &[]);
        check(r#"{"Entrypoint": null, "Cmd": []}"#, &[], &[]);
        check(r#"{"Entrypoint": "/e", "Cmd": ""}"#, &["/e"], &[]);
        check("{}", &[], &[]);
        check("null", &[], &[]);
    }

    #[test]
    fn only_settings_are_taken_of_the_environment() {
        let config =
            parse(r#"{"Env": ["PATH=/bin", "NOVALUE", "", "=x", "EMPTY=", "A=b=c"]}"#).expect("valid");
        assert_eq!(config.env, ["PATH=/bin", "EMPTY=", "A=b=c"]);
        assert_eq!(parse(r#"{"Env": null}"#).expect("valid").env, [""; 0]);
    }

    #[test]
    fn missing_and_relative_values_are_completed() {
        let check = |config: &str, expect: &str| {
            assert_eq!(parse(config).expect(config).working_dir, expect, "{config}");
        };
        check(r#"{"WorkingDir": "/srv"}"#, "/srv");
        check(r#"{"WorkingDir": "srv/app"}"#, "/srv/app");
        check(r#"{"WorkingDir": ""}"#, "");
        check(r#"{"WorkingDir": null, "User": null, "StopSignal": null, "Labels": {"a": 1}}"#, "");
        let bare = ImageConfig::parse(b"{}").expect("valid");
        assert_eq!(bare, ImageConfig::default());
        assert_eq!(ImageConfig::parse(br#"{"os": null, "rootfs": null}"#).expect("valid"), bare);
        assert_eq!(ImageConfig::parse("\u{feff}{}".as_bytes()).expect("valid"), bare);
    }

    #[test]
    fn what_is_out_of_bounds_is_named_with_its_size() {
        let check = |config: String, expect: &str| {
            let error = parse(&config).expect_err(expect);
            assert!(error.contains(expect) && error.len() < 300, "{error}");
        };
        check(format!(r#"{{"User": "{}"}}"#, "u".repeat(6 << 20)), "User is 6291456 bytes long");
        check(format!(r#"{{"WorkingDir": "/{}"}}"#, "w".repeat(5_000)), "WorkingDir is 5001 bytes");
        check(format!(r#"{{"Env": ["A={}"]}}"#, "x".repeat(2 << 20)), "Env has 1 entries of 2097154 bytes");
        check(format!(r#"{{"Cmd": [{}"x"]}}"#, r#""x","#.repeat(5_000)), "Cmd has 5001 entries");
        check(r#"{"User": "a\u0000b"}"#.into(), "User holds a NUL");
        check(r#"{"Env": ["A=\u0000"]}"#.into(), "Env holds a NUL");
        let layers =
            |diff: &str| ImageConfig::parse(format!(r#"{{"rootfs": {{"diff_ids": [{diff}]}}}}"#).as_bytes());
        assert!(layers(r#""sha512:00""#).expect_err("sha512").contains("names a layer"));
        let many = format!(r#""sha256:{:064}","#, 1).repeat(501);
        assert!(layers(many.trim_end_matches(',')).expect_err("many").contains("501 layers"));
    }

    #[test]
    fn configurations_survive_every_damage() {
        let config = br#"{"os": "linux", "architecture": "amd64", "config": {"User": "app:app", "Env": ["PATH=/bin",
            "A=b"], "Entrypoint": ["/e"], "Cmd": "c", "WorkingDir": "srv", "StopSignal": "SIGQUIT", "Labels": {"a": "b"}},
            "rootfs": {"type": "layers", "diff_ids":
            ["sha256:0101010101010101010101010101010101010101010101010101010101010101"]}}"#;
        damage::survives("configuration of an image", &[config.to_vec()], |input| {
            let config = ImageConfig::parse(input)?;
            assert!(config.env.iter().all(|setting| super::is_setting(setting)));
            assert!(config.working_dir.is_empty() || config.working_dir.starts_with('/'));
            let texts = config.env.iter().chain(&config.entrypoint).chain(&config.cmd).chain([&config.user]);
            assert!(texts.into_iter().all(|text| !text.contains('\0')));
            Ok(())
        });
    }
}
