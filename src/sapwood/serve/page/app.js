/* The page: which part is shown, what the server says of itself, and who is asked for a token. */

import { get, listeners, setToken } from "./api.js";
import { showClasses, startAsking } from "./ask.js";
import { find, show } from "./dom.js";
import { showHistory, startUndo } from "./history.js";
import { onLearned, resumeJobs } from "./jobs.js";
import { showTeaching } from "./teach.js";
import { count } from "./words.js";

const PARTS = ["ask", "teach", "history"];
const TITLES = { ask: "Ask", teach: "Teach", history: "History" };
let state = null;
let name = "sapwood";
let last = "ask";
let loading = null;
let asked = null; // the token that the reader is being asked for

async function load() {
  const [found, history] = await Promise.all([get("/v1/state"), get("/v1/history")]);
  state = found;
  name = history.name;
  find("title").textContent = name;
  const taught = state.classes.filter((label) => !(state.kind === "segmentation" && label === "background")).length;
  find("facts").textContent = [count(taught, "class", "classes"), count(state.tasks.length, "round"), state.method, state.backbone].join(" · ");
  find("version").textContent = `Version ${state.version}`;
  show(find("to-teach"), !state.read_only);
  show(find("key"), state.needs_token.ask || state.needs_token.teach);
  showClasses(state);
  if (!state.read_only) showTeaching(state);
  showHistory(history, !state.read_only);
  show(find("problem"), false);
  title();
}

/** What the server knows now; several askers share one answer. */
function refresh() {
  loading ??= load()
    .catch((error) => {
      find("problem").textContent = error.message;
      show(find("problem"));
      if (error.status === undefined) throw error;
    })
    .finally(() => {
      loading = null;
    });
  return loading;
}

/** After a change that was made from here: until its version is the one that answers. */
async function changed(version) {
  await loading; // what was on its way is older
  for (let attempt = 0; attempt < 40; attempt++) {
    await refresh();
    if (!state || state.version === version) return;
    await new Promise((done) => setTimeout(done, 250));
  }
}

/** What the address names; one that names no part, as that of the link past the navigation, leaves the last. */
function part() {
  const name = location.hash.slice(1) || "ask";
  if (PARTS.includes(name)) last = name;
  return last === "teach" && state?.read_only ? "ask" : last;
}

function title() {
  document.title = `${TITLES[part()]} · ${name}`;
}

function turn() {
  const now = part();
  for (const name of PARTS) show(find(name), name === now);
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${now}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  title();
}

function askToken(role, wrong) {
  asked ??= prompt(role, wrong).finally(() => {
    asked = null;
  });
  return asked;
}

function prompt(role, wrong) {
  const dialog = find("token-dialog");
  const field = find("token");
  const what = role === "teach" ? "teach it or undo" : "ask it";
  find("token-words").textContent = wrong ? `That is not the token to ${what}. Try again.` : `This server wants a token from whoever wants to ${what}.`;
  field.value = "";
  dialog.returnValue = "no";
  dialog.showModal();
  field.focus();
  return new Promise((done) => {
    const ended = () => {
      const given = dialog.returnValue === "yes" ? field.value.trim() : "";
      field.value = "";
      if (given) setToken(role, given);
      done(Boolean(given));
    };
    dialog.addEventListener("close", ended, { once: true });
  });
}

/** Enter in a field means the last button of its dialog, not the first. */
find("token").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  find("token-dialog").querySelector("[value=yes]").click();
});

listeners.token = askToken;
listeners.version = (version) => {
  if (state && version !== state.version && !loading) refresh();
};
find("key").addEventListener("click", async () => {
  const role = state?.needs_token.teach && part() !== "ask" ? "teach" : state?.needs_token.ask ? "ask" : "teach";
  if (await askToken(role, false)) refresh();
});
window.addEventListener("hashchange", () => {
  turn();
  if (location.hash === "#main") return; // the browser has done it
  find("main").focus({ preventScroll: true });
  window.scrollTo(0, 0);
});
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible" && state) refresh(); // others may have taught it meanwhile
});

startAsking();
startUndo(changed);
onLearned(changed);
turn();
await refresh();
turn();
const mayTeach = state && !state.read_only && (!state.needs_token.teach || sessionStorage.getItem("sapwood-teach-token"));
if (mayTeach) await resumeJobs();
