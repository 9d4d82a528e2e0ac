"""What quantising a trained model costs, layer by layer."""
