"""Facts in, a plan out: what would happen to each guest, and every reason against it. Pure."""
