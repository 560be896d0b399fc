// View "Compare": several runs side by side.

import { lineChart } from "./chart.js";
import { h, table } from "./dom.js";
import { count, duration, number } from "./format.js";
import { bestValidation } from "./run.js";

export async function view(runs, fetchJson) {
  if (runs.length < 2) return [h("h1", {}, "Compare"), h("p", { class: "empty" }, "Give several run directories: wikicap-pipeline serve DIR DIR …")];
  const { runs: summaries, differences } = await fetchJson("/api/compare");
  const scores = summaries.map((run) =>
    [run.name, run.state, number(run.test_ndcg5), number(run.validation_ndcg5), count(run.images), duration(run.seconds)]);
  const rows = Object.entries(differences).map(([key, values]) => [key, ...values.map((value) => value ?? "–")]);
  const lines = runs.map((run, index) => ({
    name: run.name, series: (index % 6) + 1, dash: index > 5,
    points: run.curve.filter((row) => row.validation_ndcg5 != null && (row.trial ?? 0) === (bestValidation(run)?.trial ?? 0)).map((row) => [row.step, row.validation_ndcg5]),
  }));
  return [h("h1", {}, "Compare"),
    h("section", {}, h("h2", {}, "Scores"), table([["Run"], ["State"], ["Test NDCG@5", true], ["Best validation NDCG@5", true], ["Images used", true], ["Time", true]], scores, "Scores")),
    h("section", {}, h("h2", {}, "Validation"), lineChart({ title: "Validation NDCG@5 of each run's best trial", xLabel: "step", fromZero: true, lines })),
    h("section", {}, h("h2", {}, "Settings that differ"),
      rows.length ? table([["Key"], ...runs.map((run) => [run.name])], rows, "Settings that differ")
        : h("p", { class: "empty" }, "All settings are equal."))];
}
