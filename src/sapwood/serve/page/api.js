/* The server: requests with the reader's token, errors as words, progress as it comes. */

const STORE = { ask: "sapwood-ask-token", teach: "sapwood-teach-token" };
const WAITS = 6; // times that a busy server is asked again
const PATIENCE = 600; // times that one is asked again that is still loading its network

/** What the server refused, in its own words. */
export class Problem extends Error {
  constructor(status, said) {
    super(said.detail || said.title);
    this.status = status;
    this.loading = said.loading === true;
  }
}

/** Who is told: `token(role, wrong)` asks the reader for one, `version(id)` hears which version answered. */
export const listeners = { token: async () => false, version: () => {} };

export function setToken(role, text) {
  if (text) sessionStorage.setItem(STORE[role], text);
  else sessionStorage.removeItem(STORE[role]);
}

function token(role) {
  return sessionStorage.getItem(STORE[role]) ?? sessionStorage.getItem(STORE[role === "ask" ? "teach" : "ask"]);
}

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

/**
 * The answer to a request. Throws `Problem`.
 *
 * `role` says which token it needs; `waiting(words)` hears why it is asked again later.
 */
export async function request(path, { role = "ask", accept = "application/json", waiting = () => {}, ...options } = {}) {
  for (let attempt = 1; ; attempt++) {
    const headers = { Accept: accept, ...options.headers };
    const held = token(role);
    if (held) headers.Authorization = `Bearer ${held}`;
    let answer;
    try {
      answer = await fetch(path, { ...options, headers, cache: "no-store", redirect: "error" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem(0, { detail: "The server does not answer. Is it still running? Try again in a moment." });
    }
    const version = answer.headers.get("X-Sapwood-Version");
    if (version) listeners.version(version);
    if (answer.ok) return answer;
    const refused = await problem(answer);
    const later = Number(answer.headers.get("Retry-After"));
    if (answer.status === 401 && attempt <= WAITS) {
      if (await listeners.token(role, Boolean(held))) continue;
    } else if (later && (answer.status === 429 || answer.status === 503) && attempt <= (refused.loading ? PATIENCE : WAITS)) {
      waiting(refused.loading ? "Its network is still being loaded …" : refused.message);
      await pause(1000 * Math.min(10, later));
      continue;
    }
    throw refused;
  }
}

async function problem(answer) {
  let said = {};
  try {
    said = await answer.json();
  } catch {
    // not in the server's own form: a proxy in between, for instance
  }
  const title = said.title || answer.statusText || `Status ${answer.status}`;
  return new Problem(answer.status, { ...said, title });
}

export const get = async (path, options) => (await request(path, options)).json();

export const post = async (path, body, options) => (await request(path, { method: "POST", body, ...options })).json();

/** Listens to a job until it is done or failed; `heard(event, data)` for every event. */
export async function follow(path, heard, signal) {
  for (let attempt = 1; ; attempt++) {
    try {
      if (await stream(path, heard, signal)) return;
      attempt = 1; // it ended in good order, but not with an end
    } catch (error) {
      if (error.name === "AbortError" || error.status) throw error;
      if (attempt >= WAITS) throw error;
    }
    await pause(500 * attempt);
  }
}

async function stream(path, heard, signal) {
  const answer = await request(path, { role: "teach", accept: "text/event-stream", signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return false;
    const parts = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const [event, data] = parsed(part);
      if (data === null) continue;
      heard(event, data);
      if (event === "done" || event === "failed") {
        await reader.cancel();
        return true;
      }
    }
  }
}

/** Name and content of one server-sent event; content null for a comment. */
export function parsed(text) {
  let event = "message";
  const data = [];
  for (const line of text.split("\n")) {
    if (line.startsWith("event:")) event = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  return [event, data.length ? JSON.parse(data.join("\n")) : null];
}
