"""How good a ranking is: data sets with judgements, a first stage to start from, and metrics."""
