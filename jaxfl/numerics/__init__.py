"""Array functions that know nothing of federated learning."""
