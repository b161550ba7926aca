"""The checks of `bench check`: the contract of an upstream, and the cost of encoding."""
