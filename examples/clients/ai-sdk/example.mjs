// AI SDK: options go in `providerOptions`, under the name that the provider was given.
import { readFileSync } from "node:fs";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText } from "ai";

const { BASE_URL, MODEL, IMAGE, BUDGET } = process.env;
const content = [{ type: "text", text: "What colour is the circle?" }];
if (IMAGE) {
  content.unshift({ type: "file", data: readFileSync(IMAGE), mediaType: "image/png" });
}

const vllm = createOpenAICompatible({ name: "vllm", baseURL: BASE_URL });
const answer = await generateText({
  model: vllm(MODEL),
  messages: [{ role: "user", content }],
  maxOutputTokens: 8,
  maxRetries: 0,
  providerOptions: {
    vllm: { mm_processor_kwargs: { litelvlm: { budget: Number(BUDGET) } } },
  },
});
console.log(answer.text, answer.usage);
