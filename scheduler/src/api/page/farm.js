// What is known of the farm: jobs, workers, and what went through it in the last ten minutes. Knows nothing of the page.

/** States in the order in which they are counted. */
export const STATES = ["waiting", "probing", "encoding", "packing", "halted", "cancelling", "done", "failed", "cancelled"];
/** Length of a bin of the plot in ms, and how many there are. */
export const BIN_MS = 10_000;
export const BINS = 60;

const ENDED = ["done", "failed", "cancelled"];
const ENDED_MAX = 2000;
// The rate of progress is that of the last minute, and is not told before some seconds of it were seen.
const PACE_MS = 60_000;
const PACE_MIN_MS = 5_000;

export const hasEnded = (job) => ENDED.includes(job.state);

/** What stands above: what needs somebody, what runs, what waits, what has ended. */
const rank = ({ state }) => (state === "halted" ? 0 : state === "waiting" ? 2 : ENDED.includes(state) ? 3 : 1);

/** How much of a job is done, from 0 to 1; null where nobody knows. */
export function fraction({ progress }) {
  if (!progress) return null;
  const { tasks_done, tasks_total, media_done_ns, media_total_ns } = progress;
  if (media_total_ns > 0) return Math.min(media_done_ns / media_total_ns, 1);
  return tasks_total > 1 ? Math.min(tasks_done / tasks_total, 1) : null;
}

export class Farm {
  jobs = new Map();
  workers = [];
  /** After which ended job the rest of them comes; null when all are here. */
  endedNext = null;
  bins = [];
  /** Jobs that have ended since it was last asked for. */
  ends = [];
  /** Rises with each connection: what a job has done while nobody listened is not what it does now. */
  epoch = 0;

  /** Takes in how a job stands. */
  take(status, now) {
    const known = this.jobs.get(status.id);
    const job = known ?? { id: status.id, since: now, pace: [], epoch: 0 };
    const before = { state: job.state, progress: job.progress, isFresh: job.epoch === this.epoch };
    const { tenant, state, source, output, progress, result, deleted_ms, error } = status;
    Object.assign(job, { tenant, state, source, output, progress, result, deleted_ms, error, isWhole: true, epoch: this.epoch });
    const ended = hasEnded(job);
    if (before.state !== undefined && ended !== ENDED.includes(before.state)) job.since = now;
    if (known) this.#flow(before, job, now);
    this.#pace(job, now);
    this.jobs.set(job.id, job);
    return job;
  }

  /** Takes in a line of a list, which says less than anything else that was heard since. */
  list({ id, tenant, state, since_ms }) {
    const job = this.jobs.get(id) ?? { id, tenant, pace: [], epoch: 0, isWhole: false };
    if (ENDED.includes(state) && !hasEnded(job)) this.#noteEnd(state, since_ms);
    job.since = since_ms;
    if (job.epoch !== this.epoch || !job.isWhole) {
      const is = state === "active" ? job.state : state;
      if (is !== job.state) job.isWhole = false;
      job.state = is ?? "waiting";
    }
    this.jobs.set(id, job);
  }

  drop(id) {
    this.jobs.delete(id);
  }

  /** Jobs that had not ended when they were last heard of, and were not heard of since the connection was made. */
  lost(listed) {
    const is = (job) => !hasEnded(job) && job.epoch !== this.epoch && !listed.has(job.id);
    return [...this.jobs.values()].filter(is).map((job) => job.id);
  }

  /** Jobs as they are shown, of one state or all, and how many there are of each. */
  ordered(wanted) {
    const counts = Object.fromEntries(STATES.map((state) => [state, 0]));
    const all = [...this.jobs.values()];
    for (const job of all) counts[job.state] = (counts[job.state] ?? 0) + 1;
    const compare = (a, b) => {
      const by = rank(a) - rank(b);
      const since = hasEnded(a) ? b.since - a.since : a.since - b.since;
      return by || since || (a.id < b.id ? -1 : 1);
    };
    all.sort(compare);
    this.#forgetOldest(all);
    return { counts, shown: wanted === "all" ? all : all.filter((job) => job.state === wanted) };
  }

  /** How many jobs of each tenant wait, and how many are under way; those with most of them first. */
  queues() {
    const by = new Map();
    for (const job of this.jobs.values()) {
      if (!job.tenant) continue;
      const queue = by.get(job.tenant) ?? { tenant: job.tenant, waiting: 0, running: 0 };
      if (!hasEnded(job)) queue[job.state === "waiting" ? "waiting" : "running"] += 1;
      by.set(job.tenant, queue);
    }
    const all = ({ waiting, running }) => waiting + running;
    return [...by.values()].sort((a, b) => all(b) - all(a) || (a.tenant < b.tenant ? -1 : 1));
  }

  /** Seconds until a job is done, at the rate of its last minute; null where it cannot be told. */
  secondsLeft(job, now) {
    const [first, last] = [job.pace[0], job.pace.at(-1)];
    if (!first || hasEnded(job) || ["halted", "cancelling", "packing"].includes(job.state) || now - first.at < PACE_MIN_MS || last.done <= first.done) return null;
    return ((1 - last.done) * (now - first.at)) / (last.done - first.done) / 1000;
  }

  /** The bins of the last ten minutes, the oldest first, and the one that is being filled. */
  flow(now) {
    const end = Math.floor(now / BIN_MS);
    const by = new Map(this.bins.map((bin) => [bin.at, bin]));
    return Array.from({ length: BINS + 1 }, (_, place) => by.get(end - BINS + place) ?? { media: 0, done: 0, failed: 0 });
  }

  #noteEnd(state, at) {
    const bin = this.#bin(at);
    if (state === "done") bin.done += 1;
    if (state === "failed") bin.failed += 1;
  }

  #bin(at) {
    const place = Math.floor(at / BIN_MS);
    let bin = this.bins.find((bin) => bin.at === place);
    if (!bin) {
      bin = { at: place, media: 0, done: 0, failed: 0 };
      this.bins.push(bin);
      const last = Math.max(...this.bins.map((bin) => bin.at));
      this.bins = this.bins.filter((bin) => bin.at > last - BINS - 2);
    }
    return bin;
  }

  #flow(before, job, now) {
    if (ENDED.includes(before.state)) return;
    const [was, is] = [before.progress, job.progress];
    // The progress of a job that is done counts no media any more: what was left of it went through.
    const to = job.state === "done" ? (was?.media_total_ns ?? 0) : (is?.media_done_ns ?? 0);
    const media = (to - (was?.media_done_ns ?? 0)) / 1e9;
    // Where the total was not known or is another one now, nothing is known of what went through meanwhile.
    const isCounted = was?.media_total_ns > 0 && (job.state === "done" || was.media_total_ns === is?.media_total_ns);
    if (media > 0 && isCounted && before.isFresh) this.#bin(now).media += media;
    if (hasEnded(job)) {
      this.#noteEnd(job.state, now);
      this.ends.push(job);
    }
  }

  #pace(job, now) {
    const done = fraction(job);
    if (hasEnded(job) || done === null) {
      job.pace = [];
      return;
    }
    if (job.pace.length && done < job.pace.at(-1).done) job.pace = [];
    const last = job.pace.at(-1);
    if (last && job.pace.length > 1 && now - last.at < 1000) last.done = done;
    else job.pace.push({ at: now, done });
    while (job.pace.length > 2 && job.pace[1].at < now - PACE_MS) job.pace.shift();
  }

  #forgetOldest(all) {
    const ended = all.filter(hasEnded);
    for (const job of ended.slice(ENDED_MAX)) this.jobs.delete(job.id);
    if (ended.length >= ENDED_MAX) this.endedNext = null;
  }
}
