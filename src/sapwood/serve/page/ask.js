/* Asking: pictures in, names with bars out. */

import { Problem, post } from "./api.js";
import { aside, bar, find, make, show } from "./dom.js";
import { fitting, tooLarge } from "./limits.js";
import { maskAnswer } from "./masks.js";
import { onPaste, picker, thumbnail } from "./picker.js";
import { count, percent, size } from "./words.js";

const TOGETHER = 8; // pictures of a request: answers come while others are still on their way
const CLASSES_SHOWN = 40;

let facts = null;
let early = []; // files that were chosen before the state has said what it is
let waiting = [];
let busy = false;
let tally = { asked: 0, answered: 0, failed: 0 };

export function startAsking() {
  const zone = picker({
    title: "Drop pictures here",
    hint: "or paste them, or choose files. They are looked at and not kept.",
    button: "Choose pictures",
    chosen: ask,
  });
  find("ask-drop").append(zone);
  find("ask-clear").addEventListener("click", clear);
  onPaste((files) => {
    if (!find("ask").hidden) ask(files);
  });
  // A picture that misses the field must not replace the page.
  for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());
}

/** What the state says of itself. */
export function showClasses(state) {
  facts = state;
  const taught = state.classes.filter((name) => !(state.kind === "segmentation" && name === "background"));
  find("ask-heading").textContent = state.kind === "segmentation" ? "What is where in the picture?" : "What is in the picture?";
  find("ask-hint").textContent = taught.length
    ? `It chooses among ${count(taught.length, "class", "classes")} that it has been taught.`
    : "It has not been taught anything yet. Teach it a class first; then ask.";
  if (!taught.length && !state.read_only) find("ask-hint").append(" ", make("a", { href: "#teach" }, "Teach it a class"));
  show(find("ask-drop"), taught.length > 0);
  show(find("ask-closer"), taught.length > 0 && state.kind === "segmentation");
  show(find("known"), taught.length > 0);
  const chips = taught.slice(0, CLASSES_SHOWN).map((name) => make("li", {}, name));
  if (taught.length > CLASSES_SHOWN) chips.push(make("li", { className: "rest" }, `and ${taught.length - CLASSES_SHOWN} more`));
  find("known-list").replaceChildren(...chips);
  if (early.length) ask(early.splice(0));
}

function clear() {
  waiting = [];
  tally = { asked: 0, answered: 0, failed: 0 };
  find("answers").replaceChildren();
  show(find("ask-bar"), false);
  find("ask-drop").querySelector("input").focus();
}

function ask(files) {
  if (facts === null) {
    early.push(...files);
    return;
  }
  const list = find("answers");
  if (!busy && !waiting.length) tally = { asked: 0, answered: 0, failed: 0 };
  const tile = facts.kind === "segmentation" && find("ask-tile").checked;
  const entries = files.map((file) => ({ file, tile, tally, card: card(file), fault: tooLarge(file, facts.limits) }));
  list.prepend(...entries.map((entry) => entry.card));
  show(find("ask-bar"));
  tally.asked += entries.length;
  for (const entry of entries.filter(({ fault }) => fault)) refuse(entry, entry.fault);
  waiting.push(...entries.filter(({ fault }) => !fault));
  tell();
  if (!busy) work();
}

async function work() {
  busy = true;
  try {
    while (waiting.length) {
      const some = waiting.splice(0, fitting(waiting, facts.limits, facts.kind === "segmentation" ? 1 : TOGETHER));
      await answer(some);
      tell();
    }
  } finally {
    busy = false;
    tell();
  }
}

async function answer(entries) {
  try {
    const form = new FormData();
    for (const { file } of entries) form.append("image", file, file.name || "picture");
    if (entries[0].tile) form.append("tile", "true"); // a picture with a mask goes alone
    const said = await post("/v1/predict?top=5", form, { waiting: tell });
    for (const [index, entry] of entries.entries()) {
      if (entry.card.isConnected) await fill(entry, said.predictions[index], said);
      entry.tally.answered += 1; // one that was cleared away meanwhile counts no more
    }
  } catch (error) {
    if (entries.length > 1 && error instanceof Problem && error.status >= 400 && error.status < 500 && error.status !== 401) {
      for (const entry of entries) await answer([entry]); // one of them is at fault: the others get their answers
      return;
    }
    for (const entry of entries) refuse(entry, error.message);
  }
}

/** How far it is; `instead` is said while there is nothing to look at. */
function tell(instead = null) {
  const { asked, answered, failed } = tally;
  const left = asked - answered - failed;
  const words = left > 0 ? (instead ?? `Looking at ${count(left, "picture")} …`) : `${count(answered, "picture")} answered`;
  find("ask-status").textContent = failed ? `${words}, ${failed} refused` : words;
}

function card(file) {
  const masks = facts.kind === "segmentation";
  const name = file.name || "pasted picture";
  return make(
    "li",
    { className: masks ? "answer card scene" : "answer card", "aria-busy": "true" },
    masks ? null : thumbnail(file, ""),
    make(
      "div",
      { className: "said" },
      make("p", { className: "waiting muted" }, "Looking …"),
      make("p", { className: "file muted", title: name }, `${name} · ${size(file.size)}`),
    ),
  );
}

async function fill({ file, card: place }, prediction, said) {
  place.removeAttribute("aria-busy");
  const target = place.querySelector(".said");
  target.querySelector(".waiting").remove();
  if (facts.kind === "segmentation") {
    target.prepend(await maskAnswer(file, prediction, facts));
    return;
  }
  target.prepend(named(prediction, said.calibrated));
}

function named(prediction, calibrated) {
  const known = prediction.known !== false;
  const sure = calibrated ? `${percent(prediction.score)} sure` : percent(prediction.score);
  const rows = prediction.top.slice(known ? 1 : 0).map(({ class: name, score }) =>
    make("li", {}, make("span", { className: "name", title: name }, name), bar(score), make("span", { className: "number" }, aside(", "), percent(score))),
  );
  const verdict = make(
    "p",
    { className: "verdict" },
    make("strong", {}, known ? prediction.class : "Not like anything taught"),
    known ? make("span", { className: "sure" }, sure) : null,
  );
  const nearest = make("p", { className: "muted small" }, "The nearest of what it knows:");
  return make(
    "div",
    { className: known ? "" : "unknown" },
    verdict,
    known ? bar(prediction.score) : nearest,
    rows.length ? make("ul", { className: "bars", "aria-label": known ? "Less likely" : "The nearest" }, rows) : null,
  );
}

function refuse({ card: place, tally: counted }, words) {
  place.removeAttribute("aria-busy");
  place.classList.add("refused");
  place.querySelector(".waiting").replaceWith(make("p", { className: "error" }, words));
  counted.failed += 1;
}
