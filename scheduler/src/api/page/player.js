// Plays the result of a job with hls.js, which is loaded when it is needed first.

import { ask, outputPath, send, token, url } from "./api.js";
import * as words from "./words.js";

const CODECS = { avc1: "H.264", hvc1: "HEVC", av01: "AV1", mp4a: "AAC" };

const element = (id) => document.getElementById(id);
const [dialog, video, level] = ["player", "video", "level"].map(element);

/** What is open: the job, its player, its poster. Null when nothing is. */
let shown = null;
let library;

/** The library makes itself known to all the page. */
function load() {
  library ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = url("page/hls.min.js");
    script.onload = () => done(globalThis.Hls);
    script.onerror = () => {
      library = undefined;
      script.remove();
      failed(new Error("The player cannot be loaded."));
    };
    document.head.append(script);
  });
  return library;
}

const codecs = (text) => (text ?? "").split(",").map((name) => CODECS[name.split(".")[0]] ?? name).filter(Boolean).join(", ");

/** A level as people name it: by its short edge. */
function named({ width, height, videoCodec, bitrate }) {
  const size = height ? `${Math.min(width, height)}p` : "sound";
  return [size, codecs(videoCodec), words.rate(bitrate)].filter(Boolean).join(" · ");
}

function addOption(value, text) {
  level.append(Object.assign(document.createElement("option"), { value, textContent: text }));
}

function fail(text) {
  element("player-error").textContent = text;
}

function attach(Hls, job) {
  const base = url(outputPath(job.id, "")).href;
  const hls = new Hls({
    // The token goes to this server and nowhere else.
    xhrSetup(request, to) {
      request.open("GET", to, true);
      if (to.startsWith(base)) request.setRequestHeader("Authorization", `Bearer ${token()}`);
    },
  });
  let mended = false;
  hls.on(Hls.Events.MANIFEST_PARSED, (_, { levels }) => {
    levels.forEach((one, place) => addOption(String(place), named(one)));
    level.disabled = levels.length < 2;
  });
  hls.on(Hls.Events.LEVEL_SWITCHED, (_, { level: place }) => {
    element("playing").textContent = `playing ${named(hls.levels[place])}`;
  });
  hls.on(Hls.Events.ERROR, (_, { fatal, type, details, response }) => {
    if (!fatal) return;
    if (type === Hls.ErrorTypes.MEDIA_ERROR && !mended) {
      mended = true;
      hls.recoverMediaError();
      return;
    }
    const status = response?.code ? `, status ${response.code}` : "";
    fail(`It cannot be played (${details}${status}).`);
  });
  hls.loadSource(url(outputPath(job.id, job.result.master)).href);
  hls.attachMedia(video);
  return hls;
}

function describe(job) {
  const { duration_ns, bytes, renditions } = job.result;
  const facts = {
    Source: job.source, Output: job.output, Length: words.span(duration_ns / 1e9), Size: words.bytes(bytes),
    Renditions: renditions.join(", "),
  };
  const parts = Object.entries(facts).flatMap(([name, fact]) => [
    Object.assign(document.createElement("dt"), { textContent: name }),
    Object.assign(document.createElement("dd"), { textContent: fact }),
  ]);
  element("made").replaceChildren(...parts);
}

function remark(lines) {
  const remarks = element("remarks");
  const items = lines.map((line) => Object.assign(document.createElement("li"), { textContent: line }));
  remarks.querySelector("ul").replaceChildren(...items);
  remarks.hidden = items.length === 0;
}

/** What the report says besides: notes, and where the poster is. */
async function read(job, opened) {
  const report = await ask(outputPath(job.id, "report.json"));
  if (shown !== opened) return;
  remark([...job.result.warnings, ...(report.notes ?? [])]);
  const key = report.stills?.poster?.key;
  if (!key) return;
  const poster = await (await send(outputPath(job.id, key), { accept: "image/*" })).blob();
  if (shown !== opened) return;
  opened.poster = URL.createObjectURL(poster);
  video.poster = opened.poster;
}

function close() {
  shown?.hls?.destroy();
  if (shown?.poster) URL.revokeObjectURL(shown.poster);
  shown = null;
  video.pause();
  video.removeAttribute("src");
  video.removeAttribute("poster");
  video.load();
}

export function prepare() {
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", close);
  level.addEventListener("change", () => {
    if (shown?.hls) shown.hls.nextLevel = Number(level.value);
  });
}

/** Opens a job that is done, and plays it. */
export async function open(job) {
  const opened = { hls: null, poster: null };
  shown = opened;
  element("player-title").textContent = job.id;
  element("playing").textContent = "";
  fail("");
  level.replaceChildren();
  level.disabled = true;
  addOption("-1", "automatic");
  describe(job);
  remark(job.result.warnings);
  dialog.showModal();
  video.focus();
  // Without a report there is only less to say.
  read(job, opened).catch(() => {});
  try {
    const Hls = await load();
    if (shown !== opened) return;
    if (!Hls.isSupported()) throw new Error("This browser cannot play it.");
    opened.hls = attach(Hls, job);
    // A browser may want it to be started by hand.
    video.play().catch(() => {});
  } catch (error) {
    if (shown === opened) fail(error.message);
  }
}
