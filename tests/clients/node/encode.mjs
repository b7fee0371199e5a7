import { SIEClient } from "@superlinked/sie-sdk";

const client = new SIEClient("http://localhost:8080");
const results = await client.encode("BAAI/bge-m3", [
  { text: "a museum in paris" },
  { text: "yellow bananas" },
]);
for (const result of results) console.log(...result.dense);
