// Router and connection. The address after `#` is the view: `#/RUN/VIEW?QUERY`.

import * as compare from "./compare.js";
import { h, update } from "./dom.js";
import * as pictures from "./pictures.js";
import * as quarantine from "./quarantine.js";
import * as runView from "./run.js";
import * as search from "./search.js";

const VIEWS = [["run", "Run"], ["pictures", "Pictures"], ["search", "Search"], ["quarantine", "Quarantine"], ["compare", "Compare"]];
/** Time between two attempts to reach the server. */
const RETRY_MS = 3000;
/** Views with choices: their state is the query of the address. */
const CHOOSING = { pictures, quarantine, search };
const view = document.getElementById("view");
const connection = document.getElementById("connection");
let runs = [];
let events = null;
let followed = null;
let isLost = false;
let requests = 0;

function place() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [number, name] = path.split("/");
  const run = runs[+number] ? +number : 0;
  return { run, name: VIEWS.some(([known]) => known === name) ? name : "run", query: Object.fromEntries(new URLSearchParams(query)) };
}

function address(run, name, query = {}) {
  const text = new URLSearchParams(Object.entries(query).filter(([, value]) => value != null && value !== "")).toString();
  return `#/${run}/${name}${text && `?${text}`}`;
}

async function fetchJson(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch {
    throw new Error("The server does not answer. This page goes on by itself once it does.");
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error ?? `The server answered with status ${response.status}.`);
  return body;
}

function showConnection(text, lost = false) {
  connection.textContent = text;
  connection.classList.toggle("lost", lost);
}

function follow(number) {
  if (followed === number) return;
  events?.close();
  followed = number;
  const source = new EventSource(`/api/runs/${number}/live`);
  events = source;
  source.addEventListener("open", () => {
    showConnection("live");
    if (isLost) recover();
  });
  source.addEventListener("error", () => {
    isLost = true;
    showConnection("connection lost; trying again", true);
    // The browser connects again by itself, unless it got an answer that is no stream of events.
    if (source.readyState === EventSource.CLOSED) setTimeout(async () => {
      if (events !== source) return;
      followed = null;
      // The server may have fewer runs now.
      await recover();
      if (events === source) follow(place().run);
    }, RETRY_MS);
  });
  events.addEventListener("unreadable", (event) => showConnection(event.data, true));
  events.addEventListener("overview", (event) => {
    runs[number] = JSON.parse(event.data);
    showConnection(runs[number].live ? "live" : "not running");
    if (["run", "compare"].includes(place().name)) render();
  });
}

/** After a lost connection: the server may show other runs now, and what failed meanwhile is asked for again. */
async function recover() {
  isLost = false;
  try {
    runs = await fetchJson("/api/runs");
  } catch {
    isLost = true;
    return;
  }
  if (["run", "compare"].includes(place().name) || view.querySelector(".error, .missing")) render();
  else renderHeader(place());
}

function renderHeader(here) {
  const tabs = VIEWS.filter(([name]) => name !== "compare" || runs.length > 1).map(([name, title]) =>
    h("li", {}, h("a", { href: address(here.run, name), "aria-current": name === here.name ? "page" : null }, title)));
  update(document.getElementById("tabs"), h("ul", {}, tabs));
  const select = document.getElementById("run");
  document.getElementById("run-choice").hidden = runs.length < 2;
  const names = runs.map((run) => run.name);
  if (select.dataset.names !== JSON.stringify(names)) {
    select.dataset.names = JSON.stringify(names);
    select.replaceChildren(...names.map((name, index) => h("option", { value: index }, name)));
  }
  select.value = here.run;
  document.title = `${runs[here.run].name} – wikicap-pipeline`;
}

async function render() {
  const here = place();
  const request = ++requests;
  renderHeader(here);
  follow(here.run);
  try {
    const go = (query) => { location.hash = address(here.run, here.name, query); };
    const isCurrent = () => request === requests;
    const show = (content) => { if (isCurrent()) view.replaceChildren(...h("main", {}, content).childNodes); };
    const content = here.name === "compare" ? await compare.view(runs, fetchJson)
      : CHOOSING[here.name] ? await CHOOSING[here.name].view({ run: runs[here.run], number: here.run, query: here.query, go, fetchJson, isCurrent, show, address: (name, query) => address(here.run, name, query) })
      : runView.view(runs[here.run]);
    if (request !== requests || content == null) return;
    const fresh = h("main", {}, content);
    // Views with lists of choices are built anew, since their listeners belong to the new query.
    if (here.name === "run" || here.name === "compare") update(view, fresh);
    else view.replaceChildren(...fresh.childNodes);
  } catch (error) {
    if (request === requests) showError(VIEWS.find(([name]) => name === here.name)[1], error);
  }
}

function showError(title, error) {
  view.replaceChildren(h("h1", {}, title), h("p", { class: "error", role: "alert" }, error.message));
}

document.getElementById("run").addEventListener("change", (event) => { location.hash = address(+event.target.value, place().name); });
// The hash is the address of a view, so the link moves the focus and leaves the hash.
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); view.focus(); });
addEventListener("hashchange", () => { render(); view.focus({ preventScroll: true }); });

async function start() {
  try {
    runs = await fetchJson("/api/runs");
  } catch (error) {
    showError("wikicap-pipeline", error);
    setTimeout(start, RETRY_MS);
    return;
  }
  await render();
}

await start();
