// View "Compare": several runs side by side.

import { drawn, h, table } from "./dom.js";
import { count, duration, number } from "./format.js";

export async function view(runs, fetchJson) {
  if (runs.length < 2) return [h("h1", {}, "Compare"), h("p", { class: "empty" }, "Give several run directories: wikicap-pipeline serve DIR DIR …")];
  const { runs: summaries, differences, chart } = await fetchJson("/api/compare");
  const scores = summaries.map((run) =>
    [run.name, run.state, number(run.test_ndcg5), number(run.validation_ndcg5), count(run.images), duration(run.seconds)]);
  const rows = Object.entries(differences).map(([key, values]) => [key, ...values.map((value) => value ?? "–")]);
  return [h("h1", {}, "Compare"),
    h("section", {}, h("h2", {}, "Scores"), table([["Run"], ["State"], ["Test NDCG@5", true], ["Best validation NDCG@5", true], ["Images used", true], ["Time", true]], scores, "Scores")),
    h("section", {}, h("h2", {}, "Validation"), drawn(chart)),
    h("section", {}, h("h2", {}, "Settings that differ"),
      rows.length ? table([["Key"], ...runs.map((run) => [run.name])], rows, "Settings that differ")
        : h("p", { class: "empty" }, "All settings are equal."))];
}
