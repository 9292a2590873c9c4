"""What is measured and printed, and asserted nowhere: figures depend on the machine."""
