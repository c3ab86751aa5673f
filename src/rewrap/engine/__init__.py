"""The engine: reads, reseals, swaps and checkpoints, shard by shard, until nothing is stale."""
