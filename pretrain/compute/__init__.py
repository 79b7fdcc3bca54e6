"""Processes, devices, memory and counted random numbers."""
