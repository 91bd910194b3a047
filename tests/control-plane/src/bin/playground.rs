//! `make run`: a control plane with the operator installed, the tour, and then a cluster to play with until Ctrl-C.
//!
//! Environment: `API_SERVERS` and `REPLICAS` (1 each unless set), `ONCE=1`, which ends it after the tour, `OPERATOR=none`, which
//! leaves the operator to a developer who runs it from the working tree, and `SWITCHBOARD_KUBERNETES=1.33` for an older API server.

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use control_plane::{
    ControlPlane, Error, Installation, Kubernetes, TEST_CLUSTER, end_everything, repository,
    tools::{self, Tool},
    tour::{Guide, Messaging, print},
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

static SIGNALLED: AtomicBool = AtomicBool::new(false);
static IS_UP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let result = Options::from_environment().and_then(|options| {
        end_on_a_signal().map_err(|error| format!("cannot handle signals: {error}"))?;
        play(&options).map_err(|error| error.to_string())
    });
    while SIGNALLED.load(Ordering::SeqCst) {
        // What failed, failed because everything is being ended; the thread that does so ends the process too.
        thread::park();
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    api_servers: usize,
    replicas: usize,
    operator: bool,
    once: bool,
}

impl Options {
    fn from_environment() -> Result<Self, String> {
        let operator = match text("OPERATOR")?.as_str() {
            "" => true,
            "none" => false,
            text => return Err(format!("OPERATOR is {text:?}, but must be none, as in `make run OPERATOR=none`")),
        };
        let once = switch("ONCE")?;
        if once && !operator {
            return Err("ONCE=1 ends it after the tour, which OPERATOR=none skips: set only one of them".to_owned());
        }
        Ok(Self { api_servers: count("API_SERVERS")?, replicas: count("REPLICAS")?, operator, once })
    }
}

fn count(name: &str) -> Result<usize, String> {
    match text(name)?.as_str() {
        "" => Ok(1),
        text => match text.parse() {
            Ok(count @ 1..=9) => Ok(count),
            _ => Err(format!("{name} is {text:?}, but must be a number from 1 to 9, as in `make run {name}=2`")),
        },
    }
}

fn switch(name: &str) -> Result<bool, String> {
    match text(name)?.as_str() {
        "" | "0" => Ok(false),
        "1" => Ok(true),
        text => Err(format!("{name} is {text:?}, but must be 1 or 0, as in `make run {name}=1`")),
    }
}

fn text(name: &str) -> Result<String, String> {
    let value = env::var_os(name).unwrap_or_default();
    value.into_string().map_err(|value| format!("{name} is {}, which is no text", value.display()))
}

fn play(options: &Options) -> Result<(), Error> {
    let operator = operator()?;
    // At once, and not after what takes long.
    repository::root()?;
    tools::ensure(Tool::PLAYGROUND)?;

    let started = Instant::now();
    let version = Kubernetes::asked_for()?.map(|version| format!(" of {version:?}")).unwrap_or_default();
    print(&format!("Starting etcd and {}{version} … ", counted(options.api_servers, "API server")))?;
    let control_plane = ControlPlane::builder().api_servers(options.api_servers).start()?;
    print(&format!("ready after {:.1} s\n", started.elapsed().as_secs_f32()))?;

    let result = install(options, &control_plane, &operator);
    if result.is_err() && !SIGNALLED.load(Ordering::SeqCst) {
        eprintln!("\nThe logs of the API server and of the operator stay in {}", control_plane.keep_logs().display());
    }
    result
}

fn install(options: &Options, control_plane: &ControlPlane, operator: &Path) -> Result<(), Error> {
    let started = Instant::now();
    let replicas = counted(options.replicas, "replica");
    let operator_too =
        if options.operator { format!(" and starting {replicas} of the operator") } else { String::new() };
    print(&format!("Installing the chart{operator_too} … "))?;
    let mut installation = Installation::builder(operator).replicas(options.replicas).start(options.operator);
    if !options.operator {
        // For a terminal, and for a Ctrl-C that soon ends it.
        installation = installation.flag("--log-format=text").flag("--drain-delay=1s");
    }
    for (key, value) in Messaging::VALUES {
        installation = installation.set(key, value);
    }
    let installation = installation.install(control_plane)?;
    print(&format!("ready after {:.1} s\n", started.elapsed().as_secs_f32()))?;

    let messaging = options.operator.then(|| Messaging::start(control_plane, operator)).transpose()?;
    if let Some(messaging) = &messaging {
        let started = Instant::now();
        Guide::new(control_plane, messaging)?.lead()?;
        let took = started.elapsed().as_secs_f32();
        print(&format!("\nThe tour took {took:.0} s, and every step came out as told.\n"))?;
    }
    IS_UP.store(true, Ordering::SeqCst);
    if options.once {
        return Ok(());
    }

    let tools = Path::new(control_plane.kubectl().get_program()).parent().map(Path::to_owned).unwrap_or_default();
    print(&format!(
        "\nIt stays up until you press Ctrl-C. To go on by yourself, in another terminal:\n\n  \
         export KUBECONFIG={}\n  export PATH={}:$PATH\n  kubectl get conv,ab\n  \
         kubectl explain conversation.spec --recursive\n\nLogs: {}\n",
        control_plane.kubeconfig().display(),
        tools.display(),
        installation.replica(0).log().parent().unwrap_or(Path::new("")).display(),
    ))?;
    if let Some(messaging) = &messaging {
        print(&format!(
            "\nTo send another message, from the root of the repository:\n\n  {}\n  \
             tests/control-plane/tour/send +12025550147 sms-5 'Thank you'\n",
            messaging.exports(),
        ))?;
    }
    if !options.operator {
        let commands = installation.replicas().iter().map(|replica| replica.shell_line("cargo run --"));
        print(&format!(
            "\nThe tour is skipped, since no operator runs: creates of conversations fail until you start it. To run it from\n\
             the working tree, in another terminal, as often as you wish:\n\n  {}\n\n\
             To run tests on this cluster while it runs, in a third one:\n\n  \
             {TEST_CLUSTER}={} cargo test --test integration processes::admission\n",
            commands.collect::<Vec<_>>().join("\n  "),
            control_plane.kubeconfig().display(),
        ))?;
    }
    loop {
        thread::park();
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Cargo puts the operator beside this program.
fn operator() -> Result<PathBuf, Error> {
    let own = env::current_exe().map_err(|source| Error::Io { doing: "find this program".to_owned(), source })?;
    Ok(own.with_file_name("switchboard"))
}

/// Ctrl-C is how the playground is meant to end, so once it is up it is a success. A build or a kubectl that is under way need not
/// come to its end: all is killed.
fn end_on_a_signal() -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            SIGNALLED.store(true, Ordering::SeqCst);
            end_everything();
            std::process::exit(if IS_UP.load(Ordering::SeqCst) { 0 } else { 128 + signal });
        }
    });
    Ok(())
}
