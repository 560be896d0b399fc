// View "Run": score, stages, training curve, resources, configuration.

import { drawn, h, table } from "./dom.js";
import { bytes, clock, count, duration, fileName, number, percent } from "./format.js";

/** State of a run in one word, with the class of its colour. */
export function stateOf(run) {
  if (run.live) return ["running", "state-running"];
  const state = run.status?.state;
  if (state === "running") return ["not running; its process ended without a word", "state-lost"];
  return [state ?? "not started", `state-${state}`];
}

export function testScore(run) {
  return run.report?.prediction?.scores ?? null;
}

function figure(name, value, detail) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value, detail && h("small", {}, detail)));
}

function summary(run) {
  const [state, kind] = stateOf(run);
  const best = run.best;
  const score = testScore(run);
  const stages = run.status?.stages ?? [];
  const left = stages.filter((stage) => !stage.finished && stage.left_s != null).map((stage) => stage.left_s);
  const current = stages.find((stage) => !stage.finished);
  const bottleneck = current?.bottleneck ?? stages.toSorted((one, other) => other.seconds - one.seconds)[0]?.bottleneck;
  const images = run.report?.images?.tally;
  return h("section", { "aria-label": "Summary" },
    h("dl", { class: "figures" },
      figure("State", h("span", { class: kind }, state), run.status?.detail),
      score && figure("Test NDCG@5", number(score.ndcg5), [
        score.ndcg5_ceiling != null && `ceiling ${number(score.ndcg5_ceiling)}`,
        score.ndcg5_chance != null && `chance ${number(score.ndcg5_chance)}`,
      ].filter(Boolean).join(", ")),
      best && figure("Best validation NDCG@5", number(best.ndcg5),
        [best.ceiling != null && `ceiling ${number(best.ceiling)}`, `step ${count(best.step)}`].filter(Boolean).join(", ")),
      images && figure("Images used", count(images.kept), `of ${count(images.rows)} rows`),
      run.live && left.length > 0 && figure("This stage ends", clock(Math.max(...left)), `in ${duration(Math.max(...left))}`),
      bottleneck && figure("Bottleneck", bottleneck.who, `busy ${percent(bottleneck.share)} of the time`),
      figure("Memory", bytes(run.status?.memory_bytes), limitText(run, "memory"))));
}

function limitText(run, key) {
  const limit = run.config?.machine?.limits?.[key] ?? run.config?.limits?.[key];
  return limit && `limit ${limit}`;
}

function stageRows(stages) {
  return stages.map((stage) => {
    const share = stage.finished ? 1 : stage.total ? Math.min(1, stage.done / stage.total) : null;
    const bar = h("progress", { max: 1, value: share, "aria-label": `Progress of ${stage.name}` });
    const done = stage.finished || !stage.total ? count(stage.done) : `${count(stage.done)} of about ${count(stage.total)}`;
    const left = stage.finished ? "done" : stage.left_s == null ? "–" : duration(stage.left_s);
    return [stage.name, bar, `${done} ${stage.unit}`, `${number(stage.per_second)}/s`, duration(stage.seconds), left,
      stage.bottleneck ? `${stage.bottleneck.who} ${percent(stage.bottleneck.share)}` : "–"];
  });
}

function stages(run) {
  const list = run.status?.stages ?? [];
  const columns = [["Stage"], ["Progress"], ["Done", true], ["Rate", true], ["Time", true], ["Left", true], ["Bottleneck"]];
  return h("section", {}, h("h2", {}, "Stages"),
    list.length ? table(columns, stageRows(list), "Stages") : h("p", { class: "empty" }, "No stage has started. This page follows the run once it does."));
}

function parts(run) {
  const list = run.status?.parts ?? [];
  if (!list.length) return null;
  const rows = list.map((part) => [part.part,
    part.state.replaceAll("_", " ") + (part.detail ? `: ${part.detail}` : ""),
    part.total_rows ? `${count(part.rows)} of about ${count(part.total_rows)}` : count(part.rows),
    part.state === "at_work" ? `${number(part.per_second)}/s` : "–",
    part.left_s == null ? "–" : duration(part.left_s),
    part.age_s == null ? "–" : `${duration(part.age_s)} ago`,
    part.process ?? "–"]);
  const columns = [["Part"], ["State"], ["Rows", true], ["Rate", true], ["Left", true], ["Last report", true], ["Process"]];
  return h("section", {}, h("h2", {}, "Parts"), table(columns, rows, "Parts"));
}

/** Names of readings that do not explain themselves. */
const READINGS = { in_flight_bytes: "bytes between stages", ring_bytes: "scratch disk" };

function readings(run) {
  const entries = Object.entries(run.status?.readings ?? {});
  if (!entries.length) return null;
  const format = (name, value) => (value == null ? "–" : name.includes("bytes") ? bytes(value) : count(value));
  return h("section", {}, h("h2", {}, "Memory, disk and requests"),
    table([["Reading"], ["Now", true], ["Limit", true]],
      entries.map(([name, reading]) => [READINGS[name] ?? name.replace(/_bytes$/, "").replaceAll("_", " "), format(name, reading.value), format(name, reading.limit)]),
      "Memory, disk and requests"));
}

function curves(run) {
  return h("section", {}, h("h2", {}, "Training"),
    run.charts ? drawn(run.charts) : h("p", { class: "empty" }, "Training has not started."));
}

function shards(run) {
  const stage = (run.status?.stages ?? []).find((candidate) => candidate.shards?.length && !candidate.finished);
  if (!stage) return null;
  const open = stage.shards.filter((shard) => !shard.done && (shard.rows > 0 || shard.read > 0));
  const done = stage.shards.filter((shard) => shard.done).length;
  return h("section", {}, h("h2", {}, `Shards of ${stage.name}: ${count(done)} of ${count(stage.shards.length)} done`),
    table([["Shard"], ["Read", true], ["Rows", true], ["Used", true], ["Skipped", true], ["Quarantined", true]],
      open.map((shard) => [fileName(shard.name), percent(shard.read), ...[shard.rows, shard.kept, shard.skipped, shard.quarantined].map(count)]),
      "Shards being read"));
}

function notes(run) {
  const list = run.report?.notes ?? [];
  return list.length > 0 && h("section", {}, h("h2", {}, "Notes"), h("ul", {}, list.map((note) => h("li", {}, note))));
}

function configuration(run) {
  if (!run.config) return null;
  const lines = Object.entries(run.config).map(([section, keys]) =>
    `[${section}]\n${Object.entries(keys ?? {}).map(([key, value]) => `${key} = ${JSON.stringify(value)}`).join("\n")}`);
  return h("section", {}, h("details", {}, h("summary", {}, "Configuration"), h("pre", {}, lines.join("\n\n"))));
}

export function view(run) {
  return [h("h1", {}, run.name), summary(run), stages(run), parts(run), shards(run), curves(run),
    h("div", { class: "columns" }, readings(run), notes(run)), configuration(run)];
}
