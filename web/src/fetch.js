import { PartCache } from "./cache.js";
import { DeepZigError } from "./errors.js";
import { loadFrom } from "./model.js";

/**
 * The parts of an artifact on a server.
 * @param {string | URL} url of its folder
 * @returns {import("./artifact.js").Source}
 */
export function urlSource(url) {
  const folder = new URL(url, globalThis.location?.href);
  if (!folder.pathname.endsWith("/")) folder.pathname += "/";
  return {
    name: folder.href.slice(0, -1),
    async read(part, { signal, onProgress } = {}) {
      const place = new URL(part.split("/").map(encodeURIComponent).join("/"), folder);
      try {
        const response = await fetch(place, { signal });
        if (!response.ok) {
          const what = `the server answers ${response.status} ${response.statusText}`.trim();
          throw new DeepZigError(what, place.href, "check the address");
        }
        return await collect(response, onProgress);
      } catch (error) {
        if (signal?.aborted || error instanceof DeepZigError) throw error;
        const what = `a part can't be fetched: ${/** @type {Error} */ (error).message}`;
        throw new DeepZigError(what, place.href, "check the connection, and that the server may be asked from here");
      }
    },
  };
}

/**
 * The body of a response.
 * @param {Response} response
 * @param {(bytes: number) => void} [onProgress] told of the bytes that came
 */
async function collect(response, onProgress) {
  const pieces = [];
  let size = 0;
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  for (let next = await reader.read(); !next.done; next = await reader.read()) {
    pieces.push(next.value);
    size += next.value.length;
    onProgress?.(next.value.length);
  }
  const data = new Uint8Array(size);
  let at = 0;
  for (const piece of pieces) {
    data.set(piece, at);
    at += piece.length;
  }
  return data;
}

/**
 * @typedef {Omit<import("./engine.js").LoadOptions, "cache"> & {cache?: boolean}} UrlOptions
 *     `cache`: keep the parts for the next load (default), where the browser can
 */

/**
 * What it takes to load the artifact in a folder on a server.
 * @param {string | URL} url
 * @param {UrlOptions} [options]
 */
export async function openUrl(url, { cache = true, ...options } = {}) {
  const source = urlSource(url);
  const kept = cache ? await PartCache.open(source.name) : undefined;
  return { source, options: { ...options, cache: kept } };
}

/**
 * Load the artifact in a folder on a server.
 * @param {string | URL} url
 * @param {UrlOptions} [options]
 */
export async function load(url, options) {
  const opened = await openUrl(url, options);
  return loadFrom(opened.source, opened.options);
}

/**
 * Forget what was kept of the artifact in a folder on a server.
 * @param {string | URL} url
 */
export async function forget(url) {
  const cache = await PartCache.open(urlSource(url).name);
  await cache?.keepOnly({});
}
