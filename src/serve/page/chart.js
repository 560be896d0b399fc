// Line charts as SVG.

import { h, svg } from "./dom.js";
import { number } from "./format.js";

const WIDTH = 560;
const HEIGHT = 240;
const MARGIN = { left: 52, right: 12, top: 12, bottom: 34 };

/** Round steps between two numbers, about `wanted` of them. */
function ticks(low, high, wanted) {
  const raw = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  return found;
}

/**
 * A chart of several lines over training steps.
 * `lines`: [{ name, points: [[x, y]], series, dash, best: [x, y] }], `limits`: [{ name, y }].
 */
export function lineChart({ title, xLabel, lines, limits = [], fromZero = false }) {
  const drawn = lines.filter((line) => line.points.length);
  if (!drawn.length) return h("p", { class: "empty" }, "No points yet.");
  const xs = drawn.flatMap((line) => line.points.map(([x]) => x));
  const ys = [...drawn.flatMap((line) => line.points.map(([, y]) => y)), ...limits.map((limit) => limit.y)];
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  let [low, high] = [fromZero ? 0 : Math.min(...ys), Math.max(...ys)];
  // A flat line, as of scores that are all zero, stands on the axis instead of filling the chart.
  if (low === high) high = low + (low === 0 ? 1 : Math.abs(low));
  const pad = fromZero ? 0 : 0.05 * (high - low);
  [low, high] = [low - pad, high + 0.05 * (high - low)];
  const x = (at) => MARGIN.left + ((at - left) / (right - left || 1)) * (WIDTH - MARGIN.left - MARGIN.right);
  const y = (at) => HEIGHT - MARGIN.bottom - ((at - low) / (high - low)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const path = (points) => points.map(([px, py], index) => `${index ? "L" : "M"}${x(px).toFixed(1)} ${y(py).toFixed(1)}`).join("");
  const last = (line) => line.points[line.points.length - 1][1];
  const summary = drawn.map((line) => `${line.name}: ${number(line.points[0][1])} to ${number(last(line))}`).join("; ");
  const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "chart", role: "img", "aria-label": `${title}. ${summary}` },
    ticks(low, high, 4).map((at) => [
      svg("line", { class: "axis", x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: y(at), y2: y(at) }),
      svg("text", { x: MARGIN.left - 6, y: y(at) + 4, "text-anchor": "end" }, number(at)),
    ]),
    ticks(left, right, 5).map((at) => svg("text", { x: x(at), y: HEIGHT - MARGIN.bottom + 16, "text-anchor": "middle" }, number(at))),
    svg("text", { x: WIDTH - MARGIN.right, y: HEIGHT - 4, "text-anchor": "end" }, xLabel),
    limits.map((limit) => svg("line", { class: "limit", x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: y(limit.y), y2: y(limit.y) })),
    drawn.map((line) => [
      svg("path", { class: `line series-${line.series}`, d: path(line.points), "stroke-dasharray": line.dash ? "3 3" : null }),
      line.best && svg("circle", { class: `best series-${line.series}`, cx: x(line.best[0]), cy: y(line.best[1]), r: 4 }),
    ]));
  const mark = (attributes) => svg("svg", { width: 22, height: 8, "aria-hidden": "true" }, svg("line", { x1: 0, x2: 22, y1: 4, y2: 4, "stroke-width": 2, ...attributes }));
  return h("figure", {},
    h("figcaption", {}, title),
    chart,
    h("ul", { class: "legend" },
      drawn.map((line) => h("li", {}, mark({ class: `series-${line.series}`, "stroke-dasharray": line.dash ? "3 3" : null }), line.name,
        line.best && ` (best ${number(line.best[1])} at step ${line.best[0]})`)),
      limits.map((limit) => h("li", {}, mark({ stroke: "currentColor", "stroke-dasharray": "5 4" }), `${limit.name} ${number(limit.y)}`))));
}
