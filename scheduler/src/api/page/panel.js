// What stands beside the jobs: the workers, and what went through the farm in the last ten minutes.

import { now } from "./api.js";
import { BIN_MS, BINS } from "./farm.js";
import * as words from "./words.js";

const WORKERS_MAX = 200;
const TENANTS_MAX = 50;
const SVG = "http://www.w3.org/2000/svg";
// What is said to be now is the mean of half a minute: workers tell how far they are now and then.
const NOW_BINS = 3;

const element = (id) => document.getElementById(id);
const put = (node, text) => {
  if (node.textContent !== text) node.textContent = text;
};

function shape(svg, place, name, attributes) {
  const node = svg.children[place] ?? svg.appendChild(document.createElementNS(SVG, name));
  for (const [key, value] of Object.entries(attributes)) if (node.getAttribute(key) !== value) node.setAttribute(key, value);
}

/** Draws speed as a line over an area, each bin in its middle. */
function drawSpeed(speeds) {
  const most = Math.max(...speeds);
  const y = (speed) => 39 - (most ? speed / most : 0) * 37;
  const line = speeds.map((speed, place) => `${place + 0.5},${y(speed).toFixed(2)}`).join(" L");
  const svg = element("speed-plot");
  shape(svg, 0, "path", { class: "grid", d: "M0,2 H60 M0,20.5 H60 M0,39 H60" });
  shape(svg, 1, "path", { class: "area", d: `M0.5,39 L${line} L${BINS - 0.5},39 Z` });
  shape(svg, 2, "path", { class: "line", d: `M${line}` });
  const mean = speeds.slice(-NOW_BINS).reduce((sum, speed) => sum + speed, 0) / NOW_BINS;
  put(element("speed"), words.short(mean));
  put(element("speed-most"), most ? `at most ${words.short(most)}` : "");
  svg.setAttribute("aria-label",
    `Media seconds per second over the last 10 minutes: ${words.short(mean)} now, at most ${words.short(most)}`);
}

/** Draws how many jobs ended in each bin, those that failed on top. */
function drawEnds(bins) {
  const sum = (name) => bins.reduce((all, bin) => all + bin[name], 0);
  const most = Math.max(1, ...bins.map(({ done, failed }) => done + failed));
  const svg = element("ends-plot");
  bins.forEach(({ done, failed }, place) => {
    const [low, high] = [(done / most) * 19, (failed / most) * 19];
    const at = { x: String(place + 0.1), width: "0.8" };
    shape(svg, place * 2, "rect", { ...at, class: "done", y: String(20 - low), height: String(low) });
    shape(svg, place * 2 + 1, "rect", { ...at, class: "failed", y: String(20 - low - high), height: String(high) });
  });
  const [done, failed] = [sum("done"), sum("failed")];
  put(element("ends"), words.count(done + failed));
  put(element("ends-word"), done + failed === 1 ? "job ended" : "jobs ended");
  svg.setAttribute("aria-label", `Jobs ended over the last 10 minutes: ${words.count(done)} done, ${words.count(failed)} failed`);
}

export function drawFlow(farm) {
  const bins = farm.flow(now());
  // Of a bin that is not full yet there is no speed.
  drawSpeed(bins.slice(0, -1).map(({ media }) => media / (BIN_MS / 1000)));
  drawEnds(bins.slice(1));
}

/** Draws the queue of each tenant. Who sees those of one alone has them in the list. */
export function drawQueues(farm) {
  const queues = farm.queues();
  const [table, more] = [element("tenants"), element("tenants-more")];
  rows(table.tBodies[0], queues.slice(0, TENANTS_MAX), ["number", "number"], ({ tenant, waiting, running }) => [
    tenant, "", words.count(waiting), words.count(running),
  ]);
  element("queues").hidden = queues.length < 2;
  more.hidden = queues.length <= TENANTS_MAX;
  put(more, `and ${words.count(queues.length - TENANTS_MAX)} more`);
}

/** The cells of a worker, as texts. */
const cells = ({ running, slots, speed, draining }) =>
  [`${running} / ${slots}`, typeof speed === "number" ? words.short(speed) : "–", draining ? "draining" : "working"];

/** What stands below the name of a worker. */
function subtitle({ version, devices }) {
  const named = (devices ?? []).map(String).join(", ");
  return `${version ?? ""} · ${named || "no devices"}`;
}

export function drawWorkers(workers) {
  const [busy, slots] = ["running", "slots"].map((name) => workers.reduce((sum, worker) => sum + worker[name], 0));
  const sum = `${words.many(workers.length, "worker")}, ${words.count(busy)} of ${words.many(slots, "slot")} busy`;
  put(element("workers-sum"), workers.length ? sum : "No workers");
  const [table, more] = [element("workers"), element("workers-more")];
  const shown = [...workers].sort((a, b) => (a.id < b.id ? -1 : 1)).slice(0, WORKERS_MAX);
  rows(table.tBodies[0], shown, ["number", "number", "standing"], (worker, row) => {
    row.dataset.state = worker.draining ? "draining" : "working";
    return [worker.id, subtitle(worker), ...cells(worker)];
  });
  table.hidden = shown.length === 0;
  more.hidden = workers.length <= WORKERS_MAX;
  put(more, `and ${words.count(workers.length - WORKERS_MAX)} more`);
}

/** Has a row for each of these, with the name, what stands below it and the other cells as texts. */
function rows(body, shown, classes, texts) {
  while (body.rows.length > shown.length) body.deleteRow(-1);
  shown.forEach((one, place) => {
    const row = body.rows[place] ?? addRow(body, classes);
    const [name, below, ...others] = texts(one, row);
    const [head, ...rest] = row.cells;
    put(head.firstElementChild, name);
    put(head.lastElementChild, below);
    others.forEach((text, cell) => put(rest[cell], text));
  });
}

function addRow(body, classes) {
  const row = body.insertRow();
  const head = document.createElement("th");
  head.scope = "row";
  head.append(document.createElement("span"), " ", Object.assign(document.createElement("span"), { className: "soft" }));
  row.append(head);
  for (const name of classes) row.insertCell().className = name;
  return row;
}
