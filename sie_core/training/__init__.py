"""Fine-tuning a cross-encoder for a domain, and whether it paid: docs/finetuning.md."""
