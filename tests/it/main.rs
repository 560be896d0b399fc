//! Tests of the program from outside: one binary that runs the real executable on synthetic corpora.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod adversarial_limits;
mod captioning;
mod closed_form;
mod container;
mod damage;
mod device;
mod docs;
mod end_to_end;
mod ensemble;
mod errors;
mod fingerprints;
mod formats;
mod full_size;
mod hub;
mod init;
mod inputs;
mod layering;
mod observability;
mod page;
mod paired;
mod parts;
mod published;
mod resource_limits;
mod results;
mod resume;
mod reuse;
mod s3;
mod support;
mod sweep;
mod tensorboard;
mod text;
mod views;
