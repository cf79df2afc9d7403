import { DeepZigError } from "./errors.js";

export const FORMAT = 4;

/** What `load` calls devices -> what manifests call them. */
const DEVICES = Object.freeze({ wasm: "cpu", webgpu: "webgpu" });
const COPY_AGAIN = "copy or compile the artifact again";

/**
 * @typedef {object} Options of reading a part
 * @property {AbortSignal} [signal]
 * @property {(bytes: number) => void} [onProgress] told of the bytes that came
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
 * A part, as the manifest says it is.
 * @param {Source} source
 * @param {Manifest} manifest
 * @param {string} part
 * @param {Options & {verify?: boolean}} [options] `verify`: whether to compare its SHA-256, not its size alone
 */
export async function readPart(source, manifest, part, { verify = true, ...options } = {}) {
  const where = `${source.name}/${part}`;
  const entry = manifest.files[part];
  if (!entry) throw new DeepZigError(`the manifest does not list ${part}`, `${source.name}/manifest.json`, COPY_AGAIN);
  const data = await source.read(part, options);
  if (data.length !== entry.size) {
    throw new DeepZigError(`the file has ${data.length} bytes, not ${entry.size}`, where, COPY_AGAIN);
  }
  if (verify && (await sha256(data, where)) !== entry.sha256) {
    throw new DeepZigError("the file was changed: its SHA-256 differs from the manifest's", where, COPY_AGAIN);
  }
  return data;
}

/**
 * @param {import("./tensors.js").Bytes} data
 * @param {string} where for errors
 */
async function sha256(data, where) {
  if (!globalThis.crypto?.subtle) {
    const hint = "serve the page over HTTPS or from localhost, or load with verify: false";
    throw new DeepZigError("pages that come over plain HTTP can't check hashes", where, hint);
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
