"""One file for each use case: settings → tracked run → outcome."""
