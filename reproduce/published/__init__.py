"""The audit: every published number, what is known of it here, and by what means."""
