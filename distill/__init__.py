"""Stage 1: teacher, losses and the one training loop."""
