"""What does it cost? One question per file; ``report`` writes the tables and plots of the committed answers."""
