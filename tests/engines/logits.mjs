// Logits of llama.cpp, by node-llama-cpp. Arguments: the folder of node-llama-cpp; a JSON file with
// [{model, lora, texts: [[token, ...], ...]}, ...]; a file for the logits, float32, of each token.
import { openSync, readFileSync, writeSync } from "node:fs";

const [, , library, jobsFile, outFile] = process.argv;
const { getLlama } = await import(`${library}/dist/index.js`);
// more threads than free cores would spin
const llama = await getLlama({ gpu: false, build: "never", maxThreads: 1, logLevel: "warn" });
const out = openSync(outFile, "w");
for (const { model: path, lora, texts } of JSON.parse(readFileSync(jobsFile))) {
  const model = await llama.loadModel({ modelPath: path });
  const adapters = lora ? { lora: { adapters: [{ filePath: lora, scale: 1 }] } } : {};
  const context = await model.createContext({
    contextSize: 64,
    flashAttention: false,
    experimentalKvCacheKeyType: "F32",
    experimentalKvCacheValueType: "F32",
    ...adapters,
  });
  const sequence = context.getSequence();
  for (const tokens of texts) {
    await sequence.clearHistory();
    const inputs = tokens.map((token) => [token, { generateNext: { logits: true } }]);
    for (const { next } of await sequence.controlledEvaluate(inputs)) {
      const logits = new Float32Array(next.logits.size);
      for (const [token, logit] of next.logits) logits[token] = logit;
      writeSync(out, new Uint8Array(logits.buffer));
    }
  }
  await context.dispose();
  await model.dispose();
}
process.exit(0);
