//! The images there are.

use anyhow::{Context, Result};
use serde_json::json;

use super::layer::{Layer, Owner, ROOT};
use super::{Image, Recipe};

/// The applets of busybox that scripts in tests use.
const APPLETS: [&str; 25] = [
    "cat", "chmod", "chown", "date", "dd", "df", "echo", "env", "false", "grep", "head", "hostname", "httpd",
    "id", "kill", "ls", "mkdir", "nc", "ps", "sh", "sleep", "true", "wget", "whoami", "tail",
];
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const WWW: Owner = (33, 33);
const SERVER: Owner = (999, 999);

/// Busybox with a shell and what scripts need; runs a shell.
///
/// # Errors
/// When Debian's busybox-static is not installed.
pub fn busybox() -> Result<Image> {
    let config = json!({"Env": [PATH], "Cmd": ["sh"]});
    Recipe { name: "busybox:1", packages: &[], files: base()?, config }.build()
}

/// An HTTP server on port 80 whose page is its container's host name. It ends at once when told
/// to stop.
///
/// # Errors
/// When Debian's busybox-static is not installed.
pub fn web() -> Result<Image> {
    let script = "#!/bin/sh\nset -eu\nhostname >/www/index.html\necho \"serving as $(hostname)\"\n\
                  exec httpd -f -v -p 80 -h /www\n";
    let files = base()?.directory("www", 0o755, ROOT).file("serve", 0o755, script.as_bytes());
    let config = json!({
        "Env": [PATH], "Entrypoint": ["/serve"], "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGKILL",
    });
    Recipe { name: "web:1", packages: &[], files, config }.build()
}

/// Busybox beside a file of `mebibytes` that no compression makes smaller.
///
/// # Errors
/// When Debian's busybox-static is not installed.
pub fn bulky(mebibytes: usize) -> Result<Image> {
    let mut state = 1_u64;
    // Any generator does whose output does not repeat (xorshift, Marsaglia 2003).
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let content: Vec<u8> = words.take(mebibytes << 17).flatten().collect();
    let config = json!({"Env": [PATH], "Cmd": ["sh"]});
    Recipe { name: "bulky:1", packages: &[], files: base()?.file("bulk", 0o644, &content), config }.build()
}

/// Busybox with a program of its own in /bin: lines of shell, which get its arguments.
///
/// # Errors
/// When Debian's busybox-static is not installed.
pub fn stand_in(program: &'static str, lines: &str) -> Result<Image> {
    let script = format!("#!/bin/sh\n{lines}\n");
    let files =
        base()?.directory("app", 0o755, ROOT).file(&format!("bin/{program}"), 0o755, script.as_bytes());
    let config = json!({"Env": [PATH], "Cmd": [program]});
    Recipe { name: program, packages: &[], files, config }.build()
}

/// Debian's nginx as it comes, configured as its package configures it, in the foreground.
///
/// # Errors
/// When its packages cannot be downloaded.
pub fn nginx() -> Result<Image> {
    let page = "<!DOCTYPE html>\n<title>Welcome to nginx!</title>\n<h1>Welcome to nginx!</h1>\n";
    let files = base()?
        .directory("var/log/nginx", 0o755, ROOT)
        .directory("var/www/html", 0o755, ROOT)
        .directory("var/lib/nginx", 0o755, WWW)
        .file("var/www/html/index.html", 0o644, page.as_bytes())
        // What the package's installation script would have done.
        .link("etc/nginx/sites-enabled/default", "/etc/nginx/sites-available/default")
        .link("var/log/nginx/access.log", "/dev/stdout")
        .link("var/log/nginx/error.log", "/dev/stderr");
    let config = json!({
        "Env": [PATH], "Cmd": ["nginx", "-g", "daemon off;"], "ExposedPorts": {"80/tcp": {}},
        "StopSignal": "SIGQUIT",
    });
    Recipe { name: "nginx:1", packages: &["nginx"], files, config }.build()
}

/// Debian's redis as it comes, as the user redis, with its data in /data.
///
/// # Errors
/// When its packages cannot be downloaded.
pub fn redis() -> Result<Image> {
    let files = base()?.directory("data", 0o750, SERVER);
    let config = json!({
        "User": "redis", "Env": [PATH], "WorkingDir": "/data", "Volumes": {"/data": {}},
        "Entrypoint": ["redis-server"], "Cmd": ["--protected-mode", "no"], "ExposedPorts": {"6379/tcp": {}},
    });
    Recipe { name: "redis:1", packages: &["redis-server"], files, config }.build()
}

/// Debian's PostgreSQL as it comes, as the user postgres, with its data in
/// /var/lib/postgresql/data, which the first start initialises.
///
/// # Errors
/// When its packages cannot be downloaded.
pub fn postgres() -> Result<Image> {
    let script = "#!/bin/sh\nset -eu\nif [ ! -s \"$PGDATA/PG_VERSION\" ]; then\n  \
                  initdb --username=postgres --auth=trust --locale=C --encoding=UTF8 >/dev/null\n  \
                  echo 'host all all all trust' >>\"$PGDATA/pg_hba.conf\"\nfi\nexec \"$@\"\n";
    let files = base()?
        .directory("var/lib/postgresql", 0o755, SERVER)
        .directory("var/lib/postgresql/data", 0o700, SERVER)
        .directory("run/postgresql", 0o755, SERVER)
        .link("var/run", "/run")
        .file("docker-entrypoint.sh", 0o755, script.as_bytes());
    let config = json!({
        "User": "postgres",
        "Env": [format!("{PATH}:/usr/lib/postgresql/15/bin"), "PGDATA=/var/lib/postgresql/data"],
        "Entrypoint": ["/docker-entrypoint.sh"],
        "Cmd": ["postgres", "-c", "listen_addresses=*", "-c", "jit=off"],
        "ExposedPorts": {"5432/tcp": {}}, "StopSignal": "SIGINT",
    });
    Recipe { name: "postgres:1", packages: &["postgresql-15", "postgresql-client-15"], files, config }.build()
}

/// What every image has: busybox, users, the usual directories.
fn base() -> Result<Layer> {
    let busybox = std::fs::read("/bin/busybox")
        .context("cannot read /bin/busybox: install the Debian package busybox-static")?;
    let users = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n\
                 redis:x:999:999::/data:/bin/false\npostgres:x:999:999::/var/lib/postgresql:/bin/sh\n\
                 nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
    let groups = "root:x:0:\nadm:x:4:\nwww-data:x:33:\nredis:x:999:\npostgres:x:999:\nnogroup:x:65534:\n";
    let mut layer = Layer::new()
        .directory("bin", 0o755, ROOT)
        .directory("etc", 0o755, ROOT)
        .directory("tmp", 0o1777, ROOT)
        .directory("root", 0o700, ROOT)
        .directory("run", 0o755, ROOT)
        .file("etc/passwd", 0o644, users.as_bytes())
        .file("etc/group", 0o644, groups.as_bytes())
        .file("bin/busybox", 0o755, &busybox);
    for applet in APPLETS {
        layer = layer.link(&format!("bin/{applet}"), "busybox");
    }
    Ok(layer)
}
