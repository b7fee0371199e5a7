import OpenAI from "openai";

const client = new OpenAI({ apiKey: "any key", baseURL: "http://localhost:8080/v1" });
const reply = await client.embeddings.create({
  model: "BAAI/bge-m3",
  input: ["a museum in paris", "yellow bananas"],
});
for (const entry of reply.data) console.log(...entry.embedding);
