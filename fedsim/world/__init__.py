"""The simulated world: devices, their availability, a virtual clock, and the schedules of rounds. NumPy only."""
