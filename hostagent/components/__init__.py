"""The components of the host: what runs of each, and what is installed. One module each; they only look."""
