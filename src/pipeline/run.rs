//! State of a run for stages that are not functions over [`RunContext`] yet.

use crate::config::{Stage, StageKeys};
use crate::objects::Object;
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::pipeline::manifest::{Manifest, add_inputs};
use crate::pipeline::observe::report::{Report, StageRemarks};
use crate::pipeline::resolve::ResolvedModel;

pub(crate) struct Run {
    pub(crate) ctx: RunContext,
    pub(crate) manifest: Manifest,
    pub(crate) model: ResolvedModel,
    pub(crate) report: Report,
}

impl Run {
    pub(crate) async fn stream_keys(
        &self,
        stage: Stage,
        key: &str,
        shards: &[Object],
    ) -> Result<StageKeys, PipelineError> {
        let mut keys = self.model.stream_keys(&self.ctx.config, stage);
        add_inputs(&self.ctx.store, &mut keys, key, shards).await?;
        Ok(keys)
    }

    pub(crate) fn output(&mut self, name: &'static str, path: &str) {
        let mut remarks = StageRemarks::default();
        remarks.add_output(name, path);
        self.report.add_remarks(&self.ctx.dir, remarks);
    }
}
