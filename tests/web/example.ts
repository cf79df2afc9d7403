// What users write, under strict types; tests/web/test_npm.py compiles and runs it.
import { type ChatOptions, DeepZigError, forget, missing, type Model } from "deepzig";
import { load } from "deepzig/node";
import { load as loadInWorker } from "deepzig/worker";

const folder: string = process.argv[2]!;
let share = 0;
const model: Model = await load(folder, {
  cacheTokens: 512,
  onProgress: ({ loaded, total }) => {
    share = loaded / total;
  },
});

const options: ChatOptions = { maxTokens: 40, temperature: 0, stop: ["\n"], signal: new AbortController().signal };
let text = "";
for await (const piece of model.chat([{ role: "user", content: "Reverse the word lamp." }], options)) text += piece;

const tokens: number[] = [];
for await (const token of model.generate("12+30=", { maxTokens: 4, seed: 7n, ignoreEos: true })) tokens.push(token);

const tokenizer = await model.tokenizer();
const again: string = tokenizer.decode(tokenizer.encode("lamp"));

const answer = model.stream([3, 333, 457], { maxTokens: 1 });
const last = await answer.next();
const reason: string | void = last.value;

// @ts-expect-error: a temperature is a number
const wrong = model.generate("a", { temperature: "hot" });
const told: string = await wrong.next().then(String, (error: unknown) => (error instanceof DeepZigError ? error.what : ""));

// @ts-expect-error: a message has a role
model.chat([{ content: "a" }]);

export const inPages = [loadInWorker, forget];
console.log(JSON.stringify({ share, text, count: tokens.length, again, told, reason, missing: missing().length }));
model.close();
