// View "Quarantine": rows that could not be used, by reason and shard.

import { h, table } from "./dom.js";
import { bytes, count, fileName } from "./format.js";
import { choice } from "./picture.js";

/** A dialog with what a row holds: its picture if it is one, its first bytes, and the command that writes them to a file. */
async function showRow(run, place, fetchJson) {
  const parameters = new URLSearchParams(place);
  const content = h("div", { class: "row" }, h("p", { class: "empty", role: "status" }, "Reading the row from the run's input…"));
  const close = () => dialog.close();
  const dialog = h("dialog", { "aria-label": "Row that could not be used", onclose: () => dialog.remove(), onclick: (event) => event.target === dialog && close() },
    content, h("button", { type: "button", onclick: close }, "Close"));
  document.body.append(dialog);
  dialog.showModal();
  try {
    const row = await fetchJson(`/api/runs/${run}/quarantine/row?${parameters}`);
    const box = row.is_picture && h("figure", {}, h("figcaption", {}, "as far as this browser can show it"),
      h("img", { src: `/api/runs/${run}/quarantine/picture?${parameters}`, alt: `the picture as far as it can be shown: ${row.detail}`,
        onerror: () => box.replaceChildren(h("p", { class: "note" }, "This browser cannot show the picture.")) }));
    content.replaceChildren(...[
      h("h2", {}, row.reason.replaceAll("_", " ")), h("p", {}, row.detail),
      box,
      row.bytes ? h("p", { class: "note" }, `${bytes(row.bytes)}: ${row.description}. The first bytes:`)
        : h("p", { class: "note" }, "The bytes cannot be shown: the format of the shard does not keep them, or the line is over the limit."),
      row.bytes > 0 && h("pre", { class: "dump", tabindex: "0", "aria-label": "first bytes" }, row.dump),
      row.bytes > 0 && h("p", { class: "note" }, "This command writes the bytes to a file:"),
      row.bytes > 0 && h("pre", { tabindex: "0", "aria-label": "command" }, row.command),
      h("p", { class: "address" }, `${row.shard}, row ${count(row.row)}${row.url ? `: ${row.url}` : ""}`)].filter(Boolean));
  } catch (error) {
    content.replaceChildren(h("p", { class: "error", role: "alert" }, error.message));
  }
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
  const rows = answer.rows.map((row) => [
    h("button", { type: "button", "aria-label": `Show row ${row.row} of shard ${row.shard}`, onclick: () => showRow(number, { stream: answer.stream, shard: row.shard, row: row.row }, fetchJson) }, "Show"),
    row.reason.replaceAll("_", " "), row.detail, row.url ?? "no URL", fileName(path(row.shard)), count(row.row)]);
  return [h("h1", {}, "Rows that could not be used"), h("section", {}, filters,
    rows.length ? table([["Bytes"], ["Reason"], ["Detail"], ["Image"], ["Shard"], ["Row", true]], rows, "Quarantined rows")
      : h("p", { class: "empty" }, total ? "No row matches the filters." : "Every row that was read so far could be used."),
    (query.from || answer.next) && h("p", {},
      query.from && h("button", { type: "button", onclick: () => go({ ...query, from: "" }) }, "First page"), " ",
      answer.next && h("button", { type: "button", onclick: () => go({ ...query, from: answer.next }) }, "Next page")))];
}
