// A small line chart: one curve, its axes labelled at both ends, its last value beside its name.
import { drawn, make } from "/page/dom.js";

const [W, H, LEFT, RIGHT, TOP, BOTTOM] = [160, 96, 34, 6, 8, 18];
export function short(value) {
  const size = Math.abs(value);
  const text = value === 0 ? "0" : size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1) : size >= 0.1 ? value.toFixed(2) : size >= 1e-4 ? String(Number(value.toPrecision(2))) : value.toExponential(0);
  return text.replace("-", "−");
}

// points: [[x, y]], x from `first` to `last` on the axis; `about` explains the name, `unit` names the x axis.
export function chart(name, about, points, first, last, unit) {
  const figure = make("figure", "curve"), caption = make("figcaption");
  const svg = drawn("svg", { viewBox: `0 0 ${W} ${H}`, role: "img" });
  const values = points.map((p) => p[1]);
  const now = values.length ? short(values[values.length - 1]) : "–";
  caption.append(make("span", "", name), make("b", "", now));
  figure.title = about;
  figure.append(caption, svg);
  svg.setAttribute("aria-label", `${name}: ${now}. ${about}`);
  let [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
  if (high - low < 1e-9) { const room = Math.abs(high) / 10 || 1; low -= room; high += room; }
  const x = (v) => LEFT + ((v - first) / Math.max(1, last - first)) * (W - LEFT - RIGHT);
  const y = (v) => TOP + ((high - v) / (high - low)) * (H - TOP - BOTTOM);
  const label = (text, at, up, anchor) => drawn("text", { x: at, y: up, "text-anchor": anchor }, text);
  svg.append(
    drawn("path", { class: "axis", d: `M${LEFT} ${TOP}V${H - BOTTOM}H${W - RIGHT}` }),
    drawn("path", { class: "grid", d: `M${LEFT} ${TOP}H${W - RIGHT}` }),
    label(String(first), LEFT, H - 5, "middle"), label(String(last), W - RIGHT, H - 5, "end"),
    label(unit, (LEFT + W - RIGHT) / 2, H - 5, "middle"),
  );
  if (!values.length) return figure;
  svg.append(
    label(short(high), LEFT - 4, TOP + 4, "end"), label(short(low), LEFT - 4, H - BOTTOM, "end"),
    drawn("polyline", { class: "line", points: points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ") }),
    drawn("circle", { class: "dot", cx: x(points[points.length - 1][0]), cy: y(values[values.length - 1]), r: 2.6 }),
  );
  return figure;
}
