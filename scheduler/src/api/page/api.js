// Asks the scheduler, with the token of whoever is signed in. The token is kept for this tab alone, and goes nowhere else.

const BASE = new URL("..", import.meta.url);
const KEPT_AS = "shoal-token";
// The scheduler itself gives up after 30 s, and says something every 15 s where there is nothing to say.
const ANSWER_MS = 40_000;
const SILENCE_MS = 40_000;
const LINE_CHARS_MAX = 8 << 20;

// How far the scheduler's clock is ahead of this one.
let aheadMs = 0;

/** Why something was not done: `status` is 0 when there was no answer. */
export class Problem extends Error {
  constructor(status, code, detail) {
    super(detail);
    this.status = status;
    this.code = code;
  }
}

export const token = () => sessionStorage.getItem(KEPT_AS) ?? "";
// What cannot stand in a header is nobody's token, and asking with it would not even begin.
export const keep = (given) => sessionStorage.setItem(KEPT_AS, given.replace(/[^ -~]/g, "?"));
export const forget = () => sessionStorage.removeItem(KEPT_AS);

/** Now, by the scheduler's clock, in ms since 1970. */
export const now = () => Date.now() + aheadMs;

export const url = (path) => new URL(path, BASE);
export const jobPath = (id) => `v1/jobs/${encodeURIComponent(id)}`;
export const outputPath = (id, key) => `${jobPath(id)}/output/${key.split("/").map(encodeURIComponent).join("/")}`;

/** Sends a request; the answer, or a `Problem`. */
export async function send(path, { method = "GET", body, signal, accept = "application/json" } = {}) {
  const headers = { Authorization: `Bearer ${token()}`, Accept: accept };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(url(path), {
      method, headers, signal: signal ?? AbortSignal.timeout(ANSWER_MS), cache: "no-store", credentials: "omit",
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Problem(0, "unreachable", "The scheduler does not answer.");
  }
  const date = Date.parse(answer.headers.get("Date") ?? "");
  if (Number.isFinite(date)) aheadMs = Math.abs(date - Date.now()) > 2000 ? date - Date.now() : 0;
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null);
  const detail = typeof told?.detail === "string" ? told.detail : `The scheduler answers with status ${answer.status}.`;
  throw new Problem(answer.status, String(told?.code ?? "unknown"), detail);
}

/** As `send`; what the answer says. */
export const ask = async (path, options) => (await send(path, options)).json();

/** What happens, until it ends or breaks off: first that it is `open`, then what is told. */
export async function* events(signal) {
  const stop = new AbortController();
  const end = () => stop.abort();
  let timer = setTimeout(end, SILENCE_MS);
  signal.addEventListener("abort", end);
  try {
    const answer = await send("v1/events", { signal: stop.signal, accept: "text/event-stream" });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    yield { name: "open" };
    let [rest, name, data] = ["", "message", []];
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(end, SILENCE_MS);
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      if (rest.length > LINE_CHARS_MAX) return;
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield { name, data: JSON.parse(data.join("\n")) };
          [name, data] = ["message", []];
        } else if (line.startsWith("event:")) {
          name = line.slice(6).trim();
        } else if (line.startsWith("data:")) {
          data.push(line.slice(5));
        }
      }
    }
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", end);
    stop.abort();
  }
}

/** Lets everything else have its turn. Timers would be slowed down where the page is not looked at. */
export const breathe = () => new Promise((done) => {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => {
    port1.close();
    done();
  };
  port2.postMessage(0);
});
