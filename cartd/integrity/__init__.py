"""What the store says is on the volume, and what is there: compared, and put right."""
