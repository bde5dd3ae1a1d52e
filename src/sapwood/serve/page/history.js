/* What was learned, round by round: numbers, course, matrix, costs; and the step back. */

import { listeners, post } from "./api.js";
import { course } from "./course.js";
import { aside, find, make, show } from "./dom.js";
import { capital, cell, count, duration, moment, percent, size } from "./words.js";

const CLASSES_SHOWN = 12;
const MEANINGS = {
  "last accuracy": "of all classes, now",
  "last mean IoU": "of all classes, now",
  "average incremental accuracy": "mean over the rounds",
  "average over the rounds": "of the mean IoU",
  forgetting: "lost by earlier rounds since their best",
  "backward transfer": "change of earlier rounds since they were learned",
  "with the background": "last mean IoU of all channels",
};
const MARKS = { validation: "validation pictures", probe: "pictures that the state keeps" };
let shown = null;

export function showHistory(history, mayUndo) {
  shown = history;
  show(find("undo"), mayUndo && history.undo !== null);
  const body = find("history-body");
  if (!history.rounds.length) {
    body.replaceChildren(make("p", { className: "empty" }, "Nothing has been learned yet."));
    return;
  }
  body.replaceChildren(...[numbers(history), rounds(history), chart(history), matrix(history), costs(history)].filter(Boolean));
}

export function startUndo(changed) {
  const dialog = find("undo-dialog");
  let seen = null;
  find("undo").addEventListener("click", () => {
    seen = shown;
    find("undo-words").textContent = takenBack(shown);
    dialog.returnValue = "no";
    dialog.showModal();
  });
  dialog.addEventListener("close", async () => {
    if (dialog.returnValue !== "yes") return;
    const button = find("undo");
    button.disabled = true;
    try {
      const drops = seen.undo.drops ? { drops: seen.undo.drops } : {};
      const what = new URLSearchParams({ version: seen.version, ...drops });
      const { version } = await post(`/v1/undo?${what}`, null, { role: "teach" });
      await changed(version);
      say("done", `Undone. It answers as it did before; this is version ${version}.`);
    } catch (error) {
      say("error", error.message);
      if (error.status === 409) listeners.version(""); // what is shown is not what is there
    } finally {
      button.disabled = false;
    }
  });
}

function say(tone, words) {
  const place = find("undone");
  place.className = tone;
  show(place);
  place.textContent = words;
}

/** In words, what an undo changes. */
function takenBack({ undo }) {
  if (undo.drops) return `It drops the round “${undo.drops}”, which is half learned, and nothing else.`;
  const parts = [undo.rounds.length ? `It goes back to before the round “${undo.rounds[0]}”.` : "It goes back to before the last change."];
  const back = undo.returns.length ? `knows ${named(undo.returns, 6)} again` : "";
  const gone = undo.goes.length ? `no longer knows ${named(undo.goes, 6)}` : "";
  if (back || gone) parts.push(`Then it ${[gone, back].filter(Boolean).join(", and ")}.`);
  return parts.join(" ");
}

function named(names, most) {
  const rest = names.length - most;
  return rest > 0 ? `${names.slice(0, most).join(", ")} and ${rest} more` : names.join(", ");
}

function section(title, ...children) {
  return make("section", { className: "part", "aria-label": title }, make("h3", {}, title), children);
}

function numbers(history) {
  const entries = Object.entries(history.numbers).filter(([, value]) => value !== null);
  if (!entries.length) return null;
  const tiles = entries.map(([name, value]) =>
    make("div", {}, make("dt", {}, capital(name)), make("dd", {}, percent(value, 1)), MEANINGS[name] ? make("dd", { className: "muted small" }, MEANINGS[name]) : null),
  );
  return make("dl", { className: "tiles" }, tiles);
}

function rounds(history) {
  const items = history.rounds.map((round, index) => {
    const facts = [count(round.images, "picture"), duration(round.seconds), size(round.bytes)];
    const now = history.after_each[index];
    const pictures = MARKS[round.measured_on] ? ` on ${MARKS[round.measured_on]}` : "";
    if (now !== null) facts.push(`${history.measure} ${percent(now, 1)}${pictures}`);
    return make(
      "li",
      {},
      make("span", { className: "count", "aria-hidden": "true" }, String(index + 1)),
      make(
        "div",
        {},
        make("p", { className: "round" }, make("strong", {}, round.name)),
        classes(round.classes, ""),
        round.again.length ? classes(round.again, "more pictures of") : null,
        make("p", { className: "muted" }, facts.join(" · ")),
      ),
    );
  });
  return section("Rounds", make("ol", { className: "rounds" }, items));
}

function classes(names, before) {
  if (!names.length) return null;
  const chips = names.slice(0, CLASSES_SHOWN).map((name) => make("li", {}, name));
  const rest = names.slice(CLASSES_SHOWN);
  const list = make("ul", { className: "chips" }, before ? make("li", { className: "rest" }, before) : null, chips);
  if (!rest.length) return list;
  const hidden = make("ul", { className: "chips" }, rest.map((name) => make("li", {}, name)));
  return make("div", {}, list, make("details", { className: "more" }, make("summary", {}, `and ${rest.length} more`), hidden));
}

function chart(history) {
  const points = history.after_each.filter((value) => value !== null);
  const drawing = points.length > 1 ? course(history, Math.min(736, document.documentElement.clientWidth - 32)) : null;
  const words = "Thick: the classes of all rounds so far. Thin: those of each round on its own.";
  return drawing ? section(`${capital(history.measure)} after each round`, drawing, make("p", { className: "muted small" }, words)) : null;
}

function matrix(history) {
  const measure = capital(history.measure);
  const columns = history.rounds.map((round, index) => ({ round, index })).filter(({ round }) => round.classes.length);
  if (!columns.length) return null;
  const marked = (source) => history.rounds.some((round) => round.measured_on === source);
  const head = make("tr", {}, make("th", { scope: "col" }, "after round"), columns.map(({ round, index }) => make("th", { scope: "col" }, label(round, index))));
  const rows = history.rounds.map((round, after) =>
    make("tr", {}, make("th", { scope: "row" }, label(round, after)), columns.map(({ index }) => heat(history, after, index))),
  );
  const words = "Rows: after learning a round. Columns: the round whose classes were measured, among all classes known then.";
  const own = marked("validation") ? " v: on the round’s own validation pictures and among its own classes alone, as no test pictures were given." : "";
  const kept = marked("probe") ? " p: on pictures that the state keeps to measure on, which were never learned." : "";
  return section(
    `${measure} matrix`,
    make(
      "div",
      { className: "scroll", tabIndex: 0, role: "region", "aria-label": `${measure} in percent` },
      make("table", { className: "heat" }, make("caption", {}, `${measure} in percent`), make("thead", {}, head), make("tbody", {}, rows)),
    ),
    make("p", { className: "muted small" }, words + own + kept),
    history.remark ? make("p", { className: "muted small" }, history.remark) : null,
  );
}

function label(round, index) {
  return [make("span", { className: "index" }, `${index + 1} `), make("span", { className: "name", title: round.name }, round.name)];
}

function heat(history, after, on) {
  const value = history.accuracy[after][on];
  if (value === null) return make("td", { className: on > after ? "" : "missing" }, aside(on > after ? "not learned yet" : "not measured"));
  const source = history.rounds[after].measured_on;
  const mark = MARKS[source] ? make("abbr", { title: MARKS[source] }, source[0]) : null;
  return make("td", { className: `h${Math.round(10 * value)}` }, cell(value), mark);
}

function costs(history) {
  const entries = Object.entries(history.costs);
  if (!entries.length) return null;
  const items = entries.map(([name, value]) => make("div", {}, make("dt", {}, capital(name)), make("dd", {}, value)));
  return section("What it costs", make("dl", { className: "pairs" }, items), make("p", { className: "muted small" }, `Version of ${moment(history.created)}.`));
}
