"""MLflow's mirror of what the stages wrote, and DVC's experiments."""
