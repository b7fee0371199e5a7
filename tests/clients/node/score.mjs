import { SIEClient } from "@superlinked/sie-sdk";

const client = new SIEClient("http://localhost:8080");
const result = await client.score(
  "BAAI/bge-reranker-v2-m3",
  { text: "how many people live in berlin" },
  [
    { id: "doc-1", text: "berlin has a population of many people" },
    { id: "doc-2", text: "a museum in paris" },
    { id: "doc-3", text: "yellow bananas" },
  ],
);
for (const entry of result.scores) console.log(entry.itemId, entry.score);
