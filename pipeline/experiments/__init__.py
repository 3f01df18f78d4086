"""What is asked of finished trainings: compare, promote, seeds, doubtful labels, fast settings."""
