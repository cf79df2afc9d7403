import { DeepZigError } from "./errors.js";

/** A module with one function, which returns a vector. */
const VECTOR = Uint8Array.of(
  0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, // magic and version
  1, 5, 1, 0x60, 0, 1, 0x7b, // a type: () -> v128
  3, 2, 1, 0, // a function of it
  10, 8, 1, 6, 0, 0x41, 0, 0xfd, 15, 0x0b, // its code: i32.const 0, i8x16.splat, end
);
const UPDATE = "update it: Chrome 100, Firefox 104, Safari 16.4, node 18 and later have it";

/**
 * What browsers may lack: how it is found, what is said where it is missing, and how to mend that. Looked up when it is
 * asked for, since a page may add what is missing.
 * @type {Readonly<Record<string, {found: () => unknown, what: string, hint: string}>>}
 */
export const FEATURES = Object.freeze({
  simd: {
    found: () => globalThis.WebAssembly?.validate(VECTOR),
    what: "there is no WebAssembly with SIMD",
    hint: UPDATE,
  },
  bigint: {
    found: () => globalThis.BigUint64Array && "setBigInt64" in DataView.prototype,
    what: "there are no integers of 64 bits",
    hint: UPDATE,
  },
  streams: {
    found: () => globalThis.ReadableStream && "body" in (globalThis.Response?.prototype ?? {}),
    what: "responses can't be read as they come",
    hint: UPDATE,
  },
  abort: {
    found: () => globalThis.AbortSignal?.prototype.throwIfAborted,
    what: "work can't be aborted",
    hint: UPDATE,
  },
  hashes: {
    found: () => globalThis.crypto?.subtle,
    what: "pages that come over plain HTTP can't check hashes",
    hint: "serve the page over HTTPS or from localhost, or load with verify: false",
  },
  cache: {
    found: () => globalThis.caches,
    what: "parts can't be kept: they are fetched anew for every load",
    hint: "serve the page over HTTPS or from localhost, outside of private windows",
  },
  workers: {
    found: () => globalThis.Worker,
    what: "there are no workers",
    hint: "load the model in the page itself",
  },
  webgpu: {
    found: () => globalThis.navigator?.gpu,
    what: "there is no WebGPU",
    hint: "use a browser with WebGPU over HTTPS or from localhost, or an artifact for WebAssembly",
  },
});

/** What every artifact needs. */
export const NEEDED = Object.freeze(["simd", "bigint", "streams", "abort"]);

/**
 * What this browser, or node, lacks: a message for each.
 * @param {readonly string[]} [features] names of `FEATURES`; by default those that every artifact needs
 */
export function missing(features = NEEDED) {
  const where = globalThis.navigator?.userAgent ?? `node ${globalThis.process?.version}`;
  return features
    .filter((name) => !FEATURES[name].found())
    .map((name) => new DeepZigError(FEATURES[name].what, where, FEATURES[name].hint));
}

/**
 * Refuse to go on without some features.
 * @param {readonly string[]} [features] names of `FEATURES`; by default those that every artifact needs
 * @throws {DeepZigError} for the first that is missing
 */
export function demand(features) {
  const [error] = missing(features);
  if (error) throw error;
}
