//! Tests of the chart: how it renders, its documents, and what it does on a real control plane.

mod alerts;
mod documentation;
mod examples;
mod flow_control;
mod health;
mod installation;
mod policies;
mod rbac;
mod rendering;
