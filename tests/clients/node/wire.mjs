// The protocol by hand: msgpack both ways, with arrays as maps whose keys are bytes.
import { decode, encode } from "@msgpack/msgpack";

const mapKeyConverter = (key) => (key instanceof Uint8Array ? new TextDecoder().decode(key) : key);

async function call(path, body) {
  const reply = await fetch(`http://localhost:8080${path}`, {
    method: "POST",
    headers: { "Content-Type": "application/msgpack", Accept: "application/msgpack" },
    body: encode(body),
  });
  return decode(new Uint8Array(await reply.arrayBuffer()), { mapKeyConverter });
}

const scored = await call("/v1/score/BAAI/bge-reranker-v2-m3", {
  query: { text: "how many people live in berlin" },
  items: [
    { id: "doc-1", text: "berlin has a population of many people" },
    { id: "doc-2", text: "a museum in paris" },
    { id: "doc-3", text: "yellow bananas" },
  ],
});
for (const entry of scored.scores) console.log(entry.item_id, entry.score);

const encoded = await call("/v1/encode/BAAI/bge-m3", { items: [{ text: "a museum in paris" }] });
const { data, shape, type } = encoded.items[0].dense.values;
if (type !== "<f4") throw new Error(`the type is ${type}`);
const vector = new Float32Array(data.slice().buffer, 0, shape[0]);
console.log(...vector);
