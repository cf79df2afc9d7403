import { DeepZigError } from "./errors.js";
import { HostMemory } from "./memory.js";
import { ALIGNMENT, DTYPES, aligned } from "./tensors.js";

const CPU = 1; // DLDeviceType of dlpack.h
const PAGE = 1 << 16;
const MOST_PAGES = 1 << 16;
const TENSOR_POINTER = 7; // TVMFFITypeIndex of tvm/ffi/c_api.h
const ANY_BYTES = 16; // TVMFFIAny
const SHAPE_AT = 40; // behind a DLTensor of dlpack.h

/** @typedef {import("./executor.js").Kernels} Kernels */

/**
 * The module of an artifact's kernels: its functions, and memory in which they are told of tensors.
 *
 * Records are laid out as C has them on wasm32: DLTensor (dlpack.h) and TVMFFIAny (tvm/ffi/c_api.h).
 * @implements {Kernels}
 */
export class Host {
  /** @param {WebAssembly.Instance} instance */
  constructor(instance) {
    /** @type {Record<string, any>} */
    this.exports = instance.exports;
    /** @type {{buffer: ArrayBuffer, grow: (pages: number) => number}} */
    this.memory = this.exports.memory;
    this.end = this.memory.buffer.byteLength;
    this.view = new Uint8Array(this.memory.buffer);
  }

  /**
   * @param {import("./tensors.js").Bytes} code
   * @param {WebAssembly.Imports} imports
   * @param {string} where for errors
   */
  static async load(code, imports, where) {
    try {
      return new Host((await WebAssembly.instantiate(code, imports)).instance);
    } catch (error) {
      const what = `the code can't be loaded: ${/** @type {Error} */ (error).message}`;
      throw new DeepZigError(what, where, "update this browser or node: WebAssembly with SIMD is needed");
    }
  }

  /** All of the memory; good until more is allocated or a kernel is called. */
  bytes() {
    if (this.view.buffer !== this.memory.buffer) this.view = new Uint8Array(this.memory.buffer);
    return this.view;
  }

  /**
   * Memory of zeros, aligned to 64 bytes: its address.
   * @param {number} bytes
   */
  allocate(bytes) {
    const begin = aligned(this.end);
    this.end = begin + aligned(bytes);
    const missing = Math.ceil(this.end / PAGE) - this.memory.buffer.byteLength / PAGE;
    try {
      if (this.end > MOST_PAGES * PAGE) throw new RangeError();
      if (missing > 0) this.memory.grow(missing);
    } catch {
      const what = `there is no room for ${bytes} bytes more after ${begin}`;
      throw new DeepZigError(what, "the memory of WebAssembly", "load with a smaller cache, or compile with --quant");
    }
    return begin;
  }

  /** To be called after all allocations: kernels take their scratch memory from behind them. */
  seal() {
    this.exports.workspace(aligned(this.end));
  }

  /**
   * The record of a tensor: its address. The shape is to be set.
   * @param {import("./tensors.js").DType} dtype
   * @param {number} rank
   * @param {number} data address of the elements
   */
  record(dtype, rank, data) {
    const at = this.allocate(Math.max(SHAPE_AT + 8 * rank, ALIGNMENT));
    const view = new DataView(this.memory.buffer);
    view.setUint32(at, data, true);
    view.setInt32(at + 4, CPU, true);
    view.setInt32(at + 12, rank, true);
    view.setUint8(at + 16, DTYPES[dtype].code);
    view.setUint8(at + 17, 8 * DTYPES[dtype].bytes);
    view.setUint16(at + 18, 1, true);
    view.setUint32(at + 20, at + SHAPE_AT, true);
    return at;
  }

  /**
   * @param {number} record
   * @param {readonly number[]} shape
   */
  shape(record, shape) {
    const view = new DataView(this.memory.buffer);
    shape.forEach((size, axis) => view.setBigInt64(record + SHAPE_AT + 8 * axis, BigInt(size), true));
  }

  /**
   * @param {readonly import("./executor.js").PlannedCall[]} calls
   * @param {readonly import("./executor.js").Place[]} tensors
   */
  prepare(calls, tensors) {
    const records = tensors.map(({ dtype, rank, address }) => this.record(dtype, rank, address));
    const made = calls.map((call) => this.call(call.kernel, call.arguments.map((i) => records[i])));
    return {
      /**
       * @param {number} tensor
       * @param {readonly number[]} shape
       */
      shape: (tensor, shape) => this.shape(records[tensor], shape),
      /**
       * @param {number} begin
       * @param {number} end
       */
      run(begin, end) {
        for (let i = begin; i < end; i += 1) made[i]();
      },
    };
  }

  /**
   * A call of a kernel, to be made as often as is wanted.
   * @param {string} kernel
   * @param {readonly number[]} records of its arguments
   * @returns {() => void}
   */
  call(kernel, records) {
    const call = this.exports[`__tvm_ffi_${kernel}`];
    if (!call) throw new DeepZigError(`there is no kernel ${kernel}`, "the artifact's code", "compile the model again");
    const at = this.allocate(ANY_BYTES * records.length);
    const view = new DataView(this.memory.buffer);
    records.forEach((record, i) => {
      view.setInt32(at + ANY_BYTES * i, TENSOR_POINTER, true);
      view.setUint32(at + ANY_BYTES * i + 8, record, true);
    });
    return () => {
      if (call(0, at, records.length, 0) !== 0) {
        const what = `the kernel ${kernel} has no room`;
        throw new DeepZigError(what, "the memory of WebAssembly", "load with a smaller cache");
      }
    };
  }
}

/**
 * The kernels of a WebAssembly module, and their memory.
 * @param {import("./tensors.js").Bytes} code
 * @param {string} where for errors
 */
export async function openHost(code, where) {
  const kernels = await Host.load(code, {}, where);
  return { kernels, memory: new HostMemory(kernels) };
}
