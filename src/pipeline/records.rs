//! [`Records`]: events, status and report of a process.

use crate::pipeline::context::RunContext;
use crate::pipeline::error::{PipelineError, chain};
use crate::pipeline::manifest::without_secrets;
use crate::pipeline::observe::events::{Event, Events};
use crate::pipeline::observe::previous::explain_kill;
use crate::pipeline::observe::report::{ModelReport, ProcessReport, Report};
use crate::pipeline::observe::status::{self, Reporter, State, Status};
use crate::runtime::Resources;

/// The records that a process keeps of its work: events, status and report.
pub(crate) struct Records {
    /// The context of the work, with its event log.
    pub(crate) ctx: RunContext,
    /// The report. It keeps the results of stages that this process does not run, and all processes.
    pub(crate) report: Report,
    /// Name of the report in the run directory.
    name: String,
    started: String,
    reporter: Reporter,
}

impl Records {
    /// Starts the records of a whole run, or of a part of it. `started` is the start of the process, and `name` the name of
    /// its report.
    ///
    /// # Errors
    /// When the run directory cannot be read or written.
    pub(crate) fn start(
        ctx: &RunContext,
        model: Option<ModelReport>,
        started: &str,
        name: &str,
    ) -> Result<Self, PipelineError> {
        let name = ctx.own_file(name);
        let events = Events::open(&ctx.dir, ctx.part);
        let ctx = RunContext { events, ..ctx.clone() };
        if ctx.part.is_none() {
            status::report_killed_process(&ctx.dir)?;
            if let Some(text) = Status::previous(&ctx.dir).and_then(|status| explain_kill(&status, &Resources::read()))
            {
                tracing::warn!("{text}");
                ctx.events.write(&Event::PreviousKilled { detail: &text });
            }
        }
        let (progress, events) = (ctx.progress.clone(), ctx.events.clone());
        let reporter = Reporter::start(ctx.dir.clone(), progress, events, ctx.part, started, &name);
        let mut report = Report::load(&ctx.dir, &name)?;
        report.notes.clear();
        let machine = ctx.config.stored_machine();
        report.config = serde_json::json!({ "pipeline": without_secrets(ctx.config.stored()), "machine": machine });
        report.model = model.or(report.model.take());
        Ok(Self { ctx, report, name, started: started.to_owned(), reporter })
    }

    /// Writes the report, even if the work failed, and the last status.
    ///
    /// # Errors
    /// The error of the work; or when the report cannot be written.
    pub(crate) async fn finish(self, outcome: Result<(), PipelineError>) -> Result<Report, PipelineError> {
        let Self { ctx, mut report, name, started, reporter } = self;
        // Do not wait again for a store that is out of reach.
        let unreachable = ctx.dir.is_remote() && outcome.as_ref().is_err_and(PipelineError::is_out_of_reach);
        let ended = outcome.as_ref().copied();
        let mut this = ProcessReport::current(&started, ended, &ctx.progress, &ctx.budget, &ctx.store);
        this.device.clone_from(&report.device);
        report.add_process(this);
        let written = if unreachable { Ok(()) } else { report.save(&ctx.dir, &name) };
        // The error of the work matters more than an error of the report.
        let outcome = outcome.and(written);
        let (state, detail) = match &outcome {
            Ok(()) => (State::Done, None),
            Err(error @ PipelineError::Stopped(_)) => (State::Stopped, Some(chain(error))),
            Err(error) => (State::Failed, Some(chain(error))),
        };
        tokio::task::spawn_blocking(move || reporter.finish(state, detail)).await?;
        outcome.map(|()| report)
    }
}
