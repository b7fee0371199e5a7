"""See what OpenTelemetry is told of a rerank call, and what the reranker counts by itself."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sie_core import Reranker, RerankEvent

# A program that exports sets this up with an OTLPSpanExporter: see docs/tracing.md.
spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)


def tell(event: RerankEvent) -> None:
    """Be told of a call that has ended."""
    print(f"hook: {event.status}, {event.num_documents} documents, {event.num_input_tokens} tokens")


reranker = Reranker(on_rerank=tell)
documents = ["Bananas are yellow.", "Berlin had a population of 3,520,031 inhabitants."]
reranker.rerank("How many people live in Berlin?", documents, top_k=1)

(span,) = spans.get_finished_spans()
print(span.name)
for name in ("openinference.span.kind", "reranker.top_k", "sie.num_documents", "reranker.query"):
    print(f"  {name} -> {span.attributes.get(name)}")
print(f"{reranker.stats().num_calls} call so far")

# Expected output:
# hook: complete, 2 documents, 37 tokens
# rerank cross-encoder/ms-marco-MiniLM-L12-v2
#   openinference.span.kind -> RERANKER
#   reranker.top_k -> 1
#   sie.num_documents -> 2
#   reranker.query -> None
# 1 call so far
