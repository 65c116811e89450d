"""Samples → weights; with the jobs that train, the only place of torch."""
