"""Files → samples."""
