"""What a host needs before its guests can be updated in place: looked at, done, undone."""
