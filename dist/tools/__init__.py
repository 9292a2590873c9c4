"""What is made for an installation from hostagent itself: its man page, completions, and what it is built with."""
