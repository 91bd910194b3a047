//! Tier: processes. A control plane can be controlled by a test, and leaves nothing when its owner ends for any reason.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in shared functions")]

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use control_plane::{ControlPlane, DataDirectory, Error, Process, TEST_CLUSTER};

/// Runs `kubectl` and returns its output or its error.
fn kubectl(control_plane: &ControlPlane, arguments: &[&str]) -> Result<String, String> {
    let output = control_plane.kubectl().args(arguments).output().map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The timeout of the start of a playground or an operator. It is longer than their own deadlines on a slow machine.
const START_TIMEOUT: Duration = Duration::from_mins(5);

/// Whether the condition becomes true within ten seconds.
fn becomes(condition: impl Fn() -> bool) -> bool {
    becomes_within(Duration::from_secs(10), condition)
}

fn becomes_within(timeout: Duration, condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Whether the process runs. A zombie does not run.
fn runs(id: u32) -> bool {
    fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn ids(control_plane: &ControlPlane) -> Vec<u32> {
    let servers = control_plane.api_servers().iter().chain([control_plane.etcd()]);
    servers.filter_map(control_plane::Server::id).collect()
}

#[test]
fn servers_keep_data_after_kill_pause_and_restart() {
    let control_plane = ControlPlane::builder().api_servers(2).user("alice", &["sales"]).start().unwrap();
    let on = |context, arguments: &[&str]| {
        kubectl(&control_plane, &[&["--context", context, "--request-timeout", "2s"], arguments].concat())
    };
    let address = control_plane.api_server(0).address();

    on("api-1", &["create", "namespace", "sales"]).unwrap();
    on("api-2", &["get", "namespace", "sales"]).expect("both API servers have one store");
    let user = on("api-1", &["--token=alice", "auth", "whoami", "-o", "jsonpath={.status.userInfo}"]).unwrap();
    assert!(user.contains(r#""username":"alice""#) && user.contains("sales"), "{user}");

    control_plane.api_server(0).kill();
    assert!(on("api-1", &["get", "namespace", "sales"]).is_err(), "killed");
    on("api-2", &["get", "namespace", "sales"]).expect("the other one still serves");
    control_plane.api_server(0).start().unwrap();
    assert_eq!(control_plane.api_server(0).address(), address, "a restart keeps the port");
    on("api-1", &["get", "namespace", "sales"]).unwrap();

    control_plane.api_server(1).pause();
    assert!(on("api-2", &["get", "namespace", "sales"]).is_err(), "paused");
    control_plane.api_server(1).resume();
    on("api-2", &["get", "namespace", "sales"]).unwrap();

    control_plane.etcd().kill();
    control_plane.etcd().start().unwrap();
    assert!(becomes(|| on("api-1", &["get", "namespace", "sales"]).is_ok()), "etcd lost what it had acknowledged");
    control_plane.api_server(1).restart().unwrap();
    on("api-2", &["get", "namespace", "sales"]).unwrap();

    let (ids, data) = (ids(&control_plane), control_plane.data_dir().to_owned());
    assert_eq!(ids.len(), 3);
    drop(control_plane);
    assert!(!ids.iter().any(|id| runs(*id)), "a server outlived its control plane");
    assert!(!data.exists(), "{} outlived its control plane", data.display());
}

#[test]
fn unknown_api_server_flag_is_reported_with_the_log() {
    let error = ControlPlane::builder()
        .api_server_flag("--no-such-flag")
        .start()
        .err()
        .expect("an API server with an unknown flag does not start");
    let Error::Ended { name, log, .. } = &error else { panic!("{error}") };
    assert_eq!(name, "api-server-1");
    assert!(error.to_string().contains("unknown flag: --no-such-flag"), "{error}");
    assert!(log.exists(), "the log must be kept");
    fs::remove_dir_all(log.parent().and_then(Path::parent).unwrap()).unwrap();
}

/// Starts this test program again as the owner of a control plane. Returns it with the processes and the directory that must not outlive
/// it.
fn owner(ending: &str) -> (std::process::Child, Vec<u32>, PathBuf) {
    let mut owner = Command::new(env::current_exe().unwrap())
        .args(["--exact", "owner_of_a_control_plane", "--ignored", "--nocapture"])
        .env(ENDING, ending)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let line = lines.find_map(|line| Some(line.unwrap().split_once("owns: ")?.1.to_owned())).unwrap();
    let (data, ids) = line.split_once(' ').unwrap();
    let ids: Vec<u32> = ids.split(' ').map(|id| id.parse().unwrap()).collect();
    assert!(ids.iter().all(|id| runs(*id)) && Path::new(data).exists());
    (owner, ids, PathBuf::from(data))
}

const ENDING: &str = "OWNER_OF_A_CONTROL_PLANE";

/// The program that [`owner`] starts, not a test. It waits until its standard input closes, and then ends in the requested way.
#[test]
#[ignore = "started by the tests below"]
fn owner_of_a_control_plane() {
    static CONTROL_PLANE: std::sync::OnceLock<ControlPlane> = std::sync::OnceLock::new();
    let Ok(ending) = env::var(ENDING) else { return };
    let control_plane = CONTROL_PLANE.get_or_init(|| ControlPlane::builder().start().unwrap());
    let ids: Vec<_> = ids(control_plane).iter().map(u32::to_string).collect();
    println!("owns: {} {}", control_plane.data_dir().display(), ids.join(" "));
    std::io::stdin().lines().for_each(drop);
    assert_ne!(ending, "panic");
}

#[test]
fn process_leaves_nothing_after_it_ends_or_is_killed() {
    for ending in ["return", "kill"] {
        let (mut owner, ids, data) = owner(ending);
        if ending == "kill" {
            owner.kill().unwrap();
        }
        drop(owner.stdin.take());
        owner.wait().unwrap();
        assert!(becomes(|| !ids.iter().any(|id| runs(*id))), "{ending}: a server outlived its owner");
        assert!(becomes(|| !data.exists()), "{ending}: {} outlived its owner", data.display());
    }
}

#[test]
fn logs_are_kept_after_a_failed_test() {
    let (mut owner, ids, data) = owner("panic");
    drop(owner.stdin.take());
    assert!(!owner.wait().unwrap().success());
    assert!(becomes(|| !ids.iter().any(|id| runs(*id))), "a server outlived its owner");
    assert!(becomes(|| fs::read_dir(&data).unwrap().count() == 1), "the data stay");
    assert!(fs::metadata(data.join("logs/api-server-1.log")).unwrap().len() > 0);
    fs::remove_dir_all(data).unwrap();
}

#[test]
fn playground_uses_the_checkout_of_its_working_directory() {
    let checkout = env::temp_dir().join(format!("switchboard-copied-{}", std::process::id()));
    let write = |path: &str, content: &[u8]| {
        let path = checkout.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    };
    let play = |directory: &Path| {
        let output =
            Command::new(checkout.join("target/release/playground")).current_dir(directory).env("ONCE", "1").output();
        let output = output.unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    // The copied checkout has a playground that was compiled elsewhere, and a chart that helm refuses.
    let playground = write("target/release/playground", &fs::read(env!("CARGO_BIN_EXE_playground")).unwrap());
    fs::set_permissions(playground, fs::metadata(env!("CARGO_BIN_EXE_playground")).unwrap().permissions()).unwrap();
    for name in ["go.mod", "go.sum", "require-go.sh"] {
        write(&format!("tests/control-plane/{name}"), &fs::read(name).unwrap());
    }
    write("charts/switchboard/Chart.yaml", b"apiVersion: v2\nname: switchboard\nversion: none\n");
    let text = play(&checkout);
    let chart = format!("helm upgrade --install switchboard {}/charts/switchboard ", checkout.display());
    assert!(text.contains(&chart), "{text}");
    let logs = text.lines().find_map(|line| line.split_once("stay in ")).unwrap().1;
    fs::remove_dir_all(Path::new(logs).parent().unwrap()).unwrap();

    let text = play(&env::temp_dir());
    assert!(text.contains("is outside a checkout of switchboard: run this inside one"), "{text}");
    fs::remove_dir_all(checkout).unwrap();
}

/// It needs the binary of the operator, which `cargo test --workspace` builds.
#[test]
fn playground_without_operator_serves_the_printed_command() {
    let directory = DataDirectory::create().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_playground"));
    command.env("OPERATOR", "none").env_remove("ONCE").env_remove("REPLICAS");
    let playground = Process::new("playground", directory.log("playground"), command).unwrap();
    playground.start().unwrap();
    let output = || fs::read_to_string(playground.log()).unwrap_or_default();
    let is_over = || output().contains(TEST_CLUSTER) || playground.wait(Duration::ZERO).is_some();
    assert!(becomes_within(START_TIMEOUT, is_over) && playground.id().is_some(), "{}", output());
    let output = output();
    assert!(output.contains("The tour is skipped"), "{output}");
    let kubeconfig = output.lines().find_map(|line| line.trim().strip_prefix("export KUBECONFIG=")).unwrap();
    let kubectl = |arguments: &str| {
        let mut kubectl = control_plane::kubectl(Path::new(kubeconfig)).unwrap();
        control_plane::run(kubectl.args(arguments.split(' '))).map_err(|error| error.to_string())
    };
    let try_to_create = || kubectl("create --dry-run=server --filename tour/carol.yaml");
    let assert_refused = || {
        let refusal = try_to_create().expect_err("the webhook's failurePolicy is Fail");
        assert!(refusal.contains("failed calling webhook"), "{refusal}");
    };
    assert_refused();

    let operator = Path::new(env!("CARGO_BIN_EXE_playground")).with_file_name("switchboard");
    let line = output.lines().find(|line| line.contains(" cargo run -- run ")).unwrap();
    let line = line.replace("cargo run --", operator.to_str().unwrap());
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec env {line}")]);
    let operator = Process::new("operator", directory.log("operator"), shell).unwrap();
    // Killed in between: so the second one waits for the lease of the first.
    for name in ["alice", "bob"] {
        operator.start().unwrap();
        let is_over = || try_to_create().is_ok() || operator.wait(Duration::ZERO).is_some();
        assert!(becomes_within(START_TIMEOUT, is_over) && operator.id().is_some(), "{}", operator.log_tail());
        kubectl(&format!("apply --filename tour/{name}.yaml")).unwrap();
        kubectl(&format!("wait conv/{name} --for=condition=Bound --timeout=2m")).unwrap();
        operator.kill();
        assert_refused();
    }

    playground.terminate();
    assert!(playground.wait(Duration::from_mins(1)).unwrap().success());
}
