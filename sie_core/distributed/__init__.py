"""More than one machine, by Ray: docs/scale.md and docs/serve_on_ray.md.

Files of lists go `rerank_files` -> `job` -> `block` -> `list_ranker` -> `Reranker`, in this process
or by `ray_engine` in many; `rerank_dataset` is the same as a step of Ray Data. A request goes
`serving` -> `front` -> `replicas` -> `replica` -> the app of `sie_core.server`. `cluster` connects.
"""
