import { readPart } from "./artifact.js";
import { DeepZigError } from "./errors.js";
import { DTYPES, count } from "./tensors.js";

const PIECE = /^(.*)\[(\d+):\d+\]$/; // a part of a weight along its first dimension
const PADDING = /^_pad\.\d+$/;

/**
 * Read all weights to memory: name -> address.
 * @param {import("./artifact.js").Source} source
 * @param {import("./artifact.js").Manifest} manifest
 * @param {import("./memory.js").Memory} memory
 * @param {import("./artifact.js").Options & {verify?: boolean}} [options]
 * @returns {Promise<Map<string, number>>}
 */
export async function loadWeights(source, manifest, memory, options) {
  const specs = new Map(manifest.weights.map((spec) => [spec.name, spec]));
  /** @param {import("./artifact.js").Spec} spec */
  const size = ({ dtype, shape }) => count(shape.map(Number)) * DTYPES[dtype].bytes;
  const places = new Map(manifest.weights.map((spec) => [spec.name, memory.allocate(size(spec))]));
  const files = Object.keys(manifest.files).filter((name) => name.endsWith(".safetensors"));
  let loaded = 0;
  for (const file of files.sort()) {
    const where = `${source.name}/${file}`;
    const data = await readPart(source, manifest, file, options);
    for (const { name, begin, end } of tensors(data, where)) {
      const piece = PIECE.exec(name);
      const spec = specs.get(name) ?? specs.get(piece?.[1] ?? "");
      const place = places.get(spec?.name ?? "");
      if (!spec || place === undefined) {
        throw wrong("is not in the manifest", where, name);
      }
      const first = spec.name === name ? 0 : Number(piece?.[2]);
      const offset = (size(spec) / Number(spec.shape[0] ?? 1)) * first;
      if (offset + end - begin > size(spec)) {
        throw wrong("is larger than the manifest says", where, name);
      }
      memory.write(place + offset, data.subarray(begin, end));
      loaded += end - begin;
    }
  }
  if (loaded !== manifest.weights.reduce((sum, spec) => sum + size(spec), 0)) {
    throw new DeepZigError("weights are missing", source.name, "copy or compile the artifact again");
  }
  return places;
}

/**
 * @param {string} what
 * @param {string} where
 * @param {string} name
 */
function wrong(what, where, name) {
  return new DeepZigError(`a weight ${what}`, `${where}, tensor ${name}`, "compile the model again");
}

/**
 * The tensors of a safetensors file, padding left out; `begin` and `end` count from the start of the file.
 * @param {Uint8Array} data
 * @param {string} where
 */
function tensors(data, where) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  try {
    const length = Number(view.getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(data.subarray(8, 8 + length)));
    const entries = Object.entries(header).filter(([name]) => name !== "__metadata__" && !PADDING.test(name));
    return entries.map(([name, { data_offsets: [begin, end] }]) => {
      if (!(begin >= 0 && begin <= end && 8 + length + end <= data.length)) throw new RangeError();
      return { name, begin: 8 + length + begin, end: 8 + length + end };
    });
  } catch {
    throw new DeepZigError("the header of the weight file can't be read", where, "copy or compile the artifact again");
  }
}
