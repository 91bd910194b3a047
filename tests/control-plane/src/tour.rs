//! The tour of `make run`: it runs the commands of a user against a control plane with the operator, and checks the result of each.

use std::{
    env,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{ControlPlane, Error, process, repository};

struct Step {
    title: &'static str,
    /// The purpose of the step.
    why: &'static str,
    commands: &'static [Typed],
}

/// A command line with its expected result.
struct Typed {
    line: &'static str,
    outcome: Outcome,
    /// Texts that its output must contain.
    expected: &'static [&'static str],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Refused,
}

const fn done(line: &'static str, expected: &'static [&'static str]) -> Typed {
    Typed { line, outcome: Outcome::Done, expected }
}

const fn refused(line: &'static str, expected: &'static [&'static str]) -> Typed {
    Typed { line, outcome: Outcome::Refused, expected }
}

const STEPS: &[Step] = &[
    Step {
        title: "A conversation claims its binding",
        why: "A conversation connects a contact (Alice's number) and a proxy (our number, behind which agents answer) on a channel.\n\
              These three values are its binding. An inbound message finds its conversation by them.",
        commands: &[
            done("cat tests/control-plane/tour/alice.yaml", &["kind: Conversation"]),
            done("kubectl apply -f tests/control-plane/tour/alice.yaml", &["created"]),
            done("kubectl wait conv/alice --for=condition=Bound --timeout=30s", &["condition met"]),
            done("kubectl get conv,ab", &["conversation.switchboard.dev/alice", "sms-67e3eom4uehoawfojbv6j3egtc"]),
        ],
    },
    Step {
        title: "A second one for the same binding is refused",
        why: "If agent 9 could open another conversation for the same two numbers, Alice's answer would belong to two conversations.\n\
              The API server refuses the create. The message names the holder of the binding and the remedies.",
        commands: &[refused(
            "kubectl apply -f tests/control-plane/tour/alice-again.yaml",
            &["48031:", "+15558675310", "+15017122661", "default/alice", "Active", "agent-7"],
        )],
    },
    Step {
        title: "Another proxy or another channel is another binding",
        why: "As the refusal suggests, agent 9 can write to Alice from our second number, or on WhatsApp. These are different bindings.",
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
        title: "A condition shows that a conversation is unassigned",
        why: "Bob's conversation has no participant, so nobody reads his messages. A script can wait for the condition Unassigned, an alert\n\
              can fire on it, and `timers.closeUnassignedAfter` can close the conversation.",
        commands: &[
            done("kubectl apply -f tests/control-plane/tour/bob.yaml", &["created"]),
            done("kubectl wait conv/bob --for=condition=Unassigned --timeout=30s", &["condition met"]),
            done("kubectl get conv bob -o wide", &["UNASSIGNED", "True"]),
        ],
    },
    Step {
        title: "Closing a conversation frees its binding immediately",
        why: "Agent 7 closes the conversation with Alice. The API server now admits the create that it refused before, without waiting for a\n\
              controller. The AddressBinding, selected by its three fields, names the new holder.",
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
        title: "A timer closes an inactive conversation",
        why: "Carol's conversation has `closeAfter: 5s`. Its status contains the time at which it will close (CLOSES). After that time the\n\
              conversation is closed, and its binding is free.",
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
        title: "Users cannot delete a claim",
        why: "An AddressBinding is the claim on a binding. If users could delete it, two conversations could hold the same binding. You are\n\
              in system:masters, which no role restricts, but the policy of the chart still refuses the delete.",
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
    /// The root of the repository. Commands run here, so that their paths are short.
    root: PathBuf,
    colours: bool,
}

impl<'a> Guide<'a> {
    /// Uses colours on a terminal, unless `NO_COLOR` is set.
    pub fn new(control_plane: &'a ControlPlane) -> Result<Self, Error> {
        let colours = io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Ok(Self { control_plane, root: repository::root()?, colours })
    }

    /// Runs every step. The first step with an unexpected result is the error.
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
        let missing = typed.expected.iter().find(|text| !answer.contains(**text));
        if outcome == typed.outcome && missing.is_none() {
            return Ok(());
        }
        let wanted = match typed.outcome {
            Outcome::Done => "to succeed",
            Outcome::Refused => "to be refused",
        };
        let output_lacks = missing.map(|text| format!(" and to print {text:?}")).unwrap_or_default();
        Err(Error::Tour(format!("`{}` {wanted}{output_lacks}; it ended with {}", typed.line, output.status)))
    }

    /// Runs the unchanged line in a shell with our kubectl and its kubeconfig.
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

/// Like `print!`, but a closed pipe (`make run | head`) is an error instead of a panic.
pub fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::io("write to standard output"))
}
