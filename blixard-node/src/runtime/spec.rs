//! The OCI runtime specification of a container: the image's configuration, the service's wishes
//! and Docker's defaults for everything else.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use blixard_core::security::{ALL_CAPABILITIES, SecuritySpec};
use blixard_core::spec::{MountSpec, NetworkMode, ServiceSpec};
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType, Mount, MountBuilder, PosixRlimitBuilder, PosixRlimitType,
    Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use super::cgroups::{self, CgroupSupport};
use super::files::ContainerFiles;
use super::images::ImageConfig;
use super::seccomp;
use super::user::ResolvedUser;
use crate::platform::RuntimeError;

/// The version of the runtime specification that every runc since 1.0 takes.
const OCI_VERSION: &str = "1.0.2";
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The longest name of a host, Linux's own bound less room for nothing: a DNS label.
const HOSTNAME_MAX: usize = 63;
/// How many files a container may have open, as Docker sets it; the daemon's own bound may be less.
const OPEN_FILES_MAX: u64 = 1_048_576;

const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

const MASKED_PATHS: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Where, of what type, from what, and how, the kernel's own file systems are mounted.
const MOUNTS: [(&str, &str, &str, &[&str]); 7] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    ),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
];

/// Everything a specification is made of.
pub(crate) struct Input<'a> {
    /// What the service asks for.
    pub(crate) service: &'a ServiceSpec,
    /// What the image says.
    pub(crate) image: &'a ImageConfig,
    /// The container's host name.
    pub(crate) hostname: &'a str,
    /// Who it runs as.
    pub(crate) user: ResolvedUser,
    /// The files bound over its `/etc`.
    pub(crate) files: &'a ContainerFiles,
    /// Where the volumes' sources really are, in the volumes' order.
    pub(crate) sources: &'a [PathBuf],
    /// Its network namespace; absent on the host's network.
    pub(crate) netns: Option<&'a Path>,
    /// Its cgroup.
    pub(crate) cgroups_path: PathBuf,
    /// What the kernel can limit.
    pub(crate) cgroups: CgroupSupport,
    /// The most files the daemon itself may let a process open.
    pub(crate) open_files_max: u64,
    /// How eagerly the OOM killer takes the daemon.
    pub(crate) oom_score_adj: i32,
    /// The AppArmor profile of containers, where the kernel has AppArmor.
    pub(crate) apparmor: Option<&'a str>,
}

/// The host name of a service's replica: `web-1`, shortened where it would be longer than a label.
pub(crate) fn hostname(service: &str, slot: u32) -> String {
    let suffix = format!("-{slot}");
    let room = HOSTNAME_MAX.saturating_sub(suffix.len());
    let name: String = service.chars().take(room).collect();
    name + &suffix
}

/// Builds the specification. The second part names the limits this machine cannot enforce.
///
/// # Errors
/// [`RuntimeError::Invalid`] when neither the image nor the service says what to run.
pub(crate) fn build(input: &Input<'_>) -> Result<(Spec, Vec<&'static str>), RuntimeError> {
    let args = command(input.service, input.image).ok_or_else(|| {
        RuntimeError::Invalid(format!(
            "the image {} names no command: set `command` in the bundle's image section",
            input.service.image.reference
        ))
    })?;
    assemble(input, args)
        .map_err(|error| RuntimeError::Invalid(format!("cannot describe the container to runc: {error}")))
}

/// The program and its arguments: the service's command replaces ENTRYPOINT and CMD together.
fn command(service: &ServiceSpec, image: &ImageConfig) -> Option<Vec<String>> {
    if let Some(command) = service.image.command.as_ref().filter(|command| !command.is_empty()) {
        return Some(command.clone());
    }
    let args = [image.entrypoint.as_slice(), &image.cmd].concat();
    args.first().is_some_and(|program| !program.is_empty()).then_some(args)
}

fn assemble(input: &Input<'_>, args: Vec<String>) -> Result<(Spec, Vec<&'static str>), OciSpecError> {
    let (resources, missing) = cgroups::resources(&input.service.limits, input.cgroups)?;
    let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let mut linux = LinuxBuilder::default()
        .resources(resources)
        .cgroups_path(input.cgroups_path.clone())
        .namespaces(namespaces(input)?)
        .seccomp(seccomp::profile()?)
        .masked_paths(owned(&MASKED_PATHS))
        .readonly_paths(owned(&READONLY_PATHS));
    if input.netns.is_some() {
        linux = linux.sysctl(HashMap::from([
            ("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned()),
            ("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned()),
        ]));
    }
    let spec = SpecBuilder::default()
        .version(OCI_VERSION)
        .root(RootBuilder::default().path("rootfs").readonly(input.service.security.read_only).build()?)
        .hostname(input.hostname)
        .process(process(input, args)?)
        .mounts(mounts(input)?)
        .linux(linux.build()?)
        .build()?;
    Ok((spec, missing))
}

fn process(input: &Input<'_>, args: Vec<String>) -> Result<Process, OciSpecError> {
    let wanted = input.service.image.workdir.as_ref().unwrap_or(&input.image.working_dir);
    let workdir = if wanted.is_empty() { "/" } else { wanted };
    let image_env = input.image.env.iter().cloned();
    let service_env = input.service.environment.iter().map(|(key, value)| format!("{key}={value}"));
    let defaults = [DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", input.hostname)];
    let env = merge_environment(defaults.into_iter().chain(image_env).chain(service_env));
    let open_files = OPEN_FILES_MAX.min(input.open_files_max);
    let open_files = PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitNofile)
        .hard(open_files)
        .soft(open_files)
        .build()?;
    let user = UserBuilder::default()
        .uid(input.user.uid)
        .gid(input.user.gid)
        .additional_gids(input.user.groups.clone())
        .build()?;
    let mut process = ProcessBuilder::default()
        .terminal(false)
        .user(user)
        .args(args)
        .env(env)
        .cwd(workdir)
        .capabilities(capabilities(input.user.uid, bounding(&input.service.security))?)
        .rlimits(vec![open_files])
        // The daemon and containerd are kept from the OOM killer, and what they start is not. A daemon
        // that is not either may lack the right to favour them.
        .oom_score_adj(input.oom_score_adj.max(0))
        .no_new_privileges(input.service.security.no_new_privileges)
        .build()?;
    if let Some(profile) = input.apparmor {
        process.set_apparmor_profile(Some(profile.to_owned()));
    }
    Ok(process)
}

/// The most that a process of the service may be able to do: what containers get, less what the
/// service drops, and what it adds.
pub(crate) fn bounding(security: &SecuritySpec) -> HashSet<Capability> {
    let named = |names: &[String]| -> HashSet<Capability> {
        names.iter().filter_map(|name| name.parse().ok()).collect()
    };
    let mut bounding: HashSet<Capability> = CAPABILITIES.into_iter().collect();
    if security.cap_drop.iter().any(|name| name == ALL_CAPABILITIES) {
        bounding.clear();
    }
    for dropped in named(&security.cap_drop) {
        bounding.remove(&dropped);
    }
    bounding.extend(named(&security.cap_add));
    bounding
}

/// What a process of this user may do. One that is not root holds no capability but may gain these
/// by running a set-user-id program, as with Docker.
pub(crate) fn capabilities(
    uid: u32,
    bounding: HashSet<Capability>,
) -> Result<LinuxCapabilities, OciSpecError> {
    let held = if uid == 0 { bounding.clone() } else { HashSet::new() };
    LinuxCapabilitiesBuilder::default()
        .bounding(bounding)
        .effective(held.clone())
        .permitted(held)
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .build()
}

/// Merges `K=V` settings: of several with one key the last counts, in the place of the first.
pub(crate) fn merge_environment(settings: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut merged: Vec<String> = Vec::new();
    let mut places = HashMap::new();
    for setting in settings {
        let key = setting.split('=').next().unwrap_or_default().to_owned();
        match places.get(&key) {
            Some(&place) => merged[place] = setting,
            None => {
                places.insert(key, merged.len());
                merged.push(setting);
            }
        }
    }
    merged
}

fn namespaces(input: &Input<'_>) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    let mut types = vec![
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
    ];
    if input.cgroups.namespace {
        types.push(LinuxNamespaceType::Cgroup);
    }
    let mut namespaces = Vec::new();
    for typ in types {
        namespaces.push(LinuxNamespaceBuilder::default().typ(typ).build()?);
    }
    if let Some(path) = input.netns {
        let network = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network).path(path);
        namespaces.push(network.build()?);
    }
    debug_assert_eq!(input.netns.is_some(), input.service.network == NetworkMode::Bridge);
    Ok(namespaces)
}

fn mounts(input: &Input<'_>) -> Result<Vec<Mount>, OciSpecError> {
    let mut mounts = Vec::new();
    for (destination, typ, source, options) in MOUNTS {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let mount = MountBuilder::default().destination(destination).typ(typ).source(source);
        mounts.push(mount.options(options).build()?);
    }
    let generated = [
        ("/etc/hosts", &input.files.hosts),
        ("/etc/hostname", &input.files.hostname),
        ("/etc/resolv.conf", &input.files.resolv),
    ];
    for (destination, source) in generated {
        if !input.service.volumes.iter().any(|volume| volume.target == destination) {
            mounts.push(bind(Path::new(destination), source, input.service.security.read_only)?);
        }
    }
    // Outer directories first, so that no volume hides another that is mounted inside it.
    let mut volumes: Vec<(&MountSpec, &PathBuf)> = input.service.volumes.iter().zip(input.sources).collect();
    volumes.sort_by_key(|(volume, _)| Path::new(&volume.target).components().count());
    for (volume, source) in volumes {
        mounts.push(bind(Path::new(&volume.target), source, volume.read_only)?);
    }
    Ok(mounts)
}

fn bind(destination: &Path, source: &Path, read_only: bool) -> Result<Mount, OciSpecError> {
    let access = if read_only { "ro" } else { "rw" };
    MountBuilder::default()
        .destination(destination)
        .typ("bind")
        .source(source)
        .options(["rbind", "rprivate", access].map(str::to_owned).to_vec())
        .build()
}

#[cfg(test)]
mod tests {
    use blixard_core::security::SecuritySpec;
    use blixard_core::spec::{ImageSpec, MountSpec, NetworkMode, ServiceSpec};
    use oci_spec::runtime::{Capability, Spec};

    use super::{CgroupSupport, ImageConfig, Input, build, hostname, merge_environment};
    use crate::platform::RuntimeError;
    use crate::runtime::files::ContainerFiles;
    use crate::runtime::user::ResolvedUser;

    const IMAGE: &str = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},
        "config":{"User":"www","Env":["PATH=/opt/bin","A=image"],"Entrypoint":["/entry"],"Cmd":["serve"],
        "WorkingDir":"/srv","StopSignal":"SIGQUIT"}}"#;

    fn service() -> ServiceSpec {
        serde_json::from_value(serde_json::json!({
            "name": "web", "image": {"reference": "web:1"}, "environment": {"A": "service", "B": "2"},
        }))
        .expect("service")
    }

    fn spec(service: &ServiceSpec, image: &str) -> Result<Spec, RuntimeError> {
        let image = ImageConfig::parse(image.as_bytes()).expect("image");
        let netns = (service.network == NetworkMode::Bridge).then_some("/run/netns/x".as_ref());
        build(&Input {
            service,
            image: &image,
            hostname: "web-1",
            user: ResolvedUser { uid: 33, gid: 34, groups: vec![34, 4] },
            files: &ContainerFiles {
                hosts: "/d/hosts".into(),
                hostname: "/d/h".into(),
                resolv: "/d/r".into(),
            },
            sources: &vec!["/s".into(); service.volumes.len()],
            netns,
            cgroups_path: "/blixard/1/x".into(),
            cgroups: CgroupSupport {
                cpu: true,
                memory: true,
                swap: true,
                blkio_weight: true,
                pids: true,
                namespace: true,
            },
            open_files_max: 20_000,
            oom_score_adj: -900,
            apparmor: Some("blixard-default"),
        })
        .map(|(spec, _)| spec)
    }

    fn args(service: &ServiceSpec) -> Vec<String> {
        let spec = spec(service, IMAGE).expect("spec");
        spec.process().as_ref().and_then(|process| process.args().clone()).expect("arguments")
    }

    #[test]
    fn the_image_says_what_runs_unless_the_service_does() {
        assert_eq!(args(&service()), ["/entry", "serve"]);
        let image = ImageSpec { command: Some(vec!["sleep".into(), "1".into()]), ..service().image };
        assert_eq!(args(&ServiceSpec { image, ..service() }), ["sleep", "1"]);
        let silent = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        assert!(matches!(spec(&service(), silent), Err(RuntimeError::Invalid(_))));
        let empty = r#"{"config": {"Entrypoint": [""], "Cmd": [""]}}"#;
        assert!(matches!(spec(&service(), empty), Err(RuntimeError::Invalid(_))));
    }

    #[test]
    fn process_takes_environment_directory_user_and_bounds() {
        let spec = spec(&service(), IMAGE).expect("spec");
        let process = spec.process().as_ref().expect("process");
        let env = process.env().as_ref().expect("environment");
        assert_eq!(env.as_slice(), ["PATH=/opt/bin", "HOSTNAME=web-1", "A=service", "B=2"]);
        assert_eq!(process.cwd().to_str(), Some("/srv"));
        assert_eq!((process.user().uid(), process.user().gid()), (33, 34));
        assert_eq!(process.rlimits().as_ref().expect("limits")[0].hard(), 20_000);
        let capabilities = process.capabilities().as_ref().expect("capabilities");
        assert_eq!(capabilities.bounding().as_ref().map(|set| set.len()), Some(14));
        assert_eq!(capabilities.effective().as_ref().map(|set| set.len()), Some(0));
    }

    #[test]
    fn a_service_may_do_less_or_more_than_the_default() {
        let security = serde_json::from_value(serde_json::json!({
            "read_only": true, "no_new_privileges": true, "cap_drop": ["ALL"], "cap_add": ["NET_RAW", "SYS_NICE"],
        }));
        let service = ServiceSpec { security: security.expect("security"), ..service() };
        let strict = spec(&service, IMAGE).expect("spec");
        assert_eq!(strict.root().as_ref().and_then(|root| root.readonly()), Some(true));
        let process = strict.process().as_ref().expect("process");
        assert_eq!(process.no_new_privileges(), Some(true));
        assert_eq!(process.oom_score_adj(), Some(0));
        assert_eq!(process.apparmor_profile().as_deref(), Some("blixard-default"));
        let bounding = process.capabilities().as_ref().and_then(|all| all.bounding().clone()).expect("set");
        assert_eq!(bounding, [Capability::NetRaw, Capability::SysNice].into());
        let dropped =
            SecuritySpec { cap_drop: vec!["NET_RAW".into(), "MKNOD".into()], ..SecuritySpec::default() };
        assert_eq!(super::bounding(&dropped).len(), 12);
        for name in blixard_core::security::CAPABILITIES {
            assert!(name.parse::<Capability>().is_ok(), "{name} is unknown to the specification");
        }
    }

    #[test]
    fn volumes_mount_outer_first_and_may_replace_generated_files() {
        let volume = |target: &str| MountSpec::host_path("/s".into(), target.into(), true);
        let volumes = vec![volume("/data/in/ner"), volume("/data"), volume("/etc/hosts")];
        let spec = spec(&ServiceSpec { volumes, ..service() }, IMAGE).expect("spec");
        let mounts = spec.mounts().as_ref().expect("mounts");
        let targets: Vec<_> = mounts.iter().filter_map(|mount| mount.destination().to_str()).collect();
        assert_eq!(
            targets[7..],
            ["/etc/hostname", "/etc/resolv.conf", "/data", "/etc/hosts", "/data/in/ner"]
        );
        let options = mounts.last().and_then(|mount| mount.options().clone()).expect("options");
        assert!(options.contains(&"ro".to_owned()));
    }

    #[test]
    fn hostnames_fit_a_label() {
        assert_eq!(hostname("web", 3), "web-3");
        assert_eq!(hostname(&"x".repeat(63), 12), format!("{}-12", "x".repeat(60)));
    }

    #[test]
    fn later_settings_replace_earlier_ones() {
        let settings = ["A=1", "B=2", "A=3", "C"].map(str::to_owned);
        assert_eq!(merge_environment(settings), ["A=3", "B=2", "C"]);
    }
}
