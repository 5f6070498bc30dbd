"""Training: devices, processes, the loss, checkpoints, the log."""
