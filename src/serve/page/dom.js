// Builds elements. Text always becomes a text node, so captions and addresses of a corpus cannot add markup.

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

/** An HTML element with attributes (`onclick` and the like are listeners) and children. */
export function h(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** Elements of HTML that the server has drawn, such as charts; every text in it is escaped there. Scripts in it never run. */
export function drawn(html) {
  return [...new DOMParser().parseFromString(html, "text/html").body.childNodes];
}

/** Replaces the content of an element only where it differs, so that focus and selection survive an update. */
export function update(parent, fresh) {
  morph(parent, fresh);
}

function morph(old, fresh) {
  const now = [...old.childNodes];
  const next = [...fresh.childNodes];
  next.forEach((node, index) => {
    const current = now[index];
    if (!current) return old.append(node);
    if (current.nodeType !== node.nodeType || current.nodeName !== node.nodeName) return current.replaceWith(node);
    if (current.nodeType === Node.TEXT_NODE) {
      if (current.data !== node.data) current.data = node.data;
      return;
    }
    for (const { name } of [...current.attributes]) if (!node.hasAttribute(name)) current.removeAttribute(name);
    for (const { name, value } of node.attributes) if (current.getAttribute(name) !== value) current.setAttribute(name, value);
    morph(current, node);
  });
  now.slice(next.length).forEach((node) => node.remove());
}

/** A table in a box that scrolls sideways. `columns`: [heading, isNumber]. */
export function table(columns, rows, caption) {
  const cells = (row) => row.map((cell, index) => h("td", { class: columns[index][1] ? "number" : "text" }, cell));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {},
      h("thead", {}, h("tr", {}, columns.map(([name, number]) => h("th", { scope: "col", class: number ? "number" : null }, name)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, cells(row))))));
}
