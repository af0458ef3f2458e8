// The form that submits a job.

import { ask } from "./api.js";

const FIELDS = { "source.url": "source", "output.url": "output", id: "id", tenant: "tenant", priority: "priority" };

const dialog = document.getElementById("submit");
const form = dialog.querySelector("form");
const error = document.getElementById("submit-error");

/** The message of a job; what is not chosen is left to the farm. */
function message({ source, output, height, layout, poster, storyboard, mp4, stages, loudness, id, priority, tenant }) {
  const job = { version: 1, source: { url: source.value.trim() }, output: { url: output.value.trim(), layout: layout.value } };
  if (mp4.checked) job.output.mp4 = "each-rung";
  if (height.value) job.ladder = { auto: { max_height: Number(height.value) } };
  if (poster.checked) job.poster = {};
  if (storyboard.checked) job.storyboard = {};
  if (stages.checked) job.publish = "in-stages";
  if (loudness.checked) job.audio = { loudness: "ebu-r128" };
  if (id.value) job.id = id.value;
  if (priority.value) job.priority = Number(priority.value);
  if (tenant.value) job.tenant = tenant.value;
  return job;
}

/** Says why a job was not taken, at the field that it is about. */
function refuse(text) {
  error.textContent = text;
  const name = Object.keys(FIELDS).find((path) => text.startsWith(`${path}:`));
  const field = name && form.elements[FIELDS[name]];
  if (!field) return;
  field.setAttribute("aria-invalid", "true");
  field.closest("details")?.setAttribute("open", "");
  field.focus();
}

function calm() {
  error.textContent = "";
  for (const field of form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
}

/** Has the form ready; `done` is called with the name of a job that was taken. */
export function prepare(done) {
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  form.addEventListener("input", calm);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (form.getAttribute("aria-busy") === "true") return;
    calm();
    form.setAttribute("aria-busy", "true");
    try {
      const { id } = await ask("v1/jobs", { method: "POST", body: message(form.elements) });
      form.reset();
      dialog.close();
      done(id);
    } catch (problem) {
      refuse(problem.message);
    } finally {
      form.removeAttribute("aria-busy");
    }
  });
}

export function open() {
  calm();
  dialog.showModal();
  form.elements.source.focus();
}
