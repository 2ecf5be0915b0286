"""What finished runs and random networks show: curves, power decomposition, reports. Nothing here trains."""
