"""`sie serve`: the SIE protocol, and what other clients speak, over the in-process engine."""
