"""Every form in which labelled faces come, and how each is read."""
