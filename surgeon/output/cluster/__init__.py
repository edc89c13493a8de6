"""Runs on many machines: planned tensors go to workers of a Dask cluster, which write them."""
