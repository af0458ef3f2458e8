// Numbers and times as words for people.

const SIZES = ["B", "kB", "MB", "GB", "TB"];

/** 1 234 as `1,234`. */
export const count = (number) => number.toLocaleString("en");

/** `1 job`, `2 jobs`. */
export const many = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

/** Three digits at most: `0.42`, `4.2`, `42`. */
export function short(number) {
  return number < 10 ? number.toFixed(number < 1 ? 2 : 1).replace(/\.?0+$/, "") : count(Math.round(number));
}

/** Bytes as `4.2 MB`. */
export function bytes(number) {
  const step = Math.min(Math.floor(Math.log10(Math.max(number, 1)) / 3), SIZES.length - 1);
  return `${short(number / 1000 ** step)} ${SIZES[step]}`;
}

/** Bits per second as `4.2 Mbit/s`. */
export const rate = (bits) => (bits < 1e6 ? `${short(bits / 1e3)} kbit/s` : `${short(bits / 1e6)} Mbit/s`);

/** A duration as players write it: `1:05:20`, `0:07`. */
export function span(seconds) {
  const whole = Math.round(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const shown = parts[0] ? parts : parts.slice(1);
  return shown.map((part, place) => (place ? String(part).padStart(2, "0") : part)).join(":");
}

/** How long something will take, no more exactly than it can be known. */
export function left(seconds) {
  const minutes = seconds / 60;
  if (seconds < 10) return "a few seconds";
  if (seconds < 55) return `about ${Math.ceil(seconds / 10) * 10} s`;
  if (minutes < 1.5) return "about a minute";
  if (minutes < 9.5) return `about ${Math.round(minutes)} min`;
  if (minutes < 57) return `about ${Math.round(minutes / 5) * 5} min`;
  if (minutes < 9.9 * 60) {
    const tens = Math.round(minutes / 10);
    const [hours, rest] = [Math.floor(tens / 6), (tens % 6) * 10];
    return `about ${hours} h${rest ? ` ${rest} min` : ""}`;
  }
  return minutes < 48 * 60 ? `about ${Math.round(minutes / 60)} h` : "more than two days";
}

/** How long ago something was. */
export function ago(seconds) {
  if (seconds < 10) return "just now";
  if (seconds < 60) return `${Math.floor(seconds / 10) * 10} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} days ago`;
}

/** A URL in short: where it is and how it ends. */
export function place(url) {
  const [, scheme, rest] = /^([a-z0-9+.-]+):\/\/(.*)$/i.exec(url) ?? [null, "", url];
  const slash = rest.endsWith("/") ? "/" : "";
  const parts = rest.split("/").filter((part) => part !== "");
  const shown = parts.length > 2 ? [parts[0], "…", parts.at(-1)] : parts;
  return `${scheme === "https" || scheme === "" ? "" : `${scheme}://`}${shown.join("/")}${slash}`;
}
