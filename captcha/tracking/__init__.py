"""The MLflow side; knows no torch."""
