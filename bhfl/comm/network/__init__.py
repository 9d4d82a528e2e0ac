"""Simulated links and devices: from measured bytes to seconds."""

from bhfl.comm.network.links import PROFILES, Link, Profile
from bhfl.comm.network.simulation import ClientTime, SimulatedNetwork, Workload
from bhfl.comm.network.trace import TraceLinks

__all__ = [
    "PROFILES",
    "ClientTime",
    "Link",
    "Profile",
    "SimulatedNetwork",
    "TraceLinks",
    "Workload",
]
