//! The command line of the real binary: it refuses invalid settings in one line that names the remedy.

use serde_json::Value;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output};

fn switchboard(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard"));
    command.args(arguments).env_remove("KUBECONFIG").env("HOME", "/nonexistent");
    command.output().unwrap()
}

/// The only line on standard error. The process must have failed.
fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "the process succeeded");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

/// The error in the only line on standard error, which must be JSON.
fn fatal(output: &Output) -> String {
    let line: Value = serde_json::from_str(&complaint(output)).unwrap();
    assert_eq!(line["level"], "ERROR");
    line["fields"]["error"].as_str().unwrap().to_owned()
}

/// The directory of a test, which is removed when this is dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("switchboard-cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    fn write(&self, name: &str, content: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    /// A kubeconfig with an address at which no API server listens. `user` holds the credentials.
    fn kubeconfig(&self, user: &str) -> String {
        self.write(
            "kubeconfig",
            &format!(
                r#"{{"apiVersion": "v1", "kind": "Config", "current-context": "c",
                     "clusters": [{{"name": "c", "cluster": {{"server": "https://127.0.0.1:1"}}}}],
                     "users": [{{"name": "u", "user": {user}}}],
                     "contexts": [{{"name": "c", "context": {{"cluster": "c", "user": "u"}}}}]}}"#
            ),
        )
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `switchboard run` on free ports, with more `arguments`.
fn run(kubeconfig: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard"));
    command.arg("run").args(arguments).env("KUBECONFIG", kubeconfig);
    command.env("SWITCHBOARD_WEBHOOK_ADDRESS", "127.0.0.1:0").env("SWITCHBOARD_HEALTH_ADDRESS", "127.0.0.1:0");
    command
}

#[test]
fn invalid_configuration_ends_the_process_with_a_remedy() {
    let directory = Directory::new("configuration");
    let good = directory.kubeconfig(r#"{"token": "t"}"#);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let health = format!("--health-address={}", taken.local_addr().unwrap());
    let no_certificate = ["--tls-cert-file=/nonexistent/tls.crt", "--tls-key-file=/nonexistent/tls.key"];
    for (arguments, expected) in [
        (&no_certificate[..], ["No such file or directory", "set the file by --tls-cert-file"]),
        (&[health.as_str()], ["Address already in use", "choose another address by --health-address"]),
        (&["--lease-duration=1s"], ["whole seconds", "at least 2s"]),
        (
            &["--events-sink=http://crm", "--signing-secrets-directory=/nonexistent"],
            ["cannot read /nonexistent", "check the volumes of the pod"],
        ),
        (&["--events-sink=http://crm", "--sink-ca-file=/nonexistent"], ["/nonexistent", "check --sink-ca-file"]),
    ] {
        let text = fatal(&run(&good, arguments).output().unwrap());
        assert!(expected.iter().all(|part| text.contains(part)), "{text}");
    }
    let no_token = directory.kubeconfig(r#"{"tokenFile": "/nonexistent/token"}"#);
    let text = fatal(&run(&no_token, &[]).output().unwrap());
    assert!(text.contains("/nonexistent/token") && text.contains("check KUBECONFIG"), "{text}");
    let text = fatal(&run("/nonexistent/kubeconfig", &[]).output().unwrap());
    assert!(text.contains("no API server is configured: set KUBECONFIG"), "{text}");
}

#[test]
fn last_line_is_written_whatever_the_log_filter() {
    let directory = Directory::new("last-line");
    let kubeconfig = directory.kubeconfig(r#"{"token": "t"}"#);
    for filter in ["--log=off", "--log=no,such=filter,=="] {
        let arguments = [filter, "--tls-cert-file=/nonexistent/tls.crt", "--tls-key-file=/nonexistent/tls.key"];
        fatal(&run(&kubeconfig, &arguments).output().unwrap());
        let text = complaint(&run(&kubeconfig, &[&arguments[..], &["--log-format=text"]].concat()).output().unwrap());
        assert!(text.contains("ERROR"), "{text}");
    }
}

#[test]
fn check_names_cause_and_remedy_if_the_api_server_is_down() {
    let directory = Directory::new("check");
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard"));
    let text =
        complaint(&command.arg("check").env("KUBECONFIG", directory.kubeconfig(r#"{"token": "t"}"#)).output().unwrap());
    let expected = "switchboard: the API server at https://127.0.0.1:1/ cannot be reached: client error (Connect): tcp connect error: \
                    Connection refused (os error 111); check that it runs";
    assert!(text.starts_with(expected), "{text}");
}

#[test]
fn grace_period_that_permits_two_holders_is_refused() {
    let text = complaint(&switchboard(&["run", "--grace-period=39s"]));
    assert!(text.contains("at least 40s"), "{text}");
}

#[test]
fn delay_that_permits_closes_by_mistake_is_refused() {
    let text = complaint(&switchboard(&["run", "--defaults-delay=599s"]));
    assert!(text.contains("at least 10m"), "{text}");
}

#[test]
fn contradicting_default_timers_are_refused() {
    let timers = |close_after: &str| {
        let close_after = format!("--default-close-after={close_after}");
        complaint(&switchboard(&["run", "--default-inactive-after=30m", &close_after, "--log=no=such=level"]))
    };
    for close_after in ["30m", "1s"] {
        assert!(timers(close_after).contains("must be longer than --default-inactive-after"), "{close_after}");
    }
    for close_after in ["31m", "never"] {
        assert!(timers(close_after).contains("--log is not valid"), "{close_after}");
    }
}

#[test]
fn flags_of_a_sink_without_its_url_are_refused() {
    for flag in ["--signing-secrets-directory=/secrets", "--sink-ca-file=/ca.crt"] {
        assert!(complaint(&switchboard(&["run", flag])).contains("no effect without --events-sink"), "{flag}");
    }
}

#[test]
fn lease_duration_too_short_to_renew_is_refused() {
    for lease in ["1s", "2500ms"] {
        let text = complaint(&switchboard(&["run", &format!("--lease-duration={lease}")]));
        assert!(text.contains("whole seconds, at least 2s"), "{text}");
    }
}

#[test]
fn invalid_flag_is_refused_with_the_allowed_values() {
    for (arguments, expected) in [
        (&["run", "--grace-period=soon"][..], "must be a duration such as 90s"),
        (&["run", "--webhook-address=here"][..], "--webhook-address"),
        (&["run", "--default-close-after=tomorrow"][..], "must be a duration such as 90s, 30m, 24h or 1h30m"),
        (&["run", "--default-close-after=0s"][..], "must be between 1s and 87600h (ten years), or never"),
        (&["walk"][..], "unrecognized subcommand"),
        (&["run", "--otlp-endpoint=https://collector"][..], "http://collector"),
        (&["run", "--tls-cert-file=tls.crt"][..], "--tls-key-file"),
        (&["run", "--events-sink=crm"][..], "must be a URL such as http://"),
    ] {
        let output = switchboard(arguments);
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn crds_command_prints_every_crd() {
    let output = switchboard(&["crds"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let kinds: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("  name: ")).collect();
    let expected = ["conversations", "addressbindings", "proxyaddresses"].map(|kind| format!("{kind}.switchboard.dev"));
    assert_eq!(kinds, expected);
}

#[test]
fn version_names_the_commit_and_the_kubernetes_versions() {
    let text = String::from_utf8(switchboard(&["--version"]).stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], concat!("switchboard ", env!("CARGO_PKG_VERSION")));
    assert!(lines[1].starts_with("commit ") && lines[2].starts_with("for Kubernetes 1."), "{text}");
}

#[test]
fn completions_for_each_shell_contain_the_flags() {
    for shell in ["bash", "zsh", "fish"] {
        let output = switchboard(&["completions", shell]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("grace-period"), "{shell}: {text}");
    }
}

#[test]
fn check_without_a_kubeconfig_names_the_remedy() {
    let text = complaint(&switchboard(&["check"]));
    assert!(text.contains("no API server is configured") && text.contains("KUBECONFIG"), "{text}");
}
