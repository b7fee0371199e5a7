from openai import OpenAI

client = OpenAI(api_key="any key", base_url="http://localhost:8080/v1")
reply = client.embeddings.create(
    model="BAAI/bge-m3",
    input=["a museum in paris", "yellow bananas"],
)
for entry in reply.data:
    print(*entry.embedding)
