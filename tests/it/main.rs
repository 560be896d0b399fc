//! The program from outside: one binary, the real executable, on corpora that it draws itself.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bounds;
mod damage;
mod device;
mod errors;
mod hostile;
mod hub;
mod layering;
mod resume;
mod s3;
mod seeing;
mod support;
mod sweep;
mod text;
mod views;
mod whole;
