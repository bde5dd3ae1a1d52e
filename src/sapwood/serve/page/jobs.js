/* Lessons that were asked for: how far they are, and how they ended. */

import { Problem, follow, get } from "./api.js";
import { bar, find, make } from "./dom.js";
import { duration } from "./words.js";

const LEFT = "A lesson before this one was left half learned. Whoever began it can repeat it to go on; or it can be dropped when this is taught again.";
const watched = new Map();
let changed = async () => {};

/** `whenDone(version)` is called when a lesson has changed the state. */
export function onLearned(whenDone) {
  changed = whenDone;
}

/** Shows the lessons that are under way. */
export async function resumeJobs() {
  const { jobs } = await get("/v1/jobs", { role: "teach" });
  for (const job of jobs) if (job.status === "queued" || job.status === "running") watch(job.job, null, job.teaches);
}

/** Shows a lesson from now to its end; `restart()` sends it again, without what is half learned. */
export async function watch(id, taught, teaches = taught, restart = null) {
  if (watched.has(id)) return;
  const panel = build(teaches, restart);
  watched.set(id, panel);
  find("job").prepend(panel.card);
  if (taught !== null) panel.card.scrollIntoView({ block: "nearest" });
  try {
    let last = null;
    await follow(`/v1/jobs/${id}`, (event, job) => {
      if (event === "done") last = job;
      else panel.update(event, job);
    });
    if (last === null) return;
    await changed(last.version); // first: when it says that it has learned, it answers so
    panel.update("done", last);
  } catch (error) {
    panel.update("failed", { error: error instanceof Problem ? error.message : "The progress cannot be followed any more." });
    if (!(error instanceof Problem)) throw error;
  }
}

function build(teaches, restart) {
  const title = make("h3", {}, teaches ? `Learning “${teaches}”` : "Learning");
  const status = make("p", { role: "status", "aria-live": "polite" }, "Sent.");
  const track = make("div", { className: "progress", role: "progressbar", "aria-label": "Progress", "aria-valuemin": "0", "aria-valuemax": "100" });
  const detail = make("p", { className: "muted detail" });
  const notes = make("ul", { className: "notes muted" });
  const more = make("details", { className: "more", hidden: true }, make("summary", {}, "What it says"), notes);
  const actions = make("div", { className: "row end" });
  const card = make("section", { className: "card job", "aria-label": "Lesson" }, title, status, track, detail, more, actions);
  const panel = { card };
  const listed = (texts) => {
    notes.replaceChildren(...texts.map((text) => make("li", {}, text)));
    more.hidden = texts.length === 0;
  };
  panel.update = (event, job) => {
    const { progress = {} } = job;
    const said = progress.notes ?? [];
    listed(said);
    if (event === "done") {
      finished(teaches, { title, status, track, detail, actions, card }, job);
    } else if (event === "failed") {
      card.classList.add("refused");
      title.textContent = teaches ? `“${teaches}” was not learned` : "Nothing was learned";
      status.textContent = job.restart_helps ? LEFT : (job.error ?? "It failed.");
      if (job.restart_helps) listed([...said, job.error]);
      status.className = "error";
      track.remove();
      detail.remove();
      if (job.restart_helps && restart) actions.replaceChildren(...again(restart, status));
    } else advance(job, { status, track, detail });
  };
  return panel;
}

/** Offers to give up another lesson that was left half learned. */
function again(restart, status) {
  const words = "What was learned of that round so far would be lost; what the state knows stays.";
  const button = make("button", { type: "button", className: "danger" }, "Drop it and learn this");
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await restart();
      button.parentElement.replaceChildren();
    } catch (error) {
      status.textContent = error.message;
      button.disabled = false;
      if (!(error instanceof Problem)) throw error;
    }
  });
  return [make("p", { className: "muted small" }, words), button];
}

function advance(job, { status, track, detail }) {
  const { what, total, done, loss } = job.progress ?? {};
  const words = job.status === "queued" ? "Waits for the lesson before it." : what ? `${what[0].toUpperCase()}${what.slice(1)} …` : "Getting ready …";
  if (status.textContent !== words) status.textContent = words; // a live region speaks whenever it changes
  const share = total ? Math.min(1, done / total) : null;
  track.classList.toggle("open", share === null);
  track.replaceChildren(bar(share ?? 0));
  if (share === null) track.removeAttribute("aria-valuenow");
  else track.setAttribute("aria-valuenow", String(Math.round(100 * share)));
  const facts = [];
  if (total) facts.push(`${done} of ${total}`);
  if (typeof loss === "number") facts.push(`loss ${loss.toPrecision(3)}`);
  if (job.started) facts.push(duration(Math.max(0, (Date.now() - Date.parse(job.started)) / 1000)));
  detail.textContent = facts.join(" · ");
}

function finished(teaches, { title, status, track, detail, actions, card }, job) {
  card.classList.add("done");
  title.textContent = teaches ? `“${teaches}” is learned` : "Learned";
  status.textContent = "It answers with what it has just learned. Show it a picture that it has not seen.";
  track.remove();
  const seconds = (Date.parse(job.ended) - Date.parse(job.started)) / 1000;
  detail.textContent = Number.isFinite(seconds) ? `In ${duration(seconds)}, version ${job.version}` : `Version ${job.version}`;
  actions.replaceChildren(
    make("a", { className: "button primary", href: "#ask" }, "Ask it"),
    make("a", { className: "button quiet", href: "#history" }, "See the history"),
  );
}
