// The list of jobs: a page of it at a time, and of that only what has changed is drawn again.

import { ask, jobPath, now } from "./api.js";
import { STATES, fraction, hasEnded } from "./farm.js";
import * as words from "./words.js";

const PAGE = 100;
const ALWAYS = ["waiting", "encoding", "done", "failed"];
const LOOKS_MAX = 4;
const NAMES = { play: "Play", retry: "Retry", cancel: "Cancel" };

const element = (id) => document.getElementById(id);
const put = (node, text) => {
  if (node.textContent !== text) node.textContent = text;
};
const set = (node, property, value) => {
  if (node[property] !== value) node[property] = value;
};

/** Which buttons a job has. */
const actions = (job) => ({
  play: job.state === "done" && Boolean(job.result?.master),
  retry: job.state === "failed",
  cancel: !hasEnded(job) && job.state !== "cancelling",
});

/** What is said beside the state of a job. */
function note(job, farm) {
  if (job.deleted_ms) return `output deleted ${words.ago((now() - job.deleted_ms) / 1000)}`;
  if (job.state === "done" && job.result) {
    const { duration_ns, bytes, warnings } = job.result;
    const parts = [words.ago((now() - job.since) / 1000), words.span(duration_ns / 1e9), words.bytes(bytes)];
    if (warnings.length) parts.push(words.many(warnings.length, "warning"));
    return parts.join(" · ");
  }
  const share = fraction(job);
  if (hasEnded(job) || job.state === "waiting" || share === null) return words.ago((now() - job.since) / 1000);
  const seconds = farm.secondsLeft(job, now());
  return `${Math.floor(share * 100)} %${seconds === null ? "" : ` · ${words.left(seconds)} left`}`;
}

/** A row and the parts of it that change. */
class Row {
  constructor(template) {
    this.node = template.content.firstElementChild.cloneNode(true);
    const find = (name) => this.node.querySelector(`.${name}`);
    for (const name of ["name", "tenant", "source", "to", "output", "state", "note", "why", ...Object.keys(NAMES)]) this[name] = find(name);
    this.progress = this.node.querySelector("progress");
    this.isSeen = false;
  }

  draw(job, farm, { asked, showsTenant }) {
    if (this.node.dataset.id !== job.id) this.#name(job.id);
    put(this.tenant, showsTenant ? (job.tenant ?? "") : "");
    for (const end of ["source", "output"]) {
      put(this[end], job[end] ? words.place(job[end]) : "");
      set(this[end], "title", job[end] ?? "");
    }
    set(this.to, "hidden", !job.output);
    set(this.node.dataset, "state", job.state);
    put(this.state, job.state);
    put(this.note, note(job, farm));
    const share = fraction(job);
    set(this.progress, "hidden", hasEnded(job) || (share === null && job.state !== "probing"));
    if (share === null) this.progress.removeAttribute("value");
    else if (this.progress.value !== share || !this.progress.hasAttribute("value")) this.progress.value = share;
    const reason = asked?.problem ?? (job.error ? `${job.error.message} [${job.error.code}]` : "");
    put(this.why, reason);
    set(this.why, "hidden", reason === "");
    for (const [action, can] of Object.entries(actions(job))) {
      if (!can && document.activeElement === this[action]) this.node.focus({ preventScroll: true });
      set(this[action], "hidden", !can);
      const waits = asked?.action === action && !asked.problem;
      if (waits) this[action].setAttribute("aria-disabled", "true");
      else this[action].removeAttribute("aria-disabled");
    }
  }

  #name(id) {
    this.node.dataset.id = id;
    put(this.name, id);
    this.node.setAttribute("aria-label", `Job ${id}`);
    this.progress.setAttribute("aria-label", `Progress of ${id}`);
    for (const action of Object.keys(NAMES)) put(this[action].querySelector(".unseen"), ` ${id}`);
  }
}

export class JobList {
  #rows = new Map();
  #chips = new Map();
  #changed = new Set();
  #moved = true;
  #wanted = "all";
  #page = 0;
  #shown = [];
  /** What was asked of jobs and is not seen to be done yet, or why it is not. */
  #asked = new Map();
  #looks = new Set();
  #toLook = new Set();

  /** `on` has what else there is to do: `draw`, `play`, `more` and `say`. */
  constructor(farm, on) {
    this.farm = farm;
    this.on = on;
    this.list = element("list");
    this.template = element("row");
    this.list.addEventListener("click", ({ target }) => this.#press(target.closest("button")));
    element("before").addEventListener("click", () => this.#turn(-1));
    element("after").addEventListener("click", () => this.#turn(1));
    for (const state of ["all", ...STATES]) this.#addChip(state);
    const seen = (entries) => {
      for (const { isIntersecting, target } of entries) this.#see(target.dataset.id, isIntersecting);
    };
    this.watch = new IntersectionObserver(seen, { rootMargin: "200px" });
    const dialog = element("cancel");
    dialog.querySelector(".close").addEventListener("click", () => dialog.close());
    dialog.querySelector(".danger").addEventListener("click", () => {
      dialog.close();
      this.#ask(dialog.dataset.id, "cancel");
    });
  }

  /** A job is otherwise than before. */
  change(id) {
    this.#changed.add(id);
    this.#moved = true;
    if (this.#asked.has(id) && this.#asked.get(id).state !== this.farm.jobs.get(id)?.state) this.#asked.delete(id);
  }

  /** Time has passed. */
  age(isLong) {
    for (const { id } of this.#page100()) {
      const job = this.farm.jobs.get(id);
      if (job && (isLong || (!hasEnded(job) && job.state !== "waiting"))) this.#changed.add(id);
    }
  }

  /** Shows jobs of a state, or all. */
  show(state) {
    [this.#wanted, this.#page, this.#moved] = [state, 0, true];
    this.on.draw();
  }

  clear() {
    for (const set of [this.#changed, this.#asked, this.#looks, this.#toLook]) set.clear();
    this.show("all");
  }

  paint() {
    if (this.#moved) this.#arrange();
    for (const id of this.#changed) this.#drawRow(id);
    this.#changed.clear();
  }

  #page100() {
    return this.#shown.slice(this.#page * PAGE, (this.#page + 1) * PAGE);
  }

  #drawRow(id) {
    const [row, job] = [this.#rows.get(id), this.farm.jobs.get(id)];
    if (!row || !job) return;
    row.draw(job, this.farm, { asked: this.#asked.get(id), showsTenant: this.showsTenant });
    if (row.isSeen) this.#look(id);
  }

  #see(id, isSeen) {
    const row = this.#rows.get(id);
    if (row) row.isSeen = isSeen;
    if (isSeen) this.#look(id);
  }

  #arrange() {
    this.#moved = false;
    const { counts, shown } = this.farm.ordered(this.#wanted);
    this.#shown = shown;
    const last = Math.max(Math.ceil(shown.length / PAGE) - 1, 0);
    this.#page = Math.min(this.#page, last);
    const tenants = new Set();
    for (const { tenant } of this.farm.jobs.values()) if (tenants.add(tenant).size > 1) break;
    if (this.showsTenant !== tenants.size > 1) {
      this.showsTenant = tenants.size > 1;
      for (const id of this.#rows.keys()) this.#changed.add(id);
    }
    this.#drawChips(counts);
    this.#drawPages(last);
    this.#place(this.#page100());
    set(element("none"), "hidden", shown.length > 0);
  }

  /** Has the rows of these jobs and no others, in this order, and keeps the focus where it is. */
  #place(jobs) {
    const focused = document.activeElement;
    const inside = this.list.contains(focused) ? focused.closest("li") : null;
    const ids = new Set(jobs.map((job) => job.id));
    for (const [id, row] of this.#rows) {
      if (ids.has(id)) continue;
      this.watch.unobserve(row.node);
      row.node.remove();
      this.#rows.delete(id);
    }
    let at = this.list.firstElementChild;
    for (const { id } of jobs) {
      let row = this.#rows.get(id);
      if (!row) {
        row = new Row(this.template);
        this.#rows.set(id, row);
        this.#drawRow(id);
        this.list.insertBefore(row.node, at);
        this.watch.observe(row.node);
      } else if (row.node === at) {
        at = at.nextElementSibling;
      } else if (this.list.moveBefore) {
        this.list.moveBefore(row.node, at);
      } else {
        this.list.insertBefore(row.node, at);
      }
    }
    if (inside) this.#focus(focused, inside);
  }

  /** Gives back the focus that was lost: to the button, to its row, or to the list. */
  #focus(focused, inside) {
    requestAnimationFrame(() => {
      if (document.activeElement !== document.body && document.activeElement !== null) return;
      const may = [focused, inside].find((node) => node.isConnected && !node.hidden);
      (may ?? element("jobs-title")).focus({ preventScroll: true });
    });
  }

  #addChip(state) {
    const chip = document.createElement("button");
    const number = document.createElement("b");
    chip.type = "button";
    chip.dataset.state = state;
    chip.append(state, " ", number);
    chip.addEventListener("click", () => this.show(state));
    this.#chips.set(state, { chip, number });
    element("states").append(chip);
  }

  #drawChips(counts) {
    const all = Object.values(counts).reduce((sum, count) => sum + count, 0);
    const more = this.farm.endedNext === null ? "" : "+";
    for (const [state, { chip, number }] of this.#chips) {
      const count = state === "all" ? all : counts[state];
      const isOpen = state === "all" || hasEnded({ state });
      put(number, `${words.count(count)}${isOpen && count ? more : ""}`);
      const isWanted = state === this.#wanted;
      chip.setAttribute("aria-pressed", String(isWanted));
      set(chip, "hidden", !(count || isWanted || state === "all" || ALWAYS.includes(state)));
    }
    this.#drawQueue(counts);
  }

  /** The jobs that have not ended as one bar, by state. */
  #drawQueue(counts) {
    const states = STATES.filter((state) => !hasEnded({ state }));
    const whole = states.reduce((sum, state) => sum + counts[state], 0);
    const queue = element("queue");
    let x = 0;
    states.forEach((state, place) => {
      const part = queue.children[place] ?? queue.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "rect"));
      const width = whole ? (counts[state] / whole) * 100 : 0;
      const at = { x: `${x}%`, width: `${width}%`, height: "6", class: state };
      for (const [name, value] of Object.entries(at)) if (part.getAttribute(name) !== value) part.setAttribute(name, value);
      x += width;
    });
  }

  #drawPages(last) {
    const isMore = this.#page === last && this.#hasMore();
    const [from, to] = [this.#page * PAGE + 1, Math.min((this.#page + 1) * PAGE, this.#shown.length)];
    set(element("pages"), "hidden", last === 0 && !isMore);
    put(element("where"), `${words.count(from)} to ${words.count(to)} of ${words.count(this.#shown.length)}${this.#hasMore() ? "+" : ""}`);
    set(element("before"), "disabled", this.#page === 0);
    set(element("after"), "disabled", this.#page === last && !isMore);
  }

  #hasMore() {
    return this.farm.endedNext !== null && (this.#wanted === "all" || hasEnded({ state: this.#wanted }));
  }

  async #turn(by) {
    const isLast = (this.#page + 1) * PAGE >= this.#shown.length;
    if (by > 0 && isLast && this.#hasMore()) await this.on.more();
    [this.#page, this.#moved] = [Math.max(this.#page + by, 0), true];
    this.on.draw();
    element("jobs-title").focus();
  }

  /** Asks for what lists do not tell of a job that has come into sight. */
  #look(id) {
    const job = this.farm.jobs.get(id);
    if (!job || job.isWhole || this.#looks.has(id)) return;
    this.#toLook.add(id);
    this.#lookOn();
  }

  async #lookOn() {
    const [id] = this.#toLook;
    if (id === undefined || this.#looks.size >= LOOKS_MAX) return;
    this.#toLook.delete(id);
    this.#looks.add(id);
    this.#lookOn();
    try {
      await this.refresh(id);
    } catch {
      // It stays as the list has it until it comes into sight again.
    } finally {
      this.#looks.delete(id);
      this.#lookOn();
    }
  }

  /** Asks how a job stands; one that is gone is taken off. */
  async refresh(id) {
    const [job, heard] = [this.farm.jobs.get(id), this.farm.epoch];
    const before = job?.state;
    try {
      const status = await ask(jobPath(id));
      // What was heard meanwhile is newer.
      if (this.farm.epoch === heard && this.farm.jobs.get(id)?.state === before) this.farm.take(status, now());
    } catch (problem) {
      if (problem.status !== 404) throw problem;
      this.farm.drop(id);
    }
    this.change(id);
    this.on.draw();
  }

  #press(button) {
    const id = button?.closest("li")?.dataset.id;
    if (!id || button.getAttribute("aria-disabled") === "true") return;
    if (button.classList.contains("play")) {
      this.on.play(this.farm.jobs.get(id));
    } else if (button.classList.contains("retry")) {
      this.#ask(id, "retry");
    } else if (button.classList.contains("cancel")) {
      const dialog = element("cancel");
      dialog.dataset.id = id;
      put(element("cancel-text"), `${id} stops for good, and there is no output.`);
      dialog.showModal();
    }
  }

  async #ask(id, action) {
    const asked = { action, state: this.farm.jobs.get(id)?.state };
    this.#asked.set(id, asked);
    this.change(id);
    this.on.draw();
    try {
      await ask(`${jobPath(id)}/${action}`, { method: "POST" });
      this.on.say(action === "retry" ? `${id} is taken up again` : `${id} is to stop`);
      await this.refresh(id);
      this.#asked.delete(id);
    } catch (problem) {
      asked.problem = problem.message;
      this.on.say(problem.message);
    }
    this.#changed.add(id);
    this.on.draw();
  }
}
