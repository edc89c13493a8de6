"""Bytes that are elsewhere: in buckets, on web servers, on hubs. Locations, reading, writing.

No client is our own: `obstore` speaks with object storage and web servers, `huggingface_hub` says
what a repository holds. Both are extras, imported where something is fetched.
"""
