/**
 * Runs an artifact for the process that serves this page: an answer is posted to `exchange`, and the response is the
 * next request.
 */

import { urlSource } from "./fetch.js";
import { openExecutor } from "./engine.js";
import { answering } from "./requests.js";

const answer = answering(async ({ name, manifest, pages }) => {
  const source = { ...urlSource(new URL("parts", document.baseURI)), name };
  return openExecutor(source, JSON.parse(manifest), pages, { verify: false });
});

/** @param {string} body */
const ask = async (body) => (await fetch("exchange", { method: "POST", body })).text();

const open = await fetch("open"); // never ends, so that the other side sees when this page does

try {
  for (let request = await ask(""); request; request = await ask(await answer(request)));
} finally {
  await open.body?.cancel();
  window.close();
}
