import { DeepZigError } from "./errors.js";
import { ALIGNMENT, aligned } from "./tensors.js";

const SPAN = 2 ** 32; // addresses of a buffer: its number is above them

/** @typedef {import("./memory.js").Memory} Memory */

/**
 * Buffers of a device, and what became of it.
 * @implements {Memory}
 */
export class GpuMemory {
  /** @param {GPUDevice} device */
  constructor(device) {
    this.device = device;
    /** @type {GPUBuffer[]} */
    this.buffers = [];
    this.bytes = 0;
    /** @type {DeepZigError | undefined} */
    this.fault = undefined;
    device.addEventListener("uncapturederror", ({ error }) => {
      this.fault ??= new DeepZigError(`WebGPU refuses a call: ${error.message}`, "WebGPU", "report it");
    });
    this.lost = device.lost.then(({ message, reason }) => {
      this.fault = new DeepZigError(`the GPU was lost: ${message || reason}`, "WebGPU", "load the model again");
    });
    device.pushErrorScope("out-of-memory");
  }

  /** Fail if a call has failed, or the device is lost: nothing that it computes is to be believed. */
  check() {
    if (this.fault) throw this.fault;
  }

  /** @param {number} bytes */
  allocate(bytes) {
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    const size = Math.max(aligned(bytes), ALIGNMENT);
    this.buffers.push(this.device.createBuffer({ size, usage }));
    this.bytes += size;
    return (this.buffers.length - 1) * SPAN;
  }

  /**
   * The buffer that an address lies in, and where in it.
   * @param {number} address
   */
  find(address) {
    return { buffer: this.buffers[Math.floor(address / SPAN)], offset: address % SPAN };
  }

  /**
   * @param {number} address
   * @param {Uint8Array} data
   */
  write(address, data) {
    const { buffer, offset } = this.find(address);
    this.device.queue.writeBuffer(buffer, offset, /** @type {import("./tensors.js").Bytes} */ (data));
  }

  /**
   * @param {number} from
   * @param {number} to
   * @param {number} bytes
   */
  copy(from, to, bytes) {
    const [source, target] = [this.find(from), this.find(to)];
    if (source.buffer !== target.buffer) {
      this.encode((encoder) => {
        encoder.copyBufferToBuffer(source.buffer, source.offset, target.buffer, target.offset, bytes);
      });
      return;
    }
    const usage = GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST; // WebGPU copies between two buffers only
    const between = this.device.createBuffer({ size: bytes, usage });
    this.encode((encoder) => {
      encoder.copyBufferToBuffer(source.buffer, source.offset, between, 0, bytes);
      encoder.copyBufferToBuffer(between, 0, target.buffer, target.offset, bytes);
    });
    between.destroy();
  }

  /**
   * @param {number} address
   * @param {number} bytes
   * @returns {Promise<import("./tensors.js").Bytes>}
   */
  async read(address, bytes) {
    this.check();
    if (!bytes) return new Uint8Array(0);
    const { buffer, offset } = this.find(address);
    const copy = this.device.createBuffer({ size: bytes, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    this.encode((encoder) => encoder.copyBufferToBuffer(buffer, offset, copy, 0, bytes));
    try {
      await copy.mapAsync(GPUMapMode.READ);
    } catch (error) {
      await Promise.race([this.lost, new Promise((resolve) => setTimeout(resolve, 100))]);
      this.check();
      throw new DeepZigError(`the GPU's memory can't be read: ${message(error)}`, "WebGPU", "load the model again");
    }
    this.check();
    const data = new Uint8Array(copy.getMappedRange()).slice();
    copy.destroy();
    return data;
  }

  async wait() {
    await this.device.queue.onSubmittedWorkDone();
    this.check();
  }

  async seal() {
    const error = await this.device.popErrorScope();
    if (error) {
      const what = `the GPU has no room: ${error.message}`;
      throw new DeepZigError(what, "WebGPU", "load with a smaller cache, or compile with --quant");
    }
    this.check();
  }

  /**
   * Start work.
   * @param {(encoder: GPUCommandEncoder) => void} work
   */
  encode(work) {
    const encoder = this.device.createCommandEncoder();
    work(encoder);
    this.device.queue.submit([encoder.finish()]);
  }
}

/** @param {unknown} error */
export const message = (error) => /** @type {Error} */ (error).message;
