// View "Pictures": held-out and test images with their ranked captions.

import { h } from "./dom.js";
import { count, number } from "./format.js";
import { caption, choice, fetchBuilt, picture, showPicture } from "./picture.js";

const PAGE = 24;
const SCORES = [["", "any score"], ["0..0", "0: no right caption in the first five"], ["0.0001..0.9999", "between 0 and 1"], ["1..1", "1: all right"]];

function card(run, images, item, like) {
  const title = item.url || item.id;
  const shown = item.row == null ? h("span", { class: "picture missing" }, "no usable image")
    : h("button", { type: "button", class: "plain", "aria-label": `Show ${title} larger`, onclick: () => showPicture(run, images, item.row, title) },
      picture(run, images, item.row, { alt: "" }));
  const more = item.rights - item.right.length;
  return h("article", { class: "card" },
    h("div", { class: "side" }, shown,
      h("p", {}, item.ndcg5 == null ? "no score" : `NDCG@5 ${number(item.ndcg5)}`),
      item.row != null && h("p", {}, h("a", { href: like(item.row) }, "More like it"))),
    h("div", { class: "captions" },
      h("h2", { class: "minor" }, "Ranked captions"),
      h("ol", {}, item.ranked.slice(0, 5).map((one) => caption(one))),
      h("h2", { class: "minor" }, item.right.length ? "Right captions" : "Right captions are not known"),
      h("ul", {}, item.right.map((one) => caption({ ...one, is_right: false })), more > 0 && h("li", {}, `and ${count(more)} more`)),
      h("p", { class: "address" }, item.id && item.id !== item.url ? `${item.id}: ${item.url}` : item.url)));
}

export async function view({ number: run, query, go, fetchJson, isCurrent, show, address }) {
  const contents = await fetchJson(`/api/runs/${run}/contents`);
  if (!contents.pictures.length) {
    return [h("h1", {}, "Pictures"), h("p", { class: "empty" },
      "There are no held-out or test images yet. Set train.validation_fraction or [predict], and look again when features are computed.")];
  }
  const images = contents.pictures.some((set) => set.name === query.images) ? query.images : contents.pictures[0].name;
  const [from, to] = query.score?.includes("..") ? query.score.split("..") : ["", ""];
  const order = ["best", "worst", "random"].includes(query.order) ? query.order : "best";
  const wanted = { images, order, seed: query.seed, language: query.language, text: query.text, from, to, offset: query.offset };
  const parameters = new URLSearchParams(Object.entries(wanted).filter(([, value]) => value));
  const answer = await fetchBuilt(fetchJson, `/api/runs/${run}/pictures?${parameters}`, {}, isCurrent,
    (progress) => show([h("h1", {}, "Pictures"), progress]));
  if (!answer) return null;
  const set = (changes) => go({ ...query, offset: "", ...changes });
  const languages = Object.entries(answer.languages).sort(([one], [other]) => one.localeCompare(other));
  const text = h("input", { type: "search", name: "text", value: query.text ?? "", placeholder: "part of a right caption", dir: "auto" });
  const filters = h("form", { class: "filters", role: "search", onsubmit: (event) => { event.preventDefault(); set({ text: text.value }); } },
    choice("Images", contents.pictures.map((one) => [one.name, one.title]), images, (value) => set({ images: value, language: "" })),
    choice("Order", [["best", "best first"], ["worst", "worst first"], ["random", "random"]], order, (value) => set({ order: value, seed: value === "random" ? "1" : "" })),
    order === "random" && h("button", { type: "button", onclick: () => set({ seed: String((+query.seed || 0) + 1) }) }, "Shuffle"),
    languages.length > 0 && choice("Language", [["", "all languages"], ...languages.map(([name, images_]) => [name, `${name} (${count(images_)})`])], query.language ?? "", (language) => set({ language })),
    choice("Score", SCORES, query.score ?? "", (score) => set({ score })),
    h("label", {}, "Caption contains", text), h("button", {}, "Filter"));
  const offset = +query.offset || 0;
  const like = (row) => address("search", { of_images: images, row, images });
  const last = Math.min(answer.matching, offset + PAGE);
  return [h("h1", {}, "Pictures"), h("section", {}, filters,
    h("p", { class: "note", role: "status" }, answer.matching ? `${count(offset + 1)} to ${count(last)} of ${count(answer.matching)} pictures` : "No picture matches the filters.",
      answer.mean_ndcg5 != null && `, mean NDCG@5 ${number(answer.mean_ndcg5)}`,
      answer.matching < answer.total && ` (${count(answer.total)} in all)`),
    contents.head === "classes" ? h("p", { class: "note" }, "Scores of captions are logits of the classifier.")
      : h("p", { class: "note" }, "Scores of captions are cosine similarities by pixels alone."),
    answer.notes.map((note) => h("p", { class: "note" }, note))),
  h("div", { class: "cards" }, answer.pictures.map((item) => card(run, images, item, like))),
  h("nav", { class: "pages", "aria-label": "Pages" },
    offset > 0 && h("button", { type: "button", onclick: () => go({ ...query, offset: String(Math.max(0, offset - PAGE)) }) }, "Previous page"), " ",
    last < answer.matching && h("button", { type: "button", onclick: () => go({ ...query, offset: String(offset + PAGE) }) }, "Next page"))];
}
