// View "Search": a picture → captions, a text → images, a row of either → more like it.

import { h } from "./dom.js";
import { count, fileName, number } from "./format.js";
import { caption, choice, fetchBuilt, picture, showPicture } from "./picture.js";

/** The last picture that was dropped, pasted or chosen, by run. It stays in this page's memory alone. */
let dropped = null;

function entryTitle(entry) {
  return entry.rows == null ? entry.title : `${entry.title} (${count(entry.rows)})`;
}

function results(run, answer, { images, list, likeImage, likeCaption, isClassifier, imagesFirst }) {
  const item = (one) => caption(one, h("a", { href: likeCaption(one.row) }, isClassifier ? "images like it" : "more like it"));
  const languages = Object.entries(answer.languages);
  const captions = languages.length
    ? h("div", { class: "languages" }, languages.map(([language, found]) =>
      h("div", {}, h("h3", {}, language || "language not known"), h("ol", {}, found.map((one) => item({ ...one, language: "" }))))))
    : h("ol", {}, answer.captions.map(item));
  const tiles = images && h("section", {}, h("h2", {}, "Images"), h("ul", { class: "tiles" }, answer.images.map((found) =>
    h("li", {}, h("button", { type: "button", class: "plain", "aria-label": `Show ${found.url} larger`, onclick: () => showPicture(run, images, found.row, found.url) },
      picture(run, images, found.row, { alt: "" })),
    h("span", { class: "facts" }, h("span", { class: "score" }, number(found.score)), " ", h("a", { href: likeImage(found.row) }, "more like it")),
    h("span", { class: "address", title: found.url }, fileName(found.url))))));
  const ranked = list && h("section", {}, h("h2", {}, "Captions"), captions);
  return [
    h("p", { class: "note", role: "status" }, `Compared in ${number(1000 * answer.seconds)} ms.`),
    imagesFirst ? [tiles, ranked] : [ranked, tiles]];
}

/** What the address asks to search for: [parameters, request options, description]; null for nothing. */
function request(run, query) {
  if (query.text) return [{ text: query.text }, {}, h("span", { dir: "auto" }, `“${query.text}”`)];
  if (query.row != null && query.of_images) return [{ of_images: query.of_images, row: query.row }, {}, h("span", {}, "this image: ", picture(run, query.of_images, query.row, { alt: `image ${query.row}` }))];
  if (query.row != null && query.of_list) return [{ of_list: query.of_list, row: query.row }, {}, h("span", {}, `caption ${count(+query.row)} of its list`)];
  if (query.picture && dropped?.run === run) {
    return [{}, { method: "POST", body: dropped.file }, h("span", {}, `${dropped.file.name || "the picture"}: `, h("span", { class: "picture" }, h("img", { src: dropped.url, alt: "the picture to search for" })))];
  }
  return null;
}

export async function view({ number: run, query, go, fetchJson, isCurrent, show, address }) {
  const contents = await fetchJson(`/api/runs/${run}/contents`);
  const pick = (entries, name) => (name === "none" ? "" : entries.some((entry) => entry.name === name) ? name : entries[0]?.name ?? "");
  const list = pick(contents.lists, query.list);
  const images = pick(contents.images, query.images);
  const keep = { list: query.list, images: query.images, by_language: query.by_language };
  const take = (file) => {
    if (!file) return;
    if (dropped) URL.revokeObjectURL(dropped.url);
    dropped = { run, file, url: URL.createObjectURL(file) };
    go({ ...keep, picture: String(+(query.picture ?? 0) + 1) });
  };
  const file = h("input", { type: "file", accept: "image/*", id: "file", class: "visually-hidden", onchange: (event) => take(event.target.files[0]) });
  const drop = h("div", { class: "drop",
    ondragover: (event) => { event.preventDefault(); drop.classList.add("over"); },
    ondragleave: () => drop.classList.remove("over"),
    ondrop: (event) => { event.preventDefault(); drop.classList.remove("over"); take(event.dataTransfer.files[0]); } },
  file, h("label", { for: "file" }, h("strong", {}, "Drop a picture here"), ", paste one, or ", h("u", {}, "choose a file")));
  const text = h("input", { type: "search", name: "text", value: query.text ?? "", dir: "auto", disabled: !contents.texts, autocomplete: "off" });
  const set = (changes) => go({ ...query, ...changes });
  const form = h("section", { "aria-label": "What to search for", onpaste: (event) => take([...event.clipboardData.files].find((one) => one.type.startsWith("image/"))) },
    drop,
    h("form", { class: "filters", role: "search", onsubmit: (event) => { event.preventDefault(); if (text.value.trim()) go({ ...keep, text: text.value }); } },
      h("label", { class: "wide" }, "Text in any language", text), h("button", { disabled: !contents.texts }, "Search")),
    !contents.texts && h("p", { class: "note" }, "This run has a classifier. Searching for a text needs a text head ([head] kind = \"text\") or a paired encoder (kind = \"paired\")."),
    h("div", { class: "filters" },
      contents.lists.length > 0 && choice("Captions", [...contents.lists.map((entry) => [entry.name, entryTitle(entry)]), ["none", "none"]], list || "none", (value) => set({ list: value })),
      contents.images.length > 0 && choice("Images", [...contents.images.map((entry) => [entry.name, entryTitle(entry)]), ["none", "none"]], images || "none", (value) => set({ images: value })),
      list && h("label", { class: "check" }, h("input", { type: "checkbox", checked: query.by_language === "true", onchange: (event) => set({ by_language: event.target.checked ? "true" : "" }) }), "languages side by side")));
  document.onpaste = (event) => { if (isCurrent()) take([...event.clipboardData.files].find((one) => one.type.startsWith("image/"))); };
  const page = (content) => [h("h1", {}, "Search"), form, content];
  const asked = request(run, query);
  if (!asked) return page(h("p", { class: "empty" }, "Drop a picture to rank captions for it", contents.texts && ", or type a text to find images", "."));
  const [parameters, options, description] = asked;
  const wanted = { ...parameters, list, images, by_language: query.by_language };
  const url = `/api/runs/${run}/search?${new URLSearchParams(Object.entries(wanted).filter(([, value]) => value))}`;
  const heading = h("p", { class: "asked" }, "Results for ", description);
  let answer;
  try {
    answer = await fetchBuilt(fetchJson, url, options, isCurrent, (progress) => show(page([heading, progress])));
  } catch (error) {
    return page(h("p", { class: "error", role: "alert" }, error.message));
  }
  if (!answer) return null;
  const likeImage = (row) => address("search", { ...keep, of_images: images, row });
  const likeCaption = (row) => address("search", { ...keep, of_list: list, row });
  return page([heading, results(run, answer, { images, list, likeImage, likeCaption, isClassifier: contents.head === "classes", imagesFirst: !!(query.text || query.of_list) })]);
}
