"""Bit-width heterogeneous federated learning: quantised clients, measured payloads, float32
servers.
"""

__version__ = "0.1.0"
