//! The router: takes messages from sources, finds their conversation by the binding or creates one, and delivers them to sinks. It never
//! answers that a message was accepted before a sink has accepted it, and it stores nothing.

pub mod source;
