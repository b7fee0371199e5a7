from haystack import Document
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

ranker = HuggingFaceTEIRanker(url="http://localhost:8080", top_k=2)
documents = [
    Document(content="a museum in paris", meta={"source": "a"}),
    Document(content="berlin has a population of many people", meta={"source": "b"}),
    Document(content="yellow bananas", meta={"source": "c"}),
]
for document in ranker.run("how many people live in berlin", documents)["documents"]:
    print(document.meta["source"], document.score)
