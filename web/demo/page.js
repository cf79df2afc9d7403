import { DeepZigError, missing } from "deepzig";
import { load } from "deepzig/worker";

/** What models may run on: the folder of the artifact, what it is called, and what the browser has to have for it. */
const DEVICES = [
  { folder: "wasm", label: "WebAssembly", needs: [] },
  { folder: "webgpu", label: "WebGPU", needs: ["webgpu"] },
];

const EXAMPLES = [
  "What is 12 plus 30?",
  "Reverse the word lamp.",
  "Which is larger, 41 or 14?",
  "Write a story with Ben, a black cat and the farm.",
  'Set the age to 66: {"name": "Finn", "age": 3, "city": "Delhi"}',
];

/** @type {<Kind extends HTMLElement = HTMLElement>(id: string) => Kind} */
const at = (id) => /** @type {any} */ (document.getElementById(id));
const device = /** @type {HTMLSelectElement} */ (at("device"));
const question = /** @type {HTMLInputElement} */ (at("question"));

/** @type {import("deepzig").Model | undefined} */
let model;
/** @type {AbortController | undefined} */
let work; // what goes on: a load or an answer

/** @param {unknown} error */
function fail(error) {
  const { what, hint, message } = /** @type {DeepZigError} */ (error);
  at("error").textContent = what ? `${what}\nTo mend it: ${hint}` : message;
  at("state").textContent = "";
}

/** @param {number} bytes */
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

/** Load the artifact for the chosen device. */
async function open() {
  work?.abort();
  model?.close();
  model = undefined;
  const mine = (work = new AbortController());
  const progress = /** @type {HTMLProgressElement} */ (at("progress"));
  at("error").textContent = "";
  at("state").textContent = "Loading the model";
  progress.hidden = false;
  ready(false);
  try {
    const loaded = await load(device.value, {
      signal: mine.signal,
      onProgress: ({ loaded: bytes, total }) => { progress.value = bytes / total; },
    });
    model = loaded;
    at("memory").textContent = megabytes(loaded.bytes);
    at("state").textContent = "Ready";
    ready(true);
  } catch (error) {
    if (!mine.signal.aborted) fail(error);
  } finally {
    if (work === mine) progress.hidden = true;
  }
}

/** @param {boolean} yes */
function ready(yes) {
  for (const button of document.querySelectorAll("#examples button, #send")) {
    /** @type {HTMLButtonElement} */ (button).disabled = !yes;
  }
}

/**
 * @param {"question" | "answer"} kind
 * @param {string} text
 */
function say(kind, text) {
  const entry = document.createElement("li");
  entry.className = text ? kind : `${kind} waiting`;
  const who = document.createElement("span");
  who.className = "hidden";
  who.textContent = kind === "question" ? "You: " : "Model: ";
  const words = document.createElement("span");
  words.textContent = text;
  entry.append(who, words);
  at("log").append(entry);
  at("log").scrollTop = at("log").scrollHeight;
  return { entry, words };
}

/** @param {string} text */
async function ask(text) {
  if (!model) return;
  const mine = (work = new AbortController());
  say("question", text);
  const { entry, words } = say("answer", "");
  ready(false);
  at("stop").hidden = false;
  at("send").hidden = true;
  let said = "";
  let pieces = 0;
  let frame = 0;
  const begin = performance.now();
  let first = begin;
  let last = begin;
  const paint = () => {
    frame = 0;
    words.textContent = said;
    if (said) entry.classList.remove("waiting");
    at("log").scrollTop = at("log").scrollHeight;
    if (pieces > 0) at("first").textContent = `${(first - begin).toFixed(0)} ms`;
    if (pieces > 1) at("speed").textContent = `${((pieces - 1) / ((last - first) / 1000)).toFixed(0)} tokens/s`;
  };
  try {
    for await (const piece of model.chat([{ role: "user", content: text }], { signal: mine.signal })) {
      said += piece;
      pieces += 1;
      last = performance.now();
      if (pieces === 1) first = last;
      frame ||= requestAnimationFrame(paint); // tokens come faster than a screen shows them
    }
    at("said").textContent = said;
  } catch (error) {
    if (!mine.signal.aborted) fail(error);
    entry.classList.replace("waiting", "cut") || entry.classList.add("cut");
  } finally {
    cancelAnimationFrame(frame);
    paint();
    at("stop").hidden = true;
    at("send").hidden = false;
    ready(Boolean(model));
    question.focus();
  }
}

/** Keep the page for times without a network; the model's parts are kept when they are loaded. */
async function keep() {
  try {
    await navigator.serviceWorker.register("service_worker.js");
    await navigator.serviceWorker.ready;
    at("offline").textContent = "works";
  } catch {
    at("offline").textContent = "not here"; // plain HTTP, some private windows: the page works all the same
  }
}

async function start() {
  at("examples").append(
    ...EXAMPLES.map((text) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.addEventListener("click", () => ask(text));
      return button;
    }),
  );
  const { models } = await (await fetch("site.json")).json();
  for (const { folder, label, needs } of DEVICES.filter((one) => models.includes(one.folder))) {
    const option = new Option(label, folder);
    option.disabled = missing(needs).length > 0;
    device.add(option);
  }
  device.value = [...device.options].find((option) => !option.disabled)?.value ?? "";
  device.disabled = device.options.length < 2;
  device.addEventListener("change", open);
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = question.value.trim();
    if (!text || !model) return;
    question.value = "";
    ask(text);
  });
  at("stop").addEventListener("click", () => work?.abort());
  await open();
  await keep();
}

start().catch(fail);
