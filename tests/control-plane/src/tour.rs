//! The tour of `make run`: it runs the commands of a user against a control plane with the operator, and checks the result of each.

use std::{
    env,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{ControlPlane, Error, Process, Router, ports::Port, process, repository};

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
        title: "An inbound message finds its conversation",
        why: "A ProxyAddress declares our number: from which sources its messages come, and which sink gets them. A gateway posts Alice's answer\n\
              to the router. The router finds her conversation by the binding, and delivers the message to the sink, which prints it here.",
        commands: &[
            done("cat tests/control-plane/tour/number.yaml", &["kind: ProxyAddress"]),
            done(
                r#"sed "s|SINK|$SINK|" tests/control-plane/tour/number.yaml | kubectl apply -f -"#,
                &["sales-sms created"],
            ),
            done("kubectl wait pa/sales-sms --for=condition=Ready --timeout=30s", &["condition met"]),
            done("cat tests/control-plane/tour/send", &["curl"]),
            done("tests/control-plane/tour/send +15558675310 sms-1 'Yes, at noon'", &["200"]),
            done(
                r#"cat "$SINK_LOG""#,
                &["message.received.v1 sms-1 for default/alice-again", "\"agent-9\"", "Yes, at noon"],
            ),
        ],
    },
    Step {
        title: "The first message of a contact opens a conversation",
        why: "Dave is unknown, and writes twice at the same moment. Whichever message comes first opens a conversation, as the ProxyAddress says,\n\
              and the other one goes there too: two conversations cannot hold one binding. The agent with the fewest conversations gets it.",
        commands: &[
            done(
                "tests/control-plane/tour/send +12025550147 sms-2 Hello & tests/control-plane/tour/send +12025550147 sms-3 'Are you there?'; wait",
                &["200"],
            ),
            done("kubectl get conv -l team=sales -o wide", &["in-", "agent-"]),
            done(
                r#"test "$(kubectl get conv -l team=sales -o name | wc -l)" = 1 && grep -c message.received "$SINK_LOG""#,
                &["3"],
            ),
        ],
    },
    Step {
        title: "After a close, the next message opens another conversation",
        why: "The agent closes the conversation. Dave's next message opens another one.",
        commands: &[
            done(
                r#"kubectl patch $(kubectl get conv -l team=sales -o name) --type=merge -p '{"spec":{"state":"Closed"}}'"#,
                &["patched"],
            ),
            done(
                "kubectl wait conv -l team=sales --for=jsonpath='{.status.state}'=Closed --timeout=30s",
                &["condition met"],
            ),
            done("tests/control-plane/tour/send +12025550147 sms-4 'One more question'", &["200"]),
            done("kubectl get conv -l team=sales", &["Closed", "in-"]),
            done(r#"test "$(kubectl get conv -l team=sales -o name | wc -l)" = 2 && echo two"#, &["two"]),
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

/// The token of the source `gateway`.
const TOKEN: &str = "token-of-the-gateway";

/// What messages need: a router, and a sink that prints them to its log.
pub struct Messaging {
    router: Router,
    sink: Process,
    port: Port,
}

impl Messaging {
    /// The values of the chart that the router needs.
    pub const VALUES: [(&str, &str); 4] = [
        ("router.enabled", "true"),
        ("router.sources.gateway.type", "CloudEvents"),
        ("router.sources.gateway.secretName", "gateway"),
        ("router.autocreateNamespaces[0]", "default"),
    ];

    /// Starts the router of this `program`, and the sink.
    pub fn start(control_plane: &ControlPlane, program: &Path) -> Result<Self, Error> {
        let port = Port::reserve()?;
        let mut command = Command::new("python3");
        command.arg(repository::root()?.join("examples/sink.py")).arg(port.address().port().to_string());
        let sink = Process::new("sink", control_plane.data_dir().join("logs/sink.log"), command)?;
        sink.start()?;
        let router =
            Router::builder(program, "router").source("gateway", "{type: CloudEvents}").key("gateway", "token", TOKEN);
        let router = router.start(control_plane)?;
        Ok(Self { router, sink, port })
    }

    /// What is needed to send another message in another terminal.
    #[must_use]
    pub fn exports(&self) -> String {
        format!("export ROUTER=http://{} TOKEN={TOKEN}", self.router.inbound_address())
    }
}

/// Prints the tour.
pub struct Guide<'a> {
    control_plane: &'a ControlPlane,
    /// The root of the repository. Commands run here, so that their paths are short.
    root: PathBuf,
    /// The environment variables of the commands.
    variables: Vec<(&'static str, String)>,
    colours: bool,
}

impl<'a> Guide<'a> {
    /// Uses colours on a terminal, unless `NO_COLOR` is set. Messages go to the router by way of `messaging`.
    pub fn new(control_plane: &'a ControlPlane, messaging: &Messaging) -> Result<Self, Error> {
        let colours = io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let variables = vec![
            ("ROUTER", format!("http://{}", messaging.router.inbound_address())),
            ("TOKEN", TOKEN.to_owned()),
            ("SINK", format!("http://{}/", messaging.port.address())),
            ("SINK_LOG", messaging.sink.log().display().to_string()),
        ];
        Ok(Self { control_plane, root: repository::root()?, variables, colours })
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
        let mut shell = self.control_plane.shell(typed.line);
        shell.current_dir(&self.root).envs(self.variables.iter().map(|(name, value)| (name, value)));
        let output = process::output(&mut shell)?;
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

    fn bold(&self, text: &str) -> String {
        if self.colours { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Like `print!`, but a closed pipe (`make run | head`) is an error instead of a panic.
pub fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::io("write to standard output"))
}
