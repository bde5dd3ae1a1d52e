/* Teaching: a name and pictures, or an archive of many classes. */

import { Problem, post } from "./api.js";
import { hasCamera, openCamera } from "./camera.js";
import { find, make, show, unique } from "./dom.js";
import { watch } from "./jobs.js";
import { tooLarge, tooMuch } from "./limits.js";
import { ARCHIVES, onPaste, picker, thumbnail } from "./picker.js";
import { count, size } from "./words.js";

let facts = null;
let pictures = [];
let archive = null;
let parts = null;

export function showTeaching(state) {
  const first = facts === null || facts.kind !== state.kind;
  facts = state;
  if (first) build();
  names();
}

function build() {
  const masks = facts.kind === "segmentation";
  find("teach-heading").textContent = masks ? "Teach more pictures with masks" : "Teach something new";
  find("teach-hint").textContent = masks
    ? "A zip file with a folder images, a folder masks (PNG, a value for each class) and a file classes.json that says which value is which class."
    : "Say what it is called and show pictures of it. What it knows already stays.";
  find("tips").replaceChildren(...tips(masks).map((text) => make("li", {}, text)));
  parts = { error: make("p", { className: "error", role: "alert", hidden: true }), submit: submitButton() };
  const fields = masks ? [archiveField(masks)] : [choice(), oneClass(), make("div", { id: "many", hidden: true }, archiveField(masks))];
  find("teach-form").replaceChildren(...fields, more(), parts.error, make("div", { className: "row end" }, parts.submit));
  find("teach-form").addEventListener("submit", submit);
  onPaste((files) => {
    if (!find("teach").hidden && !many()) add(files);
  });
  refresh();
}

const tips = (masks) =>
  masks
    ? ["One picture, one mask of the same name.", "A value for each class, 255 for what does not count.", "Classes that it knows already may be in them."]
    : [
        "Twenty pictures are better than five, five better than one.",
        "Different sides, distances, light and backgrounds.",
        "Only it, or it in the middle: the whole picture is looked at.",
        "Keep a few back, to ask about afterwards.",
      ];

const submitButton = () => make("button", { type: "submit", className: "primary" }, "Teach");

function choice() {
  const option = (value, text, checked) =>
    make("label", {}, make("input", { type: "radio", name: "what", value, checked, onchange: refresh }), make("span", {}, text));
  return make(
    "fieldset",
    { className: "switch" },
    make("legend", { className: "aside" }, "What to teach"),
    option("one", "One class", true),
    option("many", "Many, as a zip", false),
  );
}

const many = () => facts.kind === "segmentation" || find("teach-form").elements.what?.value === "many";

function oneClass() {
  const id = unique("name");
  const listed = unique("names");
  parts.name = make("input", { id, name: "class", type: "text", maxLength: 200, autocomplete: "off", spellcheck: false, list: listed, "aria-describedby": `${id}-hint`, oninput: refresh });
  parts.nameHint = make("p", { className: "muted hint", id: `${id}-hint` });
  parts.names = make("datalist", { id: listed });
  parts.status = make("p", { className: "muted", role: "status", "aria-live": "polite" });
  parts.thumbs = make("ul", { className: "thumbs", "aria-label": "Chosen pictures" });
  const camera = make("button", { type: "button", className: "outline", onclick: () => openCamera((file) => add([file])) }, "Use the camera");
  const drop = picker({
    title: "Drop pictures of it here",
    hint: "or paste them, or choose files. They are deleted once it has learned.",
    button: "Choose pictures",
    tone: "outline",
    chosen: add,
    extra: hasCamera() ? [camera] : [],
    compact: true,
  });
  return make(
    "div",
    { id: "one", className: "stack" },
    make("div", { className: "field" }, make("label", { for: id }, "What is it called?"), parts.name, parts.names, parts.nameHint),
    make("div", { className: "field" }, drop, parts.status, parts.thumbs),
  );
}

function archiveField(masks) {
  parts.archive = make("p", { className: "muted", role: "status", "aria-live": "polite" });
  const drop = picker({
    title: "Drop a zip file here",
    hint: masks ? "images/, masks/ and classes.json." : "One folder for each class, named like it, with its pictures inside.",
    button: "Choose a file",
    tone: "outline",
    accept: ARCHIVES,
    multiple: false,
    chosen: ([file]) => {
      archive = file;
      parts.archive.textContent = `${file.name}, ${size(file.size)}`;
      refresh();
    },
    compact: true,
  });
  return make("div", { className: "field" }, drop, parts.archive);
}

function more() {
  const [round, epochs] = [unique("round"), unique("epochs")];
  parts.round = make("input", { id: round, type: "text", maxLength: 200, autocomplete: "off", "aria-describedby": `${round}-hint` });
  parts.epochs = make("input", { id: epochs, type: "number", min: 1, max: 10000, step: 1, inputMode: "numeric", "aria-describedby": `${epochs}-hint` });
  return make(
    "details",
    { className: "more" },
    make("summary", {}, "More options"),
    make(
      "div",
      { className: "columns" },
      make("div", { className: "field" }, make("label", { for: round }, "Name of the round"), parts.round, make("p", { className: "muted hint", id: `${round}-hint` }, "As the history shows it. Empty: named after the class.")),
      make("div", { className: "field" }, make("label", { for: epochs }, "Passes over the pictures"), parts.epochs, make("p", { className: "muted hint", id: `${epochs}-hint` }, "Empty: as many as the method is set to.")),
    ),
  );
}

function names() {
  if (!parts?.names) return;
  parts.names.replaceChildren(...facts.classes.slice(0, 500).map((name) => make("option", { value: name })));
  refresh();
}

function add(files) {
  const have = new Set(pictures.map(({ file }) => `${file.name} ${file.size} ${file.lastModified}`));
  for (const file of files) {
    if (have.has(`${file.name} ${file.size} ${file.lastModified}`)) continue;
    const entry = { file };
    const remove = make("button", { type: "button", className: "remove", "aria-label": `Leave out ${file.name}`, onclick: () => leaveOut(entry) }, "×");
    entry.item = make("li", {}, thumbnail(file), remove);
    parts.thumbs.append(entry.item);
    pictures.push(entry);
  }
  refresh();
}

function leaveOut(entry) {
  const next = entry.item.nextElementSibling ?? entry.item.previousElementSibling;
  pictures = pictures.filter((other) => other !== entry);
  entry.item.remove();
  (next?.querySelector("button") ?? parts.name).focus();
  refresh();
}

function refresh() {
  show(parts.error, false);
  parts.submit.textContent = "Teach";
  if (facts.kind === "segmentation") return;
  show(find("one"), !many());
  show(find("many"), many());
  const name = parts.name.value.trim();
  parts.nameHint.textContent = facts.classes.includes(name) ? `${name} is known: these pictures are added to what it knows of it.` : "One word or a few, as it shall answer later.";
  const bytes = pictures.reduce((sum, { file }) => sum + file.size, 0);
  parts.status.textContent = pictures.length ? `${count(pictures.length, "picture")}, ${size(bytes)}` : "";
  if (!many() && name) parts.submit.textContent = `Teach “${name.length > 30 ? `${name.slice(0, 29)}…` : name}”`;
}

const chosen = () => (many() ? [archive].filter(Boolean) : pictures.map(({ file }) => file));

/** What keeps the form from being sent, and the field to mend it in. */
function missing() {
  if (!many() && !parts.name.value.trim()) return ["Say what it is called.", parts.name];
  const files = chosen();
  if (!files.length) return [many() ? "Choose a zip file first." : "Add at least one picture of it.", null];
  const large = many() ? undefined : files.map((file) => tooLarge(file, facts.limits)).find(Boolean);
  const words = large ?? tooMuch(files, facts.limits);
  return words ? [words, null] : null;
}

async function submit(event) {
  event.preventDefault();
  const fault = missing();
  if (fault) {
    complain(fault[0]);
    (fault[1] ?? find("teach-form").querySelector(many() ? "#many input[type=file], .field input[type=file]" : "#one input[type=file]")).focus();
    return;
  }
  const form = new FormData();
  if (parts.epochs.value) form.append("epochs", parts.epochs.value);
  const name = many() ? archive.name : parts.name.value.trim();
  const round = parts.round.value.trim();
  if (round) form.append("task", round);
  if (many()) form.append("archive", archive, archive.name);
  else {
    form.append("name", name);
    for (const file of chosen()) form.append("image", file, file.name || "picture.jpg");
  }
  parts.submit.disabled = true;
  parts.submit.textContent = "Sending …";
  try {
    const taught = many() ? null : name;
    await send(form, taught);
    empty();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    complain(error.message);
  } finally {
    parts.submit.disabled = false;
    const words = parts.error.hidden ? null : parts.error.textContent;
    refresh();
    if (words) complain(words);
  }
}

/** Sends a lesson and shows it; after another one that was left half learned, it can be sent again without that. */
async function send(form, taught) {
  const { job } = await post("/v1/learn", form, { role: "teach" });
  watch(job, taught, taught, async () => {
    form.set("restart", "true");
    await send(form, taught);
  });
}

function complain(words) {
  parts.error.textContent = words;
  show(parts.error);
}

function empty() {
  pictures = [];
  archive = null;
  parts.thumbs?.replaceChildren();
  parts.archive.textContent = "";
  for (const field of [parts.name, parts.round, parts.epochs]) if (field) field.value = "";
}
