"""HTTP → the served model: MLflow's scoring application with a front that may face strangers."""
