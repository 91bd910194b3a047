//! Tests of the operator as real processes, on a real control plane with the chart installed.

mod admission;
mod apply;
mod certificates;
mod cli;
mod faults_claims;
mod faults_create;
mod faults_lifecycle;
mod faults_process;
mod faults_store;
mod faults_unseen;
mod gitops;
mod input;
mod leader;
mod lifecycle;
mod logs;
mod races;
mod restore;
mod rules;
mod runtime;
mod same_name;
mod shutdown;
mod start;
mod test_cluster;
mod transitions;
mod upgrade;
mod waiting;
