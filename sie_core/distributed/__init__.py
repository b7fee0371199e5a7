"""More than one machine, by Ray: lists reranked offline, `sie serve` on a cluster."""
