curl -s http://localhost:8080/v1/score/BAAI/bge-reranker-v2-m3 \
  -H 'Content-Type: application/json' -H 'Accept: application/json' -d '{
    "query": {"text": "how many people live in berlin"},
    "items": [
      {"id": "doc-1", "text": "berlin has a population of many people"},
      {"id": "doc-2", "text": "a museum in paris"},
      {"id": "doc-3", "text": "yellow bananas"}
    ]
  }'
