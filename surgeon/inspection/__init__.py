"""Looking at checkpoints: inspect, diff, compare, verify, and pictures of them."""
