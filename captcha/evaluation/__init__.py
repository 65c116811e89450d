"""Readings and labels → numbers."""
