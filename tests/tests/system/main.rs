//! Whole-system tests, one binary with a module per subject.

#![allow(clippy::unwrap_used, reason = "what tests share is test code too, which clippy does not see")]

mod approvals;
mod audit;
mod bad_input;
mod cli;
mod clients;
mod contract;
mod crash;
mod doctor;
mod drift;
mod durable;
mod environment;
mod foreign;
mod gateway;
mod grants;
mod grants_secrets;
mod grants_used;
mod hooks;
mod hostile;
mod http;
mod layers;
mod llm;
mod local;
mod mcp;
mod peers;
mod plugins;
mod project;
mod sdk;
mod serve;
mod stateful;
mod support;
mod undo;
