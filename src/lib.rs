//! switchboard: a Kubernetes operator that guarantees that each binding (channel, contact, proxy) has at most one open conversation.
//!
//! Data flows one way. The I/O modules convert a request or a watch event into plain values, a pure function decides, and the I/O modules
//! write:
//!
//! - [`api`] defines the kinds that users write and read, and the rules of their schemas;
//! - [`core`] decides, from plain values: addresses, bindings, the protocol of claims, the lifecycle, denials;
//! - [`claims`] is the only writer of AddressBindings, and runs the protocol of claims against the API server;
//! - [`server`] is the transport that both HTTP servers run on, with its limits;
//! - [`webhook`] serves admission, and [`controller`] reconciles stored conversations; they do not import each other;
//! - [`router`] takes inbound messages, finds or creates their conversations, and delivers them to sinks;
//! - [`cloud_events`] signs events and posts them to sinks, for the router and the controller;
//! - `index` has the open conversations and the claims as the watches show them, for the controller and the router;
//! - [`client`] connects to the API server, and [`kube_error`] classifies the errors of its requests;
//! - [`proxy_addresses`] watches the ProxyAddresses and the labels of the namespaces;
//! - [`leader`] elects a leader, and [`self_check`] checks by a dry run that the webhook is in force;
//! - [`export`] writes conversations as manifests, for a backup;
//! - [`plugin`] is `kubectl switchboard`, a program of its own, which the operator does not contain;
//! - [`certificates`] issues or loads the serving certificate, [`admin`] serves probes and metrics, and `listener` accepts connections;
//! - `secret_files` reads mounted Secrets;
//! - [`telemetry`] has the registry of metrics, logs and traces, and [`clock`] reads the time;
//! - [`run`] assembles these into one process, `supervisor` supervises its tasks, and [`cli`] parses the command line.
//!
//! ARCHITECTURE.md explains the reasons, and why no binding can have two holders.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod admin;
pub mod api;
pub mod certificates;
pub mod claims;
pub mod cli;
pub mod client;
pub mod clock;
pub mod cloud_events;
pub mod controller;
pub mod core;
pub mod export;
mod index;
pub mod kube_error;
pub mod leader;
mod listener;
pub mod plugin;
pub mod proxy_addresses;
pub mod router;
pub mod run;
mod secret_files;
pub mod self_check;
pub mod server;
mod supervisor;
pub mod telemetry;
mod watch;
pub mod webhook;
