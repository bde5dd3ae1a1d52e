/* The measure after each round as a drawing: one thin line for each round's classes, a thick one for all so far. */

import { draw } from "./dom.js";
import { capital, percent } from "./words.js";

const [HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [220, 34, 84, 12, 42];

/** `width` in pixels. */
export function course(history, width) {
  const rounds = history.rounds.length;
  const x = (index) => LEFT + ((width - LEFT - RIGHT) * index) / Math.max(1, rounds - 1);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value);
  const words = history.after_each.map((value, index) => `after round ${index + 1} ${value === null ? "not measured" : percent(value, 1)}`);
  const chart = draw("svg", {
    class: "course",
    viewBox: `0 0 ${width} ${HEIGHT}`,
    role: "img",
    "aria-label": `${capital(history.measure)} over all rounds so far: ${words.join(", ")}`,
  });
  for (const step of [0, 0.25, 0.5, 0.75, 1]) {
    chart.append(
      draw("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(step), y2: y(step) }),
      draw("text", { class: "tick", x: LEFT - 8, y: y(step) + 4, "text-anchor": "end" }, String(100 * step)),
    );
  }
  const every = Math.ceil(rounds / 12);
  for (let index = 0; index < rounds; index += every) {
    chart.append(draw("text", { class: "tick", x: x(index), y: HEIGHT - 24, "text-anchor": "middle" }, String(index + 1)));
  }
  chart.append(draw("text", { class: "tick", x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 5, "text-anchor": "middle" }, "after round"));
  history.rounds.forEach((round, on) => {
    const cells = history.accuracy.map((row, after) => (after >= on ? row[on] : null));
    const apart = new Set(history.breaks.filter((cell) => cell[1] === on).map((cell) => cell[0]));
    if (round.classes.length) line(chart, cells, x, y, "thin", null, apart);
  });
  line(chart, history.after_each, x, y, "thick", "all so far", new Set());
  return chart;
}

function line(chart, values, x, y, kind, name, apart) {
  let path = "";
  let pen = "M";
  let last = null;
  values.forEach((value, index) => {
    if (value === null) {
      pen = "M";
      return;
    }
    if (apart.has(index)) pen = "M";
    path += `${pen}${x(index).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = "L";
    last = [x(index), y(value)];
    chart.append(draw("circle", { class: kind, cx: x(index), cy: y(value), r: kind === "thick" ? 4 : 2.2 }));
  });
  chart.append(draw("path", { class: kind, d: path || "M0 0" }));
  if (name && last) chart.append(draw("text", { class: "end", x: last[0] + 10, y: last[1] + 4 }, name));
}
