"""What crosses between the server and a client: bytes and plain values, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from bhfl.comm.network import Link


@dataclass(frozen=True)
class ClientLink:
    """One client's link and device in one round, as far as both halves of it must know them."""

    link: Link
    """Its share of the link, and the device at its bits."""
    example_flops: float
    """FLOPs of training on one example."""

    def seconds(self, download_bytes: int, upload_bytes: int, num_examples: int) -> float:
        """From the start of the round until an upload has arrived."""
        link = self.link
        trained = link.compute_seconds(self.example_flops * num_examples)
        return link.download_seconds(download_bytes) + trained + link.upload_seconds(upload_bytes)

    def budget_bytes(self, download_bytes: int, num_examples: int, deadline_seconds: float) -> int:
        """Bytes that can still be sent before a deadline, after a download and training; 0 if it is
        too late.
        """
        flops = self.example_flops * num_examples
        return self.link.uplink_budget_bits(download_bytes, flops, deadline_seconds) // 8
