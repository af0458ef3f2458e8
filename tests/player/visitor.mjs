// Visits the farm's page in headless Chromium as people do, and prints what was seen as JSON. What is asked for comes on standard
// input, since there is a token in it:
//
//   {"visit": "film", "server": "http://127.0.0.1:8420", "token": "…", "shots": "/folder/for/pictures", …}

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { chromium } from "playwright-core";

const DESK = { width: 1280, height: 800 };
const PHONE = { width: 360, height: 740 };
// What a farm does takes its time on a machine that others use too.
const FARM_MS = 120_000;
const HAND_MS = 15_000;
const TABS_MAX = 400;
const AXE_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];

const request = JSON.parse(await text(process.stdin));
const origin = new URL(request.server).origin;
const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
/** What must not be: words on the console, requests of other hosts, violations by place. */
const seen = { console: [], elsewhere: [], violations: [] };

/** A page nobody was at before, that says what goes wrong on it. */
async function newPage(browser, options = {}) {
  const context = await browser.newContext({ viewport: DESK, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(HAND_MS);
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && seen.console.push(message.text()));
  page.on("pageerror", (error) => seen.console.push(String(error)));
  context.on("request", (sent) => {
    const url = new URL(sent.url());
    if (["http:", "https:", "ws:", "wss:"].includes(url.protocol) && url.origin !== origin) seen.elsewhere.push(url.href);
  });
  await page.goto(request.server);
  return page;
}

async function signIn(page) {
  await page.getByLabel("Token").fill(request.token);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByText("Live", { exact: true }).waitFor();
}

const row = (page, id) => page.getByRole("listitem", { name: `Job ${id}`, exact: true });
const state = (page, id, word, timeout = FARM_MS) => row(page, id).locator(".state", { hasText: word }).waitFor({ timeout });
const shoot = (page, name) => page.screenshot({ path: join(request.shots, `${name}.png`) });

/** What axe-core finds that is serious, in light and in dark. */
async function audit(page, place) {
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    await page.evaluate(axe);
    const { violations } = await page.evaluate((tags) => axe.run({ runOnly: tags, resultTypes: ["violations"] }), AXE_TAGS);
    const grave = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
    seen.violations.push(...grave.map(({ id, nodes }) => `${place}, ${colorScheme}: ${id}: ${nodes[0].html}: ${nodes[0].failureSummary}`));
    await shoot(page, `${place}-${colorScheme}`);
  }
  await page.emulateMedia({ colorScheme: "light", reducedMotion: "no-preference" });
}

/** Presses Tab until what has the focus is called so; how often. */
async function tabTo(page, name) {
  for (let tabs = 1; tabs <= TABS_MAX; tabs += 1) {
    await page.keyboard.press("Tab");
    const at = await page.evaluate(() => document.activeElement?.textContent.trim().replace(/\s+/g, " "));
    if (at === name) return tabs;
  }
  throw new Error(`Tab does not lead to '${name}'`);
}

/** What is wider than the window, and buttons that cannot be pressed when they are scrolled to. */
const misfits = (page) => page.evaluate(async () => {
  const [wide, found] = [document.documentElement.clientWidth, new Set()];
  const open = document.querySelector("dialog[open]") ?? document.body;
  // Of what is out of sight the browser knows no sizes yet.
  const isShown = (node) => node.checkVisibility({ visibilityProperty: true, contentVisibilityAuto: true }) && !node.closest(".unseen, svg");
  const lookAt = (nodes) => {
    for (const node of [...nodes].filter(isShown)) {
      const { left, right, width } = node.getBoundingClientRect();
      if (width && (right > wide + 0.5 || left < -0.5)) found.add(`wide: ${node.outerHTML.slice(0, 120)}`);
    }
  };
  if (document.documentElement.scrollWidth > wide) found.add(`the page is ${document.documentElement.scrollWidth} px wide`);
  lookAt(open.querySelectorAll("*"));
  const buttons = [...open.querySelectorAll("button")].filter((button) => button.checkVisibility());
  for (const button of buttons.slice(0, 60)) {
    button.scrollIntoView({ block: "center" });
    // What comes into sight is laid out in the next frame.
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    const { left, top, width, height } = button.getBoundingClientRect();
    if (!button.contains(document.elementFromPoint(left + width / 2, top + height / 2))) found.add(`hidden: ${button.outerHTML}`);
    if (width < 24 || height < 24) found.add(`small: ${button.outerHTML}`);
    lookAt(button.closest("li")?.querySelectorAll("*") ?? []);
  }
  scrollTo(0, 0);
  return [...found];
});

async function submit(page, { id, source, output }) {
  await page.getByRole("button", { name: "Submit a job" }).click();
  await page.getByLabel("Source URL").fill(source);
  await page.getByLabel("Output URL").fill(output);
  await page.getByLabel("Poster").check();
  if (!(await page.getByLabel("Name").isVisible())) await page.getByText("More", { exact: true }).click();
  await page.getByLabel("Name").fill(id);
  await page.getByRole("button", { name: "Submit", exact: true }).click();
  await page.getByRole("dialog").waitFor({ state: "hidden" });
}

/** Looks at the progress of a job until it is done; every value that was shown. */
async function watch(page, id) {
  await page.evaluate((id) => {
    const values = (globalThis.values = []);
    const look = () => {
      const shown = document.querySelector(`.job[data-id="${id}"] progress:not([hidden])`);
      if (shown?.hasAttribute("value") && values.at(-1) !== shown.value) values.push(shown.value);
      requestAnimationFrame(look);
    };
    look();
  }, id);
  await state(page, id, "done");
  return page.evaluate(() => globalThis.values);
}

/** Plays a job that is done, at one level after the other. */
async function play(page, id) {
  await page.getByRole("button", { name: `Play ${id}` }).click();
  const moved = (from) => page.waitForFunction((from) => document.querySelector("video").currentTime > from, from);
  await moved(1);
  await page.waitForFunction(() => document.querySelector("video").poster.startsWith("blob:"));
  const levels = await page.getByLabel("Quality").locator("option").allTextContents();
  const playing = [];
  for (const label of levels.slice(1)) {
    await page.getByLabel("Quality").selectOption({ label });
    await page.getByText(`playing ${label}`).waitFor();
    playing.push(await page.locator("#playing").textContent());
  }
  await moved(await page.evaluate(() => document.querySelector("video").currentTime + 0.5));
  const { frames, time } = await page.evaluate(() => {
    const video = document.querySelector("video");
    return { frames: video.getVideoPlaybackQuality().totalVideoFrames, time: video.currentTime };
  });
  await shoot(page, "player");
  await audit(page, "player");
  await page.setViewportSize(PHONE);
  const narrow = await misfits(page);
  await shoot(page, "player-phone");
  await page.setViewportSize(DESK);
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "hidden" });
  const focus = await page.evaluate(() => document.activeElement.textContent.trim().replace(/\s+/g, " "));
  return { levels, playing, frames, time, narrow, focus, error: await page.locator("#player-error").textContent() };
}

/** Reads of a job whose every text is markup: what became of it. */
async function readHostile(browser) {
  const markup = `<img src="https://elsewhere.example/x.png" onerror="document.title = 'taken over'">`;
  const page = await newPage(browser);
  await page.route(`**/v1/jobs/${request.bad.id}`, async (route) => {
    const answer = await route.fetch();
    const job = await answer.json();
    const error = { code: markup, message: markup };
    await route.fulfill({ response: answer, json: { ...job, tenant: markup, source: markup, output: markup, error } });
  });
  await signIn(page);
  const why = row(page, request.bad.id).locator(".why");
  await why.waitFor();
  return { shown: (await why.textContent()) === `${markup} [${markup}]`, images: await page.locator("#list img").count(), title: await page.title() };
}

const visits = {
  /** Signs in, submits, watches and plays; then a job that fails. */
  async film(browser) {
    const page = await newPage(browser);
    await audit(page, "sign-in");
    await page.getByLabel("Token").fill("no token of anybody");
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.getByText("This token is not known here.").waitFor();
    // The browser itself says that it was refused.
    const refused = seen.console.splice(0);
    await signIn(page);
    await submit(page, request.film);
    const progress = await watch(page, request.film.id);
    await page.getByRole("rowheader").first().waitFor();
    const played = await play(page, request.film.id);
    await submit(page, request.bad);
    await state(page, request.bad.id, "failed");
    const reason = await row(page, request.bad.id).locator(".why").textContent();
    await audit(page, "failed");
    const hostile = await readHostile(browser);
    const kept = await page.evaluate(() => [Object.keys(sessionStorage), Object.keys(localStorage), document.cookie]);
    await page.reload();
    await state(page, request.film.id, "done");
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.getByLabel("Token").waitFor();
    const left = await page.evaluate(() => [Object.keys(sessionStorage), document.querySelectorAll(".job").length]);
    return { refused, progress, played, reason, hostile, kept, left };
  },

  /** With the keyboard alone: signs in, looks at the form, and takes a failed job up again. */
  async retry(browser) {
    const page = await newPage(browser);
    await page.keyboard.type(request.token);
    await page.keyboard.press("Enter");
    await state(page, request.bad.id, "failed");
    const tabs = { submit: await tabTo(page, "Submit a job") };
    await page.keyboard.press("Enter");
    const inside = await page.evaluate(() => document.activeElement.name);
    await page.keyboard.press("Escape");
    const back = await page.evaluate(() => document.activeElement.id);
    tabs.retry = await tabTo(page, `Retry ${request.bad.id}`);
    const reason = await row(page, request.bad.id).locator(".why:not([hidden])").textContent();
    await page.keyboard.press("Enter");
    await state(page, request.bad.id, "done");
    const after = await row(page, request.bad.id).locator(".why").isHidden();
    const focus = await page.evaluate(() => document.activeElement.closest("li")?.dataset.id);
    return { tabs, inside, back, reason, after, focus };
  },

  /** Many jobs come and go while they are looked at. */
  async crowd(browser) {
    const page = await newPage(browser);
    await signIn(page);
    await page.evaluate(measure);
    const task_ms = await longestTask(browser, page, async () => {
      await submitMany();
      await page.getByText(`1 to 100 of ${request.jobs.toLocaleString("en")}`).waitFor({ timeout: FARM_MS });
      await lookAround(page, cancelMany());
    });
    const smooth = await page.evaluate(() => globalThis.measured());
    const rows = await page.locator(".job").count();
    const cancelled = await cancelByKeyboard(page);
    await page.locator("#tenants td", { hasText: "174" }).waitFor({ timeout: FARM_MS });
    const queues = await page.locator("#tenants tbody tr").allInnerTexts();
    await audit(page, "crowd");
    await page.setViewportSize(PHONE);
    const narrow = { page: await misfits(page) };
    await shoot(page, "phone");
    await page.getByRole("button", { name: "Submit a job" }).click();
    narrow.form = await misfits(page);
    await audit(page, "form-phone");
    await page.keyboard.press("Escape");
    const stalled_ms = await longestTask(browser, page, () => page.evaluate(stall));
    return { rows, task_ms, stalled_ms, smooth, cancelled, narrow, queues };
  },
};

/** The longest task of pages' main threads while something is done, in ms of CPU time: others on the machine do not count. */
async function longestTask(browser, page, act) {
  await browser.startTracing(page, { categories: ["toplevel"] });
  await act();
  const { traceEvents } = JSON.parse(await browser.stopTracing());
  const thread = ({ pid, tid }) => `${pid}/${tid}`;
  const mains = new Set(traceEvents.filter(({ name, args }) => name === "thread_name" && args.name === "CrRendererMain").map(thread));
  const tasks = traceEvents.filter((event) => event.tdur !== undefined && mains.has(thread(event)));
  return tasks.reduce((most, { tdur }) => Math.max(most, tdur), 0) / 1000;
}

/** In the page: how long its tasks take from now on, and how far frames are apart, as somebody before it sees them. */
function measure() {
  const tasks = [];
  const frames = [];
  new PerformanceObserver((list) => tasks.push(...list.getEntries().map(({ duration }) => duration))).observe({ type: "longtask" });
  let last = performance.now();
  const frame = (at) => {
    frames.push(at - last);
    last = at;
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
  globalThis.measured = () => {
    const sorted = frames.toSorted((a, b) => a - b);
    const at = (share) => sorted[Math.floor((sorted.length - 1) * share)];
    return { longest_ms: Math.max(0, ...tasks), long_tasks: tasks.length, frames: frames.length, p50_ms: at(0.5), p99_ms: at(0.99), most_ms: at(1) };
  };
}

/** In the page: a task that takes far too long. */
const stall = () => new Promise((done) => {
  setTimeout(() => {
    const until = performance.now() + 1500;
    while (performance.now() < until);
    setTimeout(done);
  });
});

/** Does something with many jobs, some at a time. */
async function each(names, act) {
  const rest = [...names];
  const one = async () => {
    while (rest.length) await act(rest.shift());
  };
  await Promise.all(Array.from({ length: 8 }, one));
}

async function post(path, body) {
  const headers = { Authorization: `Bearer ${request.token}`, "Content-Type": "application/json" };
  const answer = await fetch(`${request.server}/v1/jobs${path}`, { method: "POST", headers, body: body && JSON.stringify(body) });
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
  await answer.arrayBuffer();
}

const name = (place) => `film-${String(place).padStart(4, "0")}`;
const names = (from, to) => Array.from({ length: to - from }, (_, place) => name(from + place));

/** Every fourth is for another tenant. */
const tenantOf = (id) => (Number(id.slice(-4)) % 4 ? "me" : "tube");

const submitMany = () => each(names(0, request.jobs), (id) =>
  post("", { version: 1, id, tenant: tenantOf(id), source: { url: request.source }, output: { url: `${request.output}${id}/` } }));

const cancelMany = () => each(names(request.jobs - request.cancelled, request.jobs), (id) => post(`/${id}/cancel`));

/** Scrolls, turns pages and chooses states until something else has come to its end. */
async function lookAround(page, until) {
  let isOver = false;
  const over = until.finally(() => { isOver = true; });
  for (let turn = 0; turn < 3 || !isOver; turn += 1) {
    await page.mouse.move(400, 500);
    for (let step = 0; step < 10; step += 1) await page.mouse.wheel(0, step < 5 ? 900 : -900);
    for (const name of ["Next", "Previous", /^done/i, /^all/i]) await page.getByRole("button", { name, exact: true }).click();
  }
  await over;
  await page.getByRole("button", { name: new RegExp(`^cancelled ${request.cancelled}`, "i") }).waitFor({ timeout: FARM_MS });
}

/** Cancels the first job there is with the keyboard alone. */
async function cancelByKeyboard(page) {
  await page.getByRole("heading", { name: "Jobs" }).focus();
  const id = await page.locator(".job").first().getAttribute("data-id");
  const tabs = await tabTo(page, `Cancel ${id}`);
  await page.keyboard.press("Enter");
  const first = await page.evaluate(() => document.activeElement.textContent);
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await page.getByRole("button", { name: new RegExp(`^cancelled ${request.cancelled + 1}`, "i") }).waitFor({ timeout: FARM_MS });
  return { id, tabs, first };
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
try {
  const told = await visits[request.visit](browser);
  process.stdout.write(JSON.stringify({ ...seen, ...told }));
} catch (error) {
  const open = browser.contexts().flatMap((context) => context.pages()).at(-1);
  await open?.screenshot({ path: join(request.shots, `${request.visit}-broken.png`) });
  process.stderr.write(`${JSON.stringify(seen)}\n${error.message}\n`);
  process.exitCode = 1;
} finally {
  await browser.close();
}
