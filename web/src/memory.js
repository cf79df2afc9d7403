/**
 * Where tensors lie and kernels find them. Addresses are numbers that can be added to, up to the end of what was
 * allocated.
 *
 * @typedef {import("./tensors.js").Bytes} Bytes
 * @typedef {object} Memory
 * @property {number} bytes that it has taken so far
 * @property {(bytes: number) => number} allocate memory of zeros, aligned for kernels: its address
 * @property {(address: number, data: Uint8Array) => void} write
 * @property {(from: number, to: number, bytes: number) => void} copy
 * @property {(address: number, bytes: number) => Promise<Bytes>} read a copy, once all kernels called so far are done
 * @property {() => Promise<void>} wait until all kernels called so far are done
 * @property {() => Promise<void>} seal to be awaited after all allocations; fails where there was no room for them
 */

/**
 * The memory of the kernels' own module.
 * @implements {Memory}
 */
export class HostMemory {
  /** @param {import("./host.js").Host} host */
  constructor(host) {
    this.host = host;
  }

  get bytes() {
    return this.host.memory.buffer.byteLength;
  }

  /** @param {number} bytes */
  allocate(bytes) {
    return this.host.allocate(bytes);
  }

  /**
   * @param {number} address
   * @param {Uint8Array} data
   */
  write(address, data) {
    this.host.bytes().set(data, address);
  }

  /**
   * @param {number} from
   * @param {number} to
   * @param {number} bytes
   */
  copy(from, to, bytes) {
    this.host.bytes().copyWithin(to, from, from + bytes);
  }

  /**
   * @param {number} address
   * @param {number} bytes
   * @returns {Promise<Bytes>}
   */
  async read(address, bytes) {
    return this.host.bytes().slice(address, address + bytes);
  }

  async wait() {}

  async seal() {
    this.host.seal();
  }
}
