"""Style → image."""
