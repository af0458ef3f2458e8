// The farm's page: who signs in sees jobs and workers as they are, by the scheduler's events.

import * as api from "./api.js";
import { Farm } from "./farm.js";
import { JobList } from "./jobs.js";
import { drawFlow, drawQueues, drawWorkers } from "./panel.js";
import * as player from "./player.js";
import * as submit from "./submit.js";
import { many } from "./words.js";

const LISTED = 1000;
const LISTS_MAX = 20;
const OLDER = 100;
// Pauses between attempts to connect, in s; whoever was connected for that long begins with the shortest again.
const PAUSE_MIN = 1;
const PAUSE_MAX = 30;
const STEADY_MS = 10_000;
// Longest that events are taken in without a break, so that keys and frames do not wait.
const TURN_MS = 8;
const NEWS_MS = 3_000;
const AGE_TICKS = 10;

const element = (id) => document.getElementById(id);

let farm = new Farm();
let session = null;
let isDrawing = false;
let saidAt = 0;

const jobs = new JobList(farm, { draw, play: player.open, more, say });

/** Draws what has changed, in the next frame. */
function draw() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    jobs.paint();
  });
}

function say(text) {
  element("news").textContent = text;
  saidAt = performance.now();
}

/** Tells of jobs that have ended, of many in one. */
function tellEnds() {
  if (!farm.ends.length || performance.now() - saidAt < NEWS_MS) return;
  const [job] = farm.ends;
  say(farm.ends.length === 1 ? `${job.id}: ${job.state}` : `${many(farm.ends.length, "job")} ended`);
  farm.ends = [];
}

function link(is, text) {
  const node = element("link");
  if (node.textContent !== text) node.textContent = text;
  node.dataset.is = is;
}

/** Reads what events do not tell: since when jobs are as they are, those that have ended, and what became of those that ended
    while nobody listened. */
async function catchUp(signal) {
  const listed = new Set();
  let after = null;
  for (let page = 0; page < LISTS_MAX && !signal.aborted; page += 1) {
    const { jobs: lines, next } = await api.ask(`v1/jobs?state=active&limit=${LISTED}${after ? `&after=${after}` : ""}`);
    for (const line of lines) note(line, listed);
    after = next;
    if (!after) break;
  }
  if (signal.aborted) return;
  const { jobs: ended, next } = await api.ask(`v1/jobs?state=ended&limit=${OLDER}`);
  if (signal.aborted) return;
  // Those further back are here already when it is not the first time.
  if (farm.epoch === 1) farm.endedNext = next;
  for (const line of ended) note(line, listed);
  for (const id of farm.lost(listed)) {
    if (signal.aborted) return;
    await jobs.refresh(id);
  }
}

function note(line, listed) {
  farm.list(line);
  listed.add(line.id);
  jobs.change(line.id);
  draw();
}

/** Reads the next of those that ended longer ago. */
async function more() {
  try {
    const { jobs: ended, next } = await api.ask(`v1/jobs?state=ended&limit=${OLDER}&after=${farm.endedNext}`);
    farm.endedNext = next;
    for (const line of ended) note(line, new Set());
  } catch (problem) {
    failed(problem);
  }
}

/** Tells why something was not done; whose token is not known any more is signed out. */
function failed(problem) {
  if (problem.status === 401) leave("This token is not known any more.");
  else say(problem.message);
}

function heard(name, data) {
  if (name === "job") {
    farm.take(data, api.now());
    jobs.change(data.id);
    draw();
  } else if (name === "workers") {
    farm.workers = data.workers;
    drawWorkers(farm.workers);
  }
}

/** Waits; not longer than until the network is back or somebody looks. */
function pause(seconds, signal) {
  const over = new AbortController();
  return new Promise((done) => {
    const end = () => {
      over.abort();
      clearTimeout(timer);
      done();
    };
    const timer = setTimeout(end, seconds * 1000);
    for (const [from, event] of [[globalThis, "online"], [document, "visibilitychange"], [signal, "abort"]]) {
      from.addEventListener(event, end, { signal: over.signal });
    }
  });
}

/** Follows the farm, and connects again when it breaks off. */
async function follow(signal) {
  let wait = PAUSE_MIN;
  while (!signal.aborted) {
    let openedAt = Infinity;
    let problem = null;
    try {
      let turn = performance.now();
      for await (const { name, data } of api.events(signal)) {
        if (signal.aborted) return;
        if (name === "open") {
          openedAt = performance.now();
          farm.epoch += 1;
          link("live", "Live");
          catchUp(signal).catch((problem) => signal.aborted || failed(problem));
        } else {
          heard(name, data);
        }
        if (performance.now() - turn > TURN_MS) {
          await api.breathe();
          turn = performance.now();
        }
      }
    } catch (error) {
      problem = error;
    }
    if (signal.aborted) return;
    if (problem?.status === 401) {
      leave("This token is not known any more.");
      return;
    }
    if (performance.now() - openedAt > STEADY_MS) wait = PAUSE_MIN;
    const why = problem?.message ? `: ${problem.message}` : "";
    link("away", `${openedAt === Infinity ? "Not connected, trying again" : "Connecting again"}${why}`);
    await pause(wait * (0.75 + Math.random() / 2), signal);
    wait = Math.min(wait * 2, PAUSE_MAX);
  }
}

function tick(count) {
  jobs.age(count % AGE_TICKS === 0);
  draw();
  drawFlow(farm);
  drawQueues(farm);
  tellEnds();
}

function enter() {
  element("door").hidden = true;
  element("farm").hidden = false;
  const stop = new AbortController();
  let count = 0;
  const timer = setInterval(() => tick((count += 1)), 1000);
  session = { stop, timer };
  drawFlow(farm);
  draw();
  follow(stop.signal);
}

/** Forgets the token and all that was seen with it. */
function leave(why) {
  session?.stop.abort();
  clearInterval(session?.timer);
  session = null;
  api.forget();
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  farm = new Farm();
  jobs.farm = farm;
  jobs.clear();
  jobs.paint();
  drawQueues(farm);
  drawWorkers([]);
  link("away", "Connecting");
  ask(why);
}

function ask(why) {
  element("farm").hidden = true;
  element("door").hidden = false;
  element("sign-in-error").textContent = why;
  element("token").focus();
}

let isSigningIn = false;

async function signIn(event) {
  event.preventDefault();
  if (isSigningIn) return;
  isSigningIn = true;
  const [field, error] = ["token", "sign-in-error"].map(element);
  error.textContent = "";
  api.keep(field.value.trim());
  try {
    await api.ask("v1/jobs?limit=1");
    field.value = "";
    enter();
    element("jobs-title").focus();
  } catch (problem) {
    api.forget();
    error.textContent = problem.status === 401 ? "This token is not known here." : problem.message;
    field.focus();
  } finally {
    isSigningIn = false;
  }
}

player.prepare();
submit.prepare((id) => {
  say(`${id} is submitted`);
  jobs.show("all");
  jobs.refresh(id).catch(failed);
});
element("sign-in").addEventListener("submit", signIn);
element("submit-open").addEventListener("click", submit.open);
element("leave").addEventListener("click", () => leave(""));
if (api.token()) enter();
else ask("");
