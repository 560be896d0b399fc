// View "Quarantine": rows that could not be used, by reason and shard.

import { h, table } from "./dom.js";
import { count, fileName } from "./format.js";
import { choice } from "./picture.js";

/** The command that prints a row of a text shard. */
function command(path, row) {
  const quoted = `'${path.replaceAll("'", "'\\''")}'`;
  const reader = path.endsWith(".gz") ? "gzip -dc" : path.endsWith(".zst") ? "zstd -dc" : "cat";
  return `${reader} ${quoted} | sed -n '${row + 1}{p;q}'`;
}

export async function view({ run, number, query, go, fetchJson }) {
  const parameters = new URLSearchParams(Object.entries(query).filter(([, value]) => value));
  const answer = await fetchJson(`/api/runs/${number}/quarantine?${parameters}`);
  const stages = run.status?.stages ?? [];
  const listing = stages.find((stage) => stage.name === (answer.stream === "train" ? "images" : "test images"))?.shards ?? [];
  const path = (shard) => listing[shard]?.name ?? `shard ${shard}`;
  const total = Object.values(answer.reasons).reduce((sum, value) => sum + value, 0);
  const set = (changes) => go({ ...query, from: "", ...changes });
  const filters = h("div", { class: "filters" },
    answer.streams.length > 1 && choice("Images", answer.streams.map((name) => [name, name === "train" ? "training images" : `test images of ${name}`]), answer.stream, (stream) => set({ stream, reason: "", shard: "" })),
    choice("Reason", [["", `all reasons (${count(total)})`], ...Object.entries(answer.reasons).map(([reason, rows]) => [reason, `${reason} (${count(rows)})`])], query.reason ?? "", (reason) => set({ reason })),
    choice("Shard", [["", "all shards"], ...Object.entries(answer.shards).map(([shard, rows]) => [shard, `${fileName(path(+shard))} (${count(rows)})`])], query.shard ?? "", (shard) => set({ shard })));
  const rows = answer.rows.map((row) => [row.reason, row.detail, row.url ?? "no URL", fileName(path(row.shard)), count(row.row),
    listing[row.shard] ? h("code", {}, command(path(row.shard), row.row)) : "–"]);
  return [h("h1", {}, "Rows that could not be used"), h("section", {}, filters,
    rows.length ? table([["Reason"], ["Detail"], ["Image"], ["Shard"], ["Row", true], ["Command that prints the row"]], rows, "Quarantined rows")
      : h("p", { class: "empty" }, total ? "No row matches the filters." : "Every row that was read so far could be used."),
    (query.from || answer.next) && h("p", {},
      query.from && h("button", { type: "button", onclick: () => go({ ...query, from: "" }) }, "First page"), " ",
      answer.next && h("button", { type: "button", onclick: () => go({ ...query, from: answer.next }) }, "Next page")))];
}
