const NAME = "deepzig";

/**
 * Parts that a browser keeps for the next load, by their names and hashes.
 *
 * It is a convenience: where nothing can be kept (plain HTTP, a full disk, some private windows), nothing is.
 */
export class PartCache {
  /**
   * @param {Cache} cache
   * @param {string} folder URL of the artifact's folder
   */
  constructor(cache, folder) {
    this.cache = cache;
    this.folder = folder;
  }

  /**
   * @param {string} folder URL of the artifact's folder
   * @returns {Promise<PartCache | undefined>} nothing where nothing can be kept
   */
  static async open(folder) {
    const cache = await orNothing(() => globalThis.caches?.open(NAME));
    return cache && new PartCache(cache, folder);
  }

  /**
   * What was kept under this name and this hash; it may have been damaged since.
   * @param {string} part
   * @param {string} sha256
   */
  async read(part, sha256) {
    const found = await orNothing(() => this.cache.match(this.key(part, sha256)));
    return found && orNothing(async () => new Uint8Array(await found.arrayBuffer()));
  }

  /**
   * @param {string} part
   * @param {string} sha256
   * @param {import("./tensors.js").Bytes} data
   */
  async write(part, sha256, data) {
    await orNothing(() => this.cache.put(this.key(part, sha256), new Response(data)));
  }

  /**
   * Forget all parts of the artifact but these.
   * @param {Record<string, {sha256: string}>} files
   */
  async keepOnly(files) {
    const wanted = new Set(Object.entries(files).map(([part, { sha256 }]) => this.key(part, sha256)));
    const kept = (await orNothing(() => this.cache.keys())) ?? [];
    const stale = kept.filter(({ url }) => url.startsWith(`${this.folder}/?`) && !wanted.has(url));
    await Promise.all(stale.map((request) => orNothing(() => this.cache.delete(request))));
  }

  /**
   * An address that is nobody else's: behind the folder comes a query, never a path.
   * @param {string} part
   * @param {string} sha256
   */
  key(part, sha256) {
    return `${this.folder}/?${new URLSearchParams({ part, sha256 })}`;
  }
}

/**
 * @template Result
 * @param {() => Promise<Result> | undefined} work
 */
async function orNothing(work) {
  try {
    return await work();
  } catch {
    return undefined;
  }
}
