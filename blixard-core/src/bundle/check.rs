//! Whether a specification says only what a bundle can say: the one validation of what did not come
//! through the bundle reader, or is not trusted to have.
//!
//! Each value is written as a bundle writes it and read by the reader's own rule for its key, which must
//! give the same value back; so there is one rule for each, and one message. Called by the API with what
//! it is sent, by `apply` with what is submitted, and by the reader with what it has read.

use std::fmt;

use super::diagnostic::{Fault, shorten};
use super::walk::whole_text;
use super::{
    duration, environment, number, placement, ports, resources, security, service, to_bundle, volumes,
};
use crate::cluster::snapshot::encoded_len;
use crate::image_reference::is_digest;
use crate::limits::{BUNDLE_BYTES_MAX, BUNDLE_FAULTS_MAX, BUNDLE_NODES_MAX, SPEC_BYTES_MAX};
use crate::security::{CAPABILITIES, SecuritySpec};
use crate::spec::{
    HealthSpec, ImageSpec, MountKind, MountSpec, PlacementSpec, PortSpec, ReplicaBounds, Reservations,
    ResourceLimits, RestartPolicy, RestartSpec, ServiceSpec,
};
use crate::text::printable;

/// One thing that a specification may not say. Shown as one line without control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecFault {
    /// Which value, by the bundle's keys: `volumes[0].source`.
    pub path: String,
    /// What is wrong with it; begins with the path.
    pub message: String,
    /// What is allowed, or what to write instead.
    pub hint: Option<String>,
}

impl fmt::Display for SpecFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Everything that `spec` may not say, at most [`BUNDLE_FAULTS_MAX`]; none of a good one, which
/// [`to_bundle`] then writes as text that reads back as the same specification.
pub fn check(spec: &ServiceSpec) -> Vec<SpecFault> {
    check_of(spec, encoded_len(spec))
}

/// The same of a specification that takes `bytes` when it is encoded.
pub(crate) fn check_of(spec: &ServiceSpec, bytes: usize) -> Vec<SpecFault> {
    let mut check = Check { faults: Vec::new() };
    if bytes > SPEC_BYTES_MAX {
        let message = format!("takes {bytes} bytes, at most {SPEC_BYTES_MAX} are stored");
        check.fault("the specification", Fault::new(message));
        return check.faults;
    }
    // A character that takes a byte is written with at most six, and what else there is of a line is short.
    let as_bundle = if bytes * 8 > BUNDLE_BYTES_MAX { to_bundle(spec).len() } else { 0 };
    if as_bundle > BUNDLE_BYTES_MAX {
        let message = format!("takes {as_bundle} bytes as a bundle, at most {BUNDLE_BYTES_MAX} are read");
        check.fault("the specification", Fault::new(message));
    }
    check.all(spec);
    check.faults
}

struct Check {
    faults: Vec<SpecFault>,
}

impl Check {
    fn fault(&mut self, path: &str, fault: Fault) {
        if self.faults.len() < BUNDLE_FAULTS_MAX {
            let Fault { message, hint } = fault.of(path);
            let (message, hint) =
                (printable(&message).into_owned(), hint.map(|hint| printable(&hint).into_owned()));
            self.faults.push(SpecFault { path: path.to_owned(), message, hint });
        }
    }

    /// Checks that `text`, which is how a bundle writes `value`, is read as that.
    fn reads<T: PartialEq>(
        &mut self,
        path: &str,
        text: &str,
        value: &T,
        read: impl FnOnce(&str) -> Result<T, Fault>,
    ) {
        match whole_text(text).and_then(|()| read(text)) {
            Ok(found) if found == *value => {}
            Ok(_) => {
                let fault =
                    Fault::new(format!("is `{}`, which a bundle takes for something else", shorten(text)));
                self.fault(path, fault.hint("leave it out, or write what is meant in the plainest way"));
            }
            Err(fault) => self.fault(path, fault),
        }
    }

    fn path(&mut self, path: &str, text: &str, read: impl FnOnce(&str) -> Result<String, Fault>) {
        match whole_text(text).and_then(|()| read(text)) {
            Ok(plain) if plain == text => {}
            Ok(plain) => {
                let fault = Fault::new(format!("is `{}`, which stands for another path", shorten(text)));
                self.fault(path, fault.hint(format!("write {}", shorten(&plain))));
            }
            Err(fault) => self.fault(path, fault),
        }
    }

    /// The same for a value that a bundle may leave out.
    fn limit<T: PartialEq + Copy>(
        &mut self,
        path: &str,
        value: Option<T>,
        show: impl FnOnce(T) -> String,
        read: impl FnOnce(&str) -> Result<Option<T>, Fault>,
    ) {
        if let Some(amount) = value {
            self.reads(path, &show(amount), &value, read);
        }
    }

    fn all(&mut self, spec: &ServiceSpec) {
        // Its fields are all named, so that a new one is not forgotten here.
        let ServiceSpec {
            name,
            image,
            ports,
            volumes,
            environment,
            healthcheck,
            replicas,
            limits,
            reservations,
            restart,
            depends_on,
            stop_timeout_s,
            placement,
            network: _,
            min_healthy_ms,
            security,
        } = spec;
        let values = image.command.as_ref().map_or(0, Vec::len)
            + 9 * ports.len()
            + 7 * volumes.len()
            + 2 * environment.len()
            + depends_on.len()
            + placement.constraints.len()
            + security.cap_drop.len()
            + security.cap_add.len();
        if values + 100 > BUNDLE_NODES_MAX {
            let message =
                format!("has about {values} values, more than a bundle may have ({BUNDLE_NODES_MAX})");
            return self.fault("the specification", Fault::new(message));
        }
        self.image(image);
        self.ports(spec, ports);
        self.volumes(volumes);
        for (name, value) in environment {
            let path = format!("environment.{}", shorten(name));
            if let Err(fault) = environment::check_name(name) {
                self.fault("environment", fault);
            }
            self.reads(&path, value, value, |text| Ok(text.to_owned()));
        }
        if let Some(healthcheck) = healthcheck {
            self.healthcheck(healthcheck, ports);
        }
        self.replicas(*replicas);
        self.resources(limits, *reservations);
        self.restart(restart);
        for (at, other) in depends_on.iter().enumerate() {
            let path = format!("depends_on[{at}]");
            if other == name {
                self.fault(&path, service::waits_for_itself());
            } else if depends_on[..at].contains(other) {
                self.fault(&path, service::named_again(other));
            }
        }
        self.reads("stop_timeout", &stop_timeout_s.to_string(), stop_timeout_s, service::stop_timeout);
        self.placement(placement);
        self.limit("min_healthy_time", *min_healthy_ms, duration::show, |text| {
            service::min_healthy(text).map(service::unless_usual)
        });
        self.security(security);
    }

    fn security(&mut self, security: &SecuritySpec) {
        let SecuritySpec { read_only: _, no_new_privileges: _, user, cap_drop, cap_add } = security;
        if let Some(user) = user {
            self.reads("security.user", user, user, security::user);
        }
        for (key, names, all) in [("cap_drop", cap_drop, true), ("cap_add", cap_add, false)] {
            if names.len() > CAPABILITIES.len() + 1 {
                self.fault(&format!("security.{key}"), Fault::new("has more names than there are"));
                continue;
            }
            for (at, name) in names.iter().enumerate() {
                let path = format!("security.{key}[{at}]");
                self.reads(&path, name, name, |text| security::name(text, all));
                if names[..at].contains(name) {
                    self.fault(&path, Fault::new(format!("is `{}`, as another", shorten(name))));
                }
            }
        }
    }

    fn image(&mut self, image: &ImageSpec) {
        let ImageSpec { reference, digest, command, workdir } = image;
        self.reads("image.docker_image", reference, reference, service::reference);
        if let Some(digest) = digest.as_deref().filter(|digest| !is_digest(digest)) {
            let message =
                format!("takes sha256: and 64 lower-case hexadecimal digits, not `{}`", shorten(digest));
            self.fault("image.digest", Fault::new(message));
        }
        for (at, word) in command.iter().flatten().enumerate() {
            self.reads(&format!("image.command[{at}]"), word, word, |text| Ok(text.to_owned()));
        }
        if command.as_ref().is_some_and(|words| words.first().is_none_or(String::is_empty)) {
            self.fault("image.command", service::no_program());
        }
        if let Some(workdir) = workdir {
            self.path("image.workdir", workdir, volumes::container_path);
        }
    }

    fn ports(&mut self, spec: &ServiceSpec, ports: &[PortSpec]) {
        let mut taken = ports::Taken::default();
        for (at, port) in ports.iter().enumerate() {
            let PortSpec { container_port, host_port, protocol: _, host_ip, publish: _ } = port;
            let path = |key: &str| format!("ports[{at}].{key}");
            self.reads(&path("container_port"), &container_port.to_string(), container_port, number::port);
            if let Some(host_port) = host_port {
                self.reads(&path("host_port"), &host_port.to_string(), host_port, number::port);
            }
            self.limit(&path("host_ip"), *host_ip, |address| address.to_string(), ports::host_ip);
            for (key, fault) in taken.check(port, spec.network, |key| format!("`{}`", path(key))) {
                self.fault(&path(key), fault);
            }
        }
    }

    fn volumes(&mut self, volumes: &[MountSpec]) {
        let mut targets = volumes::Targets::default();
        for (at, volume) in volumes.iter().enumerate() {
            let MountSpec { source, target, read_only: _, checked: _, kind } = volume;
            let path = |key: &str| format!("volumes[{at}].{key}");
            match kind {
                MountKind::HostPath => {
                    self.path(&path("source"), source, |text| volumes::host_path(text, None));
                }
                MountKind::Volume(name) => {
                    let named = |text: &str| volumes::volume_name(text).map(|name| name.to_string());
                    self.path(&path("source"), source, named);
                    if source != name.as_str() {
                        let fault = format!("names volume `{name}`, and its source is `{}`", shorten(source));
                        self.fault(&path("kind"), Fault::new(fault));
                    }
                }
            }
            self.path(&path("target"), target, volumes::target);
            if let Err(fault) = targets.take(target, || format!("is `{}`", path("target"))) {
                self.fault(&path("target"), fault);
            }
        }
    }

    fn healthcheck(&mut self, healthcheck: &HealthSpec, ports: &[PortSpec]) {
        let HealthSpec { path, interval_ms, timeout_ms, retries } = healthcheck;
        self.reads("healthcheck.path", path, path, service::probe_path);
        let interval = duration::show(*interval_ms);
        self.reads("healthcheck.interval", &interval, interval_ms, service::probe_interval);
        self.reads("healthcheck.timeout", &duration::show(*timeout_ms), timeout_ms, service::probe_timeout);
        self.reads("healthcheck.retries", &retries.to_string(), retries, service::probe_retries);
        if let Some(fault) = service::nothing_to_probe(ports) {
            self.fault("healthcheck", fault);
        }
    }

    fn replicas(&mut self, replicas: ReplicaBounds) {
        let ReplicaBounds { min, max } = replicas;
        self.reads("replicas.min", &min.to_string(), &min, service::replica_count);
        self.reads("replicas.max", &max.to_string(), &max, service::replica_count);
        if let Some(fault) = service::crossed(min, max) {
            self.fault("replicas.max", fault);
        }
    }

    fn resources(&mut self, limits: &ResourceLimits, reservations: Reservations) {
        let ResourceLimits { cpu_shares, cpu_quota_us, memory_bytes, memory_swap_bytes, blkio_weight, pids } =
            limits;
        let path = |key: &str| format!("resources.{key}");
        self.limit(&path("cpu_shares"), *cpu_shares, |shares| shares.to_string(), resources::cpu_shares);
        self.limit(&path("cpu_quota"), *cpu_quota_us, |quota| quota.to_string(), resources::cpu_quota);
        self.limit(&path("memory_limit"), *memory_bytes, |bytes| bytes.to_string(), resources::memory_limit);
        self.limit(&path("memory_swap"), *memory_swap_bytes, |swap| swap.to_string(), resources::memory_swap);
        self.limit(
            &path("blkio_weight"),
            *blkio_weight,
            |weight| weight.to_string(),
            resources::blkio_weight,
        );
        self.limit(&path("pids_limit"), *pids, |pids| pids.to_string(), resources::pids);
        let Reservations { cpu_millis, memory_bytes } = reservations;
        self.reads(&path("cpu"), &format!("{cpu_millis}m"), &cpu_millis, number::cpu);
        self.reads(&path("memory"), &memory_bytes.to_string(), &memory_bytes, number::memory);
        for (key, fault) in resources::check(limits, reservations) {
            self.fault(&path(key), fault);
        }
    }

    fn restart(&mut self, restart: &RestartSpec) {
        let RestartSpec { policy, maximum_retry_count } = *restart;
        let path = "restart_policy.maximum_retry_count";
        self.limit(path, maximum_retry_count, |count| count.to_string(), service::retry_count);
        if policy == RestartPolicy::Unsaid && maximum_retry_count.is_some() {
            self.fault(path, Fault::new("counts only with `name: on-failure`"));
        }
    }

    fn placement(&mut self, placement: &PlacementSpec) {
        let PlacementSpec { constraints, spread } = placement;
        for (at, constraint) in constraints.iter().enumerate() {
            let path = format!("placement.constraints[{at}]");
            self.reads(&path, &constraint.to_string(), constraint, placement::constraint);
        }
        if let Some(spread) = spread {
            self.reads("placement.spread", spread, &(), placement::check_label);
        }
    }
}
