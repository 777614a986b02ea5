"""Machines that run compiled models for others: TVM's RPC, with our runtime at the other end."""

from nmcompile.devices.fleet import Failure, Fleet, Job, Outcome, run_jobs
from nmcompile.devices.server import DeviceServer, start_tracker
from nmcompile.devices.tracker import Address, Devices, list_devices

__all__ = [
    "Address",
    "DeviceServer",
    "Devices",
    "Failure",
    "Fleet",
    "Job",
    "Outcome",
    "list_devices",
    "run_jobs",
    "start_tracker",
]
