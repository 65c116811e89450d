"""Image bytes → text; copied whole into every registered model."""
