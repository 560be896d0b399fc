//! What stands for the commands that need a model in a build without one.

use std::path::Path;
use std::process::ExitCode;

use super::Failure;
use super::args::BenchCommand;
use crate::config::Plan;
use crate::config::raw::{RawDevice, RawMachine};

fn absent() -> Failure {
    Failure::new(2, "this build has no model stages; build with the `model` feature")
}

pub(super) fn probe() -> Option<ExitCode> {
    None
}

pub(super) fn list(_: &RawDevice, _: bool) -> Result<(), Failure> {
    Err(absent())
}

pub(super) fn bench(_: BenchCommand, _: &RawMachine, _: bool) -> Result<(), Failure> {
    Err(absent())
}

pub(super) fn ceiling_of(_: &Path) -> Result<f64, Failure> {
    Err(absent())
}

pub(super) fn export(_: &Plan, _: &Path, _: bool) -> Result<(), Failure> {
    Err(absent())
}
