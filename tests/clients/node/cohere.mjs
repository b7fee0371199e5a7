import { CohereClientV2 } from "cohere-ai";

const client = new CohereClientV2({ token: "any key", environment: "http://localhost:8080" });
const reply = await client.rerank({
  model: "BAAI/bge-reranker-v2-m3",
  query: "how many people live in berlin",
  documents: ["a museum in paris", "berlin has a population of many people", "yellow bananas"],
  topN: 2,
});
for (const result of reply.results) console.log(result.index, result.relevanceScore);
