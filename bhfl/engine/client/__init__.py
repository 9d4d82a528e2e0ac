"""The client half of a round: what trains on a task, and knows nothing of the server."""
