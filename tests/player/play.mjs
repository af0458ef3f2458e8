// Plays one URL in headless Chromium and prints what happened as JSON.
//
//   node play.mjs '{"folder": "/path/to/serve", "file": "master.m3u8", "switch_seconds": 0, "limit_seconds": 60, "picture": [96, 54]}'
//
// A static server on 127.0.0.1 serves the folder, with byte ranges and CORS, as a bucket or CDN would.

import { createReadStream } from "node:fs";
import { readFile, stat } from "node:fs/promises";
import { createServer } from "node:http";
import { dirname, extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const here = dirname(fileURLToPath(import.meta.url));
const types = { ".m3u8": "application/vnd.apple.mpegurl", ".mp4": "video/mp4", ".m4s": "video/iso.segment", ".webm": "video/webm", ".vtt": "text/vtt" };
const own = {
  "/page.html": [join(here, "page.html"), "text/html"],
  "/hls.js": [join(here, "node_modules/hls.js/dist/hls.js"), "text/javascript"],
};

function serve(folder) {
  const server = createServer(async (request, response) => {
    const path = decodeURIComponent(new URL(request.url, "http://localhost").pathname);
    const [file, type] = own[path] ?? [join(folder, normalize(path)), types[extname(path)] ?? "application/octet-stream"];
    try {
      const { size } = await stat(file);
      const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? "");
      const start = range ? Number(range[1]) : 0;
      const end = range?.[2] ? Math.min(Number(range[2]), size - 1) : size - 1;
      const headers = { "Access-Control-Allow-Origin": "*", "Accept-Ranges": "bytes", "Content-Type": type, "Content-Length": end - start + 1 };
      if (range) headers["Content-Range"] = `bytes ${start}-${end}/${size}`;
      response.writeHead(range ? 206 : 200, headers);
      createReadStream(file, { start, end }).pipe(response);
    } catch {
      response.writeHead(404).end();
    }
  });
  return new Promise((ready) => server.listen(0, "127.0.0.1", () => ready(server)));
}

const request = JSON.parse(process.argv[2]);
const server = await serve(request.folder);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--autoplay-policy=no-user-gesture-required"],
  // Playwright mutes by default, and then nothing would be heard.
  ignoreDefaultArgs: ["--mute-audio"],
});
try {
  const page = await browser.newPage();
  page.setDefaultTimeout((request.limit_seconds + 30) * 1000);
  const origin = `http://127.0.0.1:${server.address().port}`;
  await page.goto(`${origin}/page.html`);
  const result = await page.evaluate((request) => play(request), { ...request, url: `${origin}/${request.file}` });
  process.stdout.write(JSON.stringify(result));
} finally {
  await browser.close();
  server.close();
}
