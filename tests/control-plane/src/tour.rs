//! The tour of `make run`: the commands a user would type, run for real against a control plane with the operator installed, and
//! each checked to come out as told. It shows; what it shows is decided elsewhere.

use std::{
    env,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{ControlPlane, Error, process, repository};

struct Step {
    title: &'static str,
    /// What is done here, and why it matters.
    why: &'static str,
    commands: &'static [Typed],
}

/// A command line, and what is to come of it.
struct Typed {
    line: &'static str,
    outcome: Outcome,
    /// Each of these stands in what it prints.
    says: &'static [&'static str],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Refused,
}

const fn done(line: &'static str, says: &'static [&'static str]) -> Typed {
    Typed { line, outcome: Outcome::Done, says }
}

const fn refused(line: &'static str, says: &'static [&'static str]) -> Typed {
    Typed { line, outcome: Outcome::Refused, says }
}

const STEPS: &[Step] = &[
    Step {
        title: "A conversation takes its binding",
        why: "A conversation joins a contact (Alice's number) and a proxy (our number, behind which agents answer) on a channel.\n\
              The three together are its binding: by them an inbound message finds its conversation.",
        commands: &[
            done("cat tests/control-plane/tour/alice.yaml", &["kind: Conversation"]),
            done("kubectl apply -f tests/control-plane/tour/alice.yaml", &["created"]),
            done("kubectl wait conv/alice --for=condition=Bound --timeout=30s", &["condition met"]),
            done("kubectl get conv,ab", &["conversation.switchboard.dev/alice", "sms-67e3eom4uehoawfojbv6j3egtc"]),
        ],
    },
    Step {
        title: "A second one for the same binding is refused",
        why: "If agent 9 could open another conversation for the same two numbers, nobody could say to whom Alice's answer belongs.\n\
              The API server refuses it before it is stored, and says who holds the binding and what can be done.",
        commands: &[refused(
            "kubectl apply -f tests/control-plane/tour/alice-again.yaml",
            &["48031:", "+15558675310", "+15017122661", "default/alice", "Active", "agent-7"],
        )],
    },
    Step {
        title: "By another proxy, or on another channel, it is another binding",
        why: "The refusal's own advice: the same Alice from our second number, and on WhatsApp. Neither could be mistaken for the first.",
        commands: &[
            done(
                "kubectl apply -f tests/control-plane/tour/alice-elsewhere.yaml",
                &["alice-other-proxy created", "alice-whatsapp created"],
            ),
            done(
                "kubectl wait conv/alice-other-proxy conv/alice-whatsapp --for=condition=Bound --timeout=30s",
                &["alice-other-proxy condition met", "alice-whatsapp condition met"],
            ),
        ],
    },
    Step {
        title: "A conversation that nobody has taken is easy to see",
        why: "Bob's conversation has no participant, so his messages reach nobody. That is a condition: a script can wait for it, an alert\n\
              can fire on it, and `timers.closeUnassignedAfter` can put an end to it.",
        commands: &[
            done("kubectl apply -f tests/control-plane/tour/bob.yaml", &["created"]),
            done("kubectl wait conv/bob --for=condition=Unassigned --timeout=30s", &["condition met"]),
            done("kubectl get conv bob -o wide", &["UNASSIGNED", "True"]),
        ],
    },
    Step {
        title: "Closing the first one frees its binding at once",
        why: "Agent 7 is done with Alice and closes the conversation. The very next moment the one that was refused is admitted: nobody\n\
              waits for a controller to notice. By its three parts the binding shows who holds it now.",
        commands: &[
            done(r#"kubectl patch conv alice --type=merge -p '{"spec":{"state":"Closed"}}'"#, &["patched"]),
            done("kubectl apply -f tests/control-plane/tour/alice-again.yaml", &["created"]),
            done("kubectl wait conv/alice-again --for=condition=Bound --timeout=30s", &["condition met"]),
            done(
                "kubectl get ab --field-selector spec.channel=SMS,spec.contactAddress=+15558675310,spec.proxyAddress=+15017122661",
                &["sms-67e3eom4uehoawfojbv6j3egtc", "alice-again"],
            ),
        ],
    },
    Step {
        title: "A timer closes what was forgotten",
        why: "Carol's conversation says `closeAfter: 5s`. When it will close stands in its status (CLOSES) as an absolute time; then it does,\n\
              and its binding is free for the next one.",
        commands: &[
            done("kubectl apply -f tests/control-plane/tour/carol.yaml", &["created"]),
            done("kubectl wait conv/carol --for=condition=Bound --timeout=30s", &["condition met"]),
            done("kubectl get conv carol", &["CLOSES"]),
            done("kubectl wait conv/carol --for=jsonpath='{.status.state}'=Closed --timeout=30s", &["condition met"]),
            done(
                "kubectl wait ab/sms-rmqqnybdm4fodgvis2522b6h3a --for=delete --timeout=30s && \
                 kubectl get ab --field-selector spec.contactAddress=+12025550178",
                &["No resources found"],
            ),
            done("kubectl get conv carol -o wide", &["Closed", "CloseTimer"]),
        ],
    },
    Step {
        title: "Nobody takes a claim away by hand",
        why: "An AddressBinding is the claim itself: who could delete it could give one binding to two conversations. You are in\n\
              system:masters, whom no role can stop; the policy that comes with the chart stops you all the same.",
        commands: &[
            refused(
                "kubectl delete ab sms-67e3eom4uehoawfojbv6j3egtc",
                &["must be written only by the switchboard operator"],
            ),
            done("kubectl get conv,ab", &["sms-67e3eom4uehoawfojbv6j3egtc"]),
        ],
    },
];

/// Prints the tour.
pub struct Guide<'a> {
    control_plane: &'a ControlPlane,
    /// The root of the repository: commands are run here, so that the paths in them are short.
    root: PathBuf,
    colours: bool,
}

impl<'a> Guide<'a> {
    /// With colours on a terminal, unless `NO_COLOR` is set.
    pub fn new(control_plane: &'a ControlPlane) -> Result<Self, Error> {
        let colours = io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Ok(Self { control_plane, root: repository::root()?, colours })
    }

    /// Every step. The first one that does not come out as told is the error.
    pub fn lead(&self) -> Result<(), Error> {
        for (number, step) in (1..).zip(STEPS) {
            let title = format!("{number}. {}", step.title);
            print(&format!("\n{}\n{}\n", self.bold(&title), step.why))?;
            for typed in step.commands {
                self.run(typed)?;
            }
        }
        Ok(())
    }

    fn run(&self, typed: &Typed) -> Result<(), Error> {
        print(&format!("\n{}\n", self.bold(&format!("$ {}", typed.line))))?;
        let output = process::output(&mut self.shell(typed.line))?;
        let answer = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        print(&answer)?;
        let outcome = if output.status.success() { Outcome::Done } else { Outcome::Refused };
        let missing = typed.says.iter().find(|text| !answer.contains(**text));
        if outcome == typed.outcome && missing.is_none() {
            return Ok(());
        }
        let wanted = match typed.outcome {
            Outcome::Done => "to succeed",
            Outcome::Refused => "to be refused",
        };
        let says = missing.map(|text| format!(" and to say {text:?}")).unwrap_or_default();
        Err(Error::Tour(format!("`{}` {wanted}{says}; it ended with {}", typed.line, output.status)))
    }

    /// The line as it stands, in a shell that finds our kubectl and its kubeconfig.
    fn shell(&self, line: &str) -> Command {
        let kubectl = self.control_plane.kubectl();
        let directories = Path::new(kubectl.get_program()).parent().map(PathBuf::from).into_iter();
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths(directories.chain(env::split_paths(&path))).unwrap_or(path);
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).current_dir(&self.root);
        for (name, value) in kubectl.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell.env("PATH", path);
        shell
    }

    fn bold(&self, text: &str) -> String {
        if self.colours { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Like `print!`, but a reader that has gone away (`make run | head`) is an error and no panic.
pub fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::io("write to standard output"))
}
