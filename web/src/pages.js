import { DeepZigError } from "./errors.js";

/** Pages of the cache: who has which. */
export class PagePool {
  /**
   * @param {number} count
   * @param {number} pageSize tokens in a page
   */
  constructor(count, pageSize) {
    this.count = count;
    this.pageSize = pageSize;
    this.free = Array.from({ length: count }, (_, i) => count - 1 - i);
  }

  /** How many tokens all pages hold. */
  get tokens() {
    return this.count * this.pageSize;
  }

  /**
   * Take pages, all or none.
   * @param {number} count
   */
  take(count) {
    if (count > this.free.length) {
      const what = `the cache is full: ${count} more pages are needed, ${this.free.length} are free`;
      throw new DeepZigError(what, `cache of ${this.tokens} tokens`, "load the model with a larger cacheTokens");
    }
    return this.free.splice(this.free.length - count, count).reverse();
  }

  /** @param {number[]} pages */
  giveBack(pages) {
    this.free.push(...pages.reverse());
  }
}

/** The pages of one sequence, grown as it gets longer. */
export class Sequence {
  /** @param {PagePool} pool */
  constructor(pool) {
    this.pool = pool;
    /** @type {number[]} */
    this.pages = [];
  }

  /**
   * Have room for so many tokens in all.
   * @param {number} tokens
   */
  reserve(tokens) {
    const needed = Math.ceil(tokens / this.pool.pageSize) - this.pages.length;
    if (needed > 0) this.pages.push(...this.pool.take(needed));
  }

  /** Give the pages back. */
  close() {
    this.pool.giveBack(this.pages.splice(0));
  }
}
