// View "Compare": several runs side by side.

import { lineChart } from "./chart.js";
import { h, table } from "./dom.js";
import { count, duration, number } from "./format.js";
import { bestValidation, stateOf, testScore } from "./run.js";

/** The configuration as `section.key` → text. */
function flatten(config) {
  const flat = new Map();
  for (const [section, keys] of Object.entries(config ?? {}))
    for (const [key, value] of Object.entries(keys ?? {})) flat.set(`${section}.${key}`, JSON.stringify(value));
  return flat;
}

export function view(runs) {
  if (runs.length < 2) return [h("h1", {}, "Compare"), h("p", { class: "empty" }, "Give several run directories: wikicap-pipeline serve DIR DIR …")];
  const totals = (run) => (run.status?.stages ?? []).reduce((sum, stage) => sum + stage.seconds, 0);
  const scores = runs.map((run) => {
    const best = bestValidation(run);
    return [run.name, stateOf(run)[0], number(testScore(run)?.ndcg5), number(best?.validation_ndcg5), count(run.report?.images?.tally?.kept), duration(totals(run))];
  });
  const flat = runs.map((run) => flatten(run.config));
  const keys = [...new Set(flat.flatMap((map) => [...map.keys()]))].sort();
  const differing = keys.filter((key) => new Set(flat.map((map) => map.get(key))).size > 1);
  const lines = runs.map((run, index) => ({
    name: run.name, series: (index % 6) + 1, dash: index > 5,
    points: run.curve.filter((row) => row.validation_ndcg5 != null && (row.trial ?? 0) === (bestValidation(run)?.trial ?? 0)).map((row) => [row.step, row.validation_ndcg5]),
  }));
  return [h("h1", {}, "Compare"),
    h("section", {}, h("h2", {}, "Scores"), table([["Run"], ["State"], ["Test NDCG@5", true], ["Best validation NDCG@5", true], ["Images used", true], ["Time", true]], scores, "Scores")),
    h("section", {}, h("h2", {}, "Validation"), lineChart({ title: "Validation NDCG@5 of each run's best trial", xLabel: "step", fromZero: true, lines })),
    h("section", {}, h("h2", {}, "Settings that differ"),
      differing.length ? table([["Key"], ...runs.map((run) => [run.name])], differing.map((key) => [key, ...flat.map((map) => map.get(key) ?? "–")]), "Settings that differ")
        : h("p", { class: "empty" }, "All settings are equal."))];
}
