// @langchain/openai: options go in the constructor's `modelKwargs`.
import { readFileSync } from "node:fs";
import { HumanMessage } from "@langchain/core/messages";
import { ChatOpenAI } from "@langchain/openai";

const { BASE_URL, MODEL, IMAGE, BUDGET } = process.env;
const content = [{ type: "text", text: "What colour is the circle?" }];
if (IMAGE) {
  const url = `data:image/png;base64,${readFileSync(IMAGE, "base64")}`;
  content.unshift({ type: "image_url", image_url: { url } });
}

const model = new ChatOpenAI({
  model: MODEL,
  apiKey: "none",
  configuration: { baseURL: BASE_URL },
  maxTokens: 8,
  modelKwargs: { mm_processor_kwargs: { litelvlm: { budget: Number(BUDGET) } } },
});
const answer = await model.invoke([new HumanMessage({ content })]);
console.log(answer.content, answer.usage_metadata);
