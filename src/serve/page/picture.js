// Pictures and captions as elements, and answers that are still being built.

import { h } from "./dom.js";
import { count, number } from "./format.js";

/** The address of a picture of a set. `kind`: thumbnail, original or model. */
export const pictureUrl = (run, images, row, kind) =>
  `/api/runs/${run}/picture?${new URLSearchParams({ images, row, kind })}`;

/** A picture that loads when it comes into view. If it cannot be shown, a sentence says why. */
export function picture(run, images, row, { kind = "thumbnail", alt }) {
  const url = pictureUrl(run, images, row, kind);
  const box = h("span", { class: `picture ${kind}` });
  const image = h("img", { src: url, alt, loading: "lazy", decoding: "async" });
  image.addEventListener("error", async () => {
    let why = "The picture cannot be shown.";
    try {
      const answer = await fetch(url);
      if (!answer.ok) why = (await answer.json()).error ?? why;
    } catch { /* The connection line says that the server does not answer. */ }
    box.replaceChildren(h("span", { class: "missing" }, why));
  });
  box.append(image);
  return box;
}

/** A dialog with the picture as it was and as the model saw it. */
export function showPicture(run, images, row, title) {
  const figure = (kind, caption) => h("figure", {}, h("figcaption", {}, caption), picture(run, images, row, { kind, alt: `${title}, ${caption}` }));
  const close = () => dialog.close();
  const dialog = h("dialog", { "aria-label": title, onclose: () => dialog.remove(), onclick: (event) => event.target === dialog && close() },
    h("div", { class: "pair" }, figure("original", "as it was"), figure("model", "as the model saw it")),
    h("p", { class: "address" }, title),
    h("button", { type: "button", onclick: close }, "Close"));
  document.body.append(dialog);
  dialog.showModal();
}

/** A caption with its language, score and mark; text of any direction. */
export function caption({ text, language, score, is_right: isRight }, more) {
  return h("li", { class: isRight ? "right" : null },
    h("span", { class: "text", dir: "auto", lang: language || null }, text || "(empty)"),
    h("span", { class: "facts" },
      language && h("span", { class: "language" }, language),
      score != null && h("span", { class: "score" }, number(score)),
      isRight && h("strong", {}, "✓ right"), more));
}

/** Fetches an answer, and shows the progress of what has to be built for it. `isCurrent` ends the waiting. */
export async function fetchBuilt(fetchJson, url, options, isCurrent, show) {
  for (;;) {
    const answer = await fetchJson(url, options);
    if (!answer.building) return answer;
    if (!isCurrent()) return null;
    const { what, done, total } = answer.building;
    show(h("div", { class: "empty", role: "status" }, h("p", {}, `Preparing: ${what}. The first time takes a while.`),
      h("progress", { max: 1, value: total ? Math.min(1, done / total) : null, "aria-label": what }),
      total > 0 && h("p", {}, `${count(done)} of ${count(total)}`)));
    await new Promise((done) => setTimeout(done, 700));
    if (!isCurrent()) return null;
  }
}

/** A labelled list of choices. */
export function choice(label, options, chosen, onchange) {
  return h("label", {}, label, h("select", { onchange: (event) => onchange(event.target.value) },
    options.map(([value, text]) => h("option", { value, selected: value === chosen }, text))));
}
