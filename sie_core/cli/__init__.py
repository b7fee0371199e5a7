"""The `sie` command: `sie rerank` and `sie models`, one file per subcommand."""
