"""Tiny models of many types, operated on and loaded again by transformers."""
