import { DeepZigError } from "./errors.js";
import { demand } from "./support.js";

export const FORMAT = 4;

/** What `load` calls devices -> what manifests call them. */
const DEVICES = Object.freeze({ wasm: "cpu", webgpu: "webgpu" });
const COPY_AGAIN = "copy or compile the artifact again";
const TEXT = /^(tokenizer|tokenizer_config)\.json$|^chat_template\.jinja$|^additional_chat_templates\/[^/]+\.jinja$/;
const UNUSED = new Set(["generation_config.json", "graphs.json", "selfcheck.json"]); // for people and for `verify`

/**
 * @typedef {object} Options of reading a part
 * @property {AbortSignal} [signal]
 * @property {(bytes: number) => void} [onProgress] told of the bytes that came
 *
 * @typedef {Options & {verify?: boolean, cache?: import("./cache.js").PartCache}} PartOptions
 *     `verify`: whether to compare its SHA-256 (default), not its size alone; `cache`: keeps parts
 *
 * @typedef {object} Source where the parts of an artifact come from
 * @property {string} name for errors
 * @property {(part: string, options?: Options) => Promise<import("./tensors.js").Bytes>} read
 *
 * @typedef {"auto" | keyof typeof DEVICES} DeviceName where an artifact runs; auto: what it was compiled for
 *
 * @typedef {{name: string, dtype: import("./tensors.js").DType, shape: (number | string)[]}} Spec
 * @typedef {{inputs: Spec[], outputs: Spec[], states: string[], weights: string[]}} EntryPoint
 * @typedef {{name: string, device: string, code: string, plan: string | null}} Build
 *
 * @typedef {object} Manifest the part manifest.json, see FORMAT.md
 * @property {number} format
 * @property {Record<string, any>} model
 * @property {Build[]} builds
 * @property {Record<string, EntryPoint>} entry_points
 * @property {Record<"rows" | "batch" | "chunk" | "decode_rows" | "page_size" | "positions", number>} bounds
 * @property {Spec[]} cache
 * @property {Spec[]} weights
 * @property {Record<string, {size: number, sha256: string}>} files
 */

/**
 * The manifest of an artifact.
 * @param {Source} source
 * @param {Options} [options]
 * @returns {Promise<Manifest>}
 */
export async function readManifest(source, options) {
  const where = `${source.name}/manifest.json`;
  const text = new TextDecoder().decode(await source.read("manifest.json", options));
  let manifest;
  try {
    manifest = JSON.parse(text);
  } catch {
    throw new DeepZigError("the manifest is not JSON", where, "compile the model again");
  }
  if (manifest?.format !== FORMAT) {
    const what = `the artifact has format ${manifest?.format}, this DeepZig reads ${FORMAT}`;
    throw new DeepZigError(what, where, "compile the model again with this DeepZig");
  }
  return manifest;
}

/**
 * The build that runs on a device.
 * @param {Manifest} manifest
 * @param {DeviceName} device
 * @param {string} where
 * @returns {Build & {plan: string}}
 */
export function chooseBuild(manifest, device, where) {
  if (device !== "auto" && !Object.hasOwn(DEVICES, device)) {
    const hint = `choose from auto, ${Object.keys(DEVICES).join(", ")}`;
    throw new DeepZigError(`there is no device ${JSON.stringify(device)}`, "option device", hint);
  }
  const build = manifest.builds.find((one) => one.plan && (device === "auto" || one.device === DEVICES[device]));
  if (!build?.plan) {
    const have = manifest.builds.map((one) => one.name).join(", ");
    const target = device === "auto" ? "wasm" : device;
    throw new DeepZigError(`the artifact is for ${have}`, where, `deepzig-compile MODEL --target ${target} -o DIR`);
  }
  return { ...build, plan: build.plan };
}

/**
 * Bytes of all parts that a loader reads.
 * @param {Manifest} manifest
 */
export function bytesToRead({ files }) {
  const read = Object.entries(files).filter(([part]) => !UNUSED.has(part));
  return read.reduce((sum, [, { size }]) => sum + size, 0);
}

/**
 * The tokenizer's files and the chat templates, by their names.
 * @param {Source} source
 * @param {Manifest} manifest
 * @param {PartOptions} [options]
 */
export async function readTexts(source, manifest, options) {
  /** @type {Map<string, import("./tensors.js").Bytes>} */
  const texts = new Map();
  for (const part of Object.keys(manifest.files).filter((name) => TEXT.test(name)).sort()) {
    texts.set(part, await readPart(source, manifest, part, options));
  }
  return texts;
}

/**
 * A part, as the manifest says it is: kept from an earlier load, or read and kept for the next.
 * @param {Source} source
 * @param {Manifest} manifest
 * @param {string} part
 * @param {PartOptions} [options]
 */
export async function readPart(source, manifest, part, { verify = true, cache, ...options } = {}) {
  const entry = manifest.files[part];
  if (!entry) throw new DeepZigError(`the manifest does not list ${part}`, `${source.name}/manifest.json`, COPY_AGAIN);
  const kept = await cache?.read(part, entry.sha256);
  if (kept && !(await fault(kept, entry, verify))) {
    options.onProgress?.(kept.length);
    return kept;
  }
  options.signal?.throwIfAborted();
  const data = await source.read(part, options);
  const what = await fault(data, entry, verify);
  if (what) throw new DeepZigError(what, `${source.name}/${part}`, COPY_AGAIN);
  await cache?.write(part, entry.sha256, data);
  return data;
}

/**
 * What is wrong with a part, if anything.
 * @param {import("./tensors.js").Bytes} data
 * @param {{size: number, sha256: string}} entry
 * @param {boolean} verify
 */
async function fault(data, { size, sha256 }, verify) {
  if (data.length !== size) return `the file has ${data.length} bytes, not ${size}`;
  if (!verify) return undefined;
  demand(["hashes"]);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return found === sha256 ? undefined : "the file was changed: its SHA-256 differs from the manifest's";
}
