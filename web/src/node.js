import { webcrypto } from "node:crypto";
import { open, readFile } from "node:fs/promises";
import path from "node:path";

import { DeepZigError } from "./errors.js";
import { loadFrom } from "./model.js";

globalThis.crypto ??= /** @type {Crypto} */ (webcrypto); // node 18 has it as a module only

/**
 * The parts of an artifact in a folder.
 * @param {string} folder
 * @param {object} [options]
 * @param {string} [options.name] of the artifact, for errors
 * @param {Record<string, {file: string, begin: number, size: number}>} [options.places] of parts that lie elsewhere
 * @returns {import("./artifact.js").Source}
 */
export function folderSource(folder, { name = folder, places = {} } = {}) {
  return {
    name,
    async read(part, { signal, onProgress } = {}) {
      const place = places[part];
      const file = place?.file ?? path.join(folder, ...part.split("/"));
      try {
        if (!place && path.relative(folder, file).startsWith("..")) throw new Error("it lies outside the artifact");
        const data = await (place ? readRange(place) : readFile(file, { signal }));
        onProgress?.(data.length);
        return /** @type {import("./tensors.js").Bytes} */ (data);
      } catch (error) {
        if (signal?.aborted) throw error;
        const why = /** @type {NodeJS.ErrnoException} */ (error);
        const what = why.code === "ENOENT" ? "a part is missing" : `a part can't be read: ${why.message}`;
        throw new DeepZigError(what, file, "copy or compile the artifact again");
      }
    },
  };
}

/** @param {{file: string, begin: number, size: number}} place */
async function readRange({ file, begin, size }) {
  const handle = await open(file);
  try {
    const data = new Uint8Array(size);
    const { bytesRead } = await handle.read(data, 0, size, begin);
    return data.subarray(0, bytesRead);
  } finally {
    await handle.close();
  }
}

/**
 * Load the artifact in a folder.
 * @param {string} folder
 * @param {Parameters<typeof loadFrom>[1]} [options]
 */
export function load(folder, options) {
  return loadFrom(folderSource(folder), options);
}

export { DeepZigError };
